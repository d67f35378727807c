"""The container image, built from the Dockerfile and run, where no base image can be pulled: on a Debian made here.

The base and the Python packages are kept in the user's cache directory: they take a minute, and change seldom.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (ROOT / "requirements.lock", ROOT / "requirements-build.lock")

_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates,systemd,dbus"  # the last two: to run it under systemd
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STALE = 7 * 86_400  # seconds

RUN = (
    "--network=host",
    "--pull=never",
    "--health-interval=disable",
    "--ulimit=nofile=4096:4096",
    "--ulimit=nproc=4096:4096",
)
"""Flags for any container here: runc may not raise limits, and health checks would need a systemd around podman."""


class Engine:
    """buildah and podman, over a store of images of their own. `close` leaves nothing but the base."""

    def __init__(self, scratch: Path) -> None:
        """`scratch` is for this run alone."""
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        self._cache = caches / "mirrorproxy-tests"
        self._cache.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        # podman's database remembers both, and refuses others.
        self._store = ("--root", f"{self._cache}/images", "--runroot", f"{self._cache}/run")
        self.image = f"localhost/mirrorproxy-{os.getpid()}"
        self._suite = _os_release()["VERSION_CODENAME"]
        self._base = f"localhost/debian-{self._suite}-python-systemd"

    def build(self, **arguments: str) -> str:
        """Build the Dockerfile; what that printed."""
        with _only_one(self._cache / "lock"):
            if not self._has(self._base):
                self._make_base()
            wheels = self._wheels(self._inspect(self._base)["Labels"]["python"])
        pip = self._scratch / "pip.conf"  # as on a machine that reaches packages in a way of its own
        pip.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        flags = [f"--build-arg={name}={value}" for name, value in ({"BASE": self._base} | arguments).items()]
        flags += ["--isolation=chroot", "--format=docker", "--layers=false", "--pull-never", f"--tag={self.image}"]
        return self.buildah("bud", *flags, f"--secret=id=pip,src={pip}", f"--volume={wheels}:/wheels:ro", str(ROOT))

    def configuration(self) -> dict[str, Any]:
        """What the image says of itself."""
        return self._inspect(self.image)

    def run(self, name: str, *argv: str) -> None:
        """Start a container on the network of this machine; `argv`: flags, the image, its arguments."""
        self.podman("run", "--detach", f"--name={name}", *RUN, *argv)

    def remove(self, container: str) -> None:
        """Remove a container, running or not, and its volumes."""
        self.podman("rm", "--force", "--time=0", "--volumes", container)

    def close(self) -> None:
        """Remove the image."""
        self.buildah("rmi", "--force", self.image)

    def buildah(self, *argv: str, timeout: float = 300) -> str:
        """Run buildah."""
        return _run(["buildah", *self._store, *argv], timeout)

    def podman(self, *argv: str, timeout: float = 60) -> str:
        """Run podman."""
        return _run(
            ["podman", *self._store, "--tmpdir", f"{self._cache}/tmp", "--cgroup-manager=cgroupfs", *argv], timeout
        )

    def _has(self, image: str) -> bool:
        return bool(self.buildah("images", "--quiet", f"--filter=reference={image}"))

    def _inspect(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", image))["Docker"]["config"]
        return found

    def _make_base(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            tree = Path(folder) / "tree"
            _run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", self._suite, str(tree)], 600)
            for left in ("var/cache/apt", "var/lib/apt/lists"):
                shutil.rmtree(tree / left)
            python = (tree / "usr/bin/python3").readlink().name.removeprefix("python")
            container = self.buildah("from", "scratch").strip()
            self.buildah("add", "--quiet", container, str(tree), "/")
            self.buildah("config", "--env", f"PATH={_PATH}", "--label", f"python={python}", container)
            self.buildah("commit", "--quiet", "--rm", container, self._base)

    def _wheels(self, python: str) -> Path:
        """A folder with the locked packages for this version of Python, found as pip on this machine finds them."""
        locked = hashlib.sha256(b"".join(path.read_bytes() for path in LOCKS)).hexdigest()[:16]
        folder = self._cache / f"wheels-{python}-{locked}"
        if not folder.exists():
            for old in self._cache.glob("wheels-*"):  # not those of another checkout, which may be using them
                if time.time() - old.stat().st_mtime > _STALE:
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=self._cache) as partial:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
                pip += [f"--python-version={python}", "--require-hashes", f"--dest={partial}/all"]
                _run([*pip, *(f"--requirement={path}" for path in LOCKS)], 300, environ=os.environ)
                Path(partial, "all").rename(folder)
        return folder


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """For the time of a `with`, nobody else makes the same."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], timeout: float, environ: "os._Environ[str] | None" = None) -> str:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8"} if environ is None else environ,
    )
    assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
