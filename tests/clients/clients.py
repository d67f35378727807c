"""The real clients, each with folders of its own and set up for the mirror by the very files its users write."""

import hashlib
import json
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tests.clients.netns import HarnessError, Namespace, Process
from tests.documents import ROOT, snippet

_DOCUMENT = "docs/clients.md"
REGISTRIES = ("docker.io", "ghcr.io")
"""The registries that the clients ask the mirror for; dockerd can ask for the first alone."""


class Client(ABC):
    """What the tests do with a client. A reference is written out in full: `docker.io/library/x:1`."""

    name: str
    registries: Sequence[str] = REGISTRIES
    keeps_index = True
    """Of a multi-arch image it keeps the index, and names the image by that."""

    def __init__(self, namespace: Namespace, directory: Path, mirror: str) -> None:
        """`directory` is for it alone; `mirror` is the host:port of the mirror."""
        self._namespace = namespace
        self._directory = directory
        self._mirror = mirror
        directory.mkdir(parents=True)
        # What this machine's user has set for these clients stays out of it.
        self._env = {"HOME": str(directory), "TMPDIR": str(directory)}

    @abstractmethod
    def start(self) -> None:
        """Writes its settings, and starts its daemon if it has one."""

    def stop(self) -> None:
        """Ends its daemon."""
        return

    @abstractmethod
    def pull(self, reference: str) -> str:
        """Pulls, and gives the digest by which the client now knows the image.

        Raises HarnessError: the pull failed.
        """

    @abstractmethod
    def remove(self, reference: str) -> None:
        """Removes an image, so that the next pull needs every byte again."""

    def _run(self, *argv: str | Path) -> str:
        return self._namespace.run(argv, env=self._env)

    def _documented(self, name: str) -> str:
        """The file of this name that docs/clients.md tells users to write; the mirror has to be where it says."""
        text = snippet(_DOCUMENT, name)
        assert self._mirror in text
        return text


class _Daemon(Client):
    """A client that needs a daemon."""

    _process: Process | None = None

    def stop(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None

    def _start(self, argv: Sequence[str | Path], *ready: str | Path) -> None:
        """Starts the daemon and waits until the command `ready` works."""
        self._process = self._namespace.start(self.name, argv, self._directory / "log", self._env)
        while True:
            try:
                self._run(*ready)
                return
            except HarnessError:
                self._process.pause(0.05)


class Dockerd(_Daemon):
    """Docker Engine with `registry-mirrors`, and its graph driver's store."""

    name = "dockerd"
    registries = ("docker.io",)

    @property
    def _socket(self) -> str:
        return f"unix://{self._directory}/sock"

    def start(self) -> None:
        settings = self._directory / "daemon.json"
        settings.write_text(self._documented("/etc/docker/daemon.json"))
        argv: list[str | Path] = ["dockerd", "--config-file", settings, "--host", self._socket]
        for option, name in (("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")):
            argv += [option, self._directory / name]
        argv += ["--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        self._start(argv, *self._docker("version"))

    def pull(self, reference: str) -> str:
        self._run(*self._docker("pull", "--quiet", reference))
        (image,) = json.loads(self._run(*self._docker("image", "inspect", reference)))
        (named,) = image["RepoDigests"]
        return str(named.partition("@")[2])

    def remove(self, reference: str) -> None:
        self._run(*self._docker("image", "rm", "--force", reference))

    def create(self, reference: str) -> dict[str, str]:
        """Creates a container of a pulled image and removes it again; the labels it got from the image."""
        container = self._run(*self._docker("create", "--pull=never", reference)).strip()
        (created,) = json.loads(self._run(*self._docker("inspect", container)))
        self._run(*self._docker("rm", container))
        labels: dict[str, str] = created["Config"]["Labels"]
        return labels

    def _docker(self, *argv: str) -> list[str]:
        return ["docker", "--host", self._socket, *argv]


class Containerd(_Daemon):
    """containerd with `ctr images pull --hosts-dir`: a `docker.io/hosts.toml`, and `_default` for all others."""

    name = "containerd"
    _images = "default"
    """The namespace in which it keeps its images."""

    @property
    def hosts(self) -> Path:
        """The directory of its hosts files."""
        return self._directory / "certs.d"

    def start(self) -> None:
        folder = self._directory
        for name in ("docker.io/hosts.toml", "_default/hosts.toml"):
            self._write(self.hosts / name, self._documented(f"/etc/containerd/certs.d/{name}"))
        argv: list[str | Path] = ["containerd", "--config", self._write(folder / "config.toml", self._settings())]
        for option in ("root", "state", "address"):
            argv += [f"--{option}", folder / option]
        self._start(argv, *self._ctr("version"))

    def _settings(self) -> str:
        """Its own configuration: without the plugin for Kubernetes, which takes half a second to start."""
        return 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'

    def pull(self, reference: str) -> str:
        return self._pull(reference)

    def pull_all_platforms(self, reference: str) -> str:
        """Pulls everything that an index names."""
        return self._pull(reference, "--all-platforms")

    def fetch(self, reference: str) -> str:
        """Fetches all content of any kind, such as an artifact, and unpacks none."""
        self._run(*self._ctr("content", "fetch", "--all-platforms", "--hosts-dir", str(self.hosts), reference))
        return self._digest(reference)

    def remove(self, reference: str) -> None:
        self._run(*self._ctr("images", "rm", "--sync", reference))

    def contents(self) -> set[str]:
        """The digests of everything in its content store."""
        return set(self._run(*self._ctr("content", "ls", "--quiet")).split())

    def _pull(self, reference: str, *more: str) -> str:
        flags = ["--hosts-dir", str(self.hosts), "--snapshotter", "native", *more]
        self._run(*self._ctr("images", "pull", *flags, reference))
        return self._digest(reference)

    def _digest(self, reference: str) -> str:
        _, row = self._run(*self._ctr("images", "ls", f"name=={reference}")).splitlines()
        return row.split()[2]

    def _ctr(self, *argv: str) -> list[str]:
        return ["ctr", "--address", f"{self._directory}/address", "--namespace", self._images, *argv]

    def _write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


class ContainerdDefault(Containerd):
    """containerd with `_default/hosts.toml` alone, for every registry."""

    name = "containerd-default"

    def start(self) -> None:
        super().start()
        shutil.rmtree(self.hosts / "docker.io")


class Kubelet(Containerd):
    """containerd asked by its CRI, as the kubelet of Kubernetes does, with the `config_path` of its configuration."""

    name = "kubelet"
    _images = "k8s.io"

    def pull(self, reference: str) -> str:
        script = ROOT / "tests" / "clients" / "cri.py"
        self._run(Path(sys.prefix) / "tools" / "bin" / "python", script, f"{self._directory}/address", reference)
        return self._digest(reference)

    def _settings(self) -> str:
        theirs = snippet(_DOCUMENT, "/etc/containerd/config.toml").replace("/etc/containerd/certs.d", str(self.hosts))
        assert str(self.hosts) in theirs
        return theirs + '[plugins."io.containerd.grpc.v1.cri".containerd]\n  snapshotter = "native"\n'


class ContainerdSetUp(Containerd):
    """containerd with an empty directory for its hosts files, which `mirrorproxy setup containerd` is to fill."""

    name = "containerd-setup"

    def start(self) -> None:
        super().start()
        shutil.rmtree(self.hosts)
        self.hosts.mkdir()

    def setup(self, *words: str) -> str:
        """Runs the command on that directory; what it printed.

        Raises HarnessError: it failed.
        """
        argv = [sys.executable, "-m", "mirrorproxy", "setup", "containerd", "--directory", str(self.hosts)]
        return self._run(*argv, *words)


class _ContainersClient(Client):
    """A client of the containers libraries, with `registries.conf` and a policy in its home."""

    def start(self) -> None:
        folder = self._directory / ".config" / "containers"
        folder.mkdir(parents=True)
        (folder / "registries.conf.d").mkdir()
        path = folder / "registries.conf.d" / "50-mirrorproxy.conf"
        path.write_text(self._documented(f"/etc/containers/registries.conf.d/{path.name}"))
        (folder / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))


class _StoringClient(_ContainersClient):
    """podman and buildah: the same commands for images, over a store of their own."""

    def remove(self, reference: str) -> None:
        self._run(*self._command("rmi", "--force", reference))

    def _pull(self, reference: str) -> None:
        self._run(*self._command("pull", "--quiet", reference))

    def _command(self, *argv: str) -> list[str]:
        roots = ["--root", f"{self._directory}/root", "--runroot", f"{self._directory}/run"]
        return [self.name, *roots, "--storage-driver", "vfs", *argv]


class Podman(_StoringClient):
    """podman with `registries.conf`."""

    name = "podman"

    def pull(self, reference: str) -> str:
        self._pull(reference)
        (image,) = json.loads(self._run(*self._command("image", "inspect", reference)))
        return str(image["Digest"])


class Buildah(_StoringClient):
    """buildah with `registries.conf`."""

    name = "buildah"

    def pull(self, reference: str) -> str:
        self._pull(reference)
        (image,) = json.loads(self._run(*self._command("images", "--json", reference)))
        return str(image["digest"])


class Skopeo(_ContainersClient):
    """skopeo with `registries.conf`. It keeps no images: a pull is a copy to a folder, checked byte for byte."""

    name = "skopeo"
    keeps_index = False

    def pull(self, reference: str) -> str:
        return self.copy(f"docker://{reference}")

    def pull_all(self, reference: str) -> str:
        """Copies an index with everything it names."""
        return self.copy("--all", f"docker://{reference}")

    def inspect_raw(self, reference: str) -> bytes:
        """The bytes of a manifest: a copy of an index writes it anew without what this skopeo does not know in it."""
        return self._run("skopeo", "inspect", "--raw", f"docker://{reference}").encode()

    def remove(self, reference: str) -> None:
        return

    def copy(self, *source: str) -> str:
        """Copies to a folder, and gives the digest of the manifest that arrived.

        Raises HarnessError: the copy failed, or a file in it is not what its name says.
        """
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            self._run("skopeo", "copy", "--quiet", *source, f"dir:{folder}")
            digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
        for name in digests.keys() - {"version", "manifest.json"}:
            if digests[name] != name.removesuffix(".manifest.json"):
                raise HarnessError(f"skopeo copied another content under the name {name}")
        return "sha256:" + digests["manifest.json"]
