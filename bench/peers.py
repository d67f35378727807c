"""The servers that are compared: each started in a folder of its own with its access log on, stopped at the end."""

import contextlib
import os
import platform
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from bench import Failure
from bench.origin import Image, Origin

_READY = 20.0
_STOP = 15.0
_TOOLS = {"docker-registry": "docker-registry", "nginx": "nginx-light", "wrk": "wrk"}
"""Programs that are needed beside mirrorproxy, and the Debian packages that have them."""


@dataclass(frozen=True)
class Server:
    """What answers on a port: `pid` is the root of its processes, `folder` has all that it keeps and logs."""

    name: str
    host: str
    port: int
    pid: int
    folder: Path

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    def empty_logs(self) -> None:
        """Forget what was logged: at 10 MB/s (nginx), writing it back to disk would be in the next one's figure."""
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)


def require_tools() -> None:
    """Raises Failure, naming the packages, if a peer or the load generator is not installed."""
    if missing := [tool for tool in _TOOLS if not shutil.which(tool, path=_path())]:
        packages = " ".join(_TOOLS[tool] for tool in missing)
        raise Failure(f"not installed: {', '.join(missing)} (apt-get install {packages})")


def versions() -> str:
    """The machine and everything that has a part in the result, in one line."""
    registry = _output("docker-registry", "--version").split()[-1]
    nginx = _output("nginx", "-v").rpartition("/")[2]
    wrk = _output("wrk", "--version").split()[1].removeprefix("debian/")
    parts = [
        f"{os.cpu_count()} cores",
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        f"mirrorproxy {version('mirrorproxy')}",
        f"aiohttp {version('aiohttp')}",
        f"docker-registry {registry}",
        f"nginx {nginx}",
        f"wrk {wrk}",
    ]
    return ", ".join(parts)


def start(name: str, folder: Path, origin: Origin, image: Image) -> contextlib.AbstractContextManager[Server]:
    """The server of that name, ready within the context. Raises Failure if it does not start."""
    match name:
        case "mirrorproxy":
            return mirrorproxy(folder, origin)
        case "docker-registry":
            return docker_registry(folder, origin)
        case "nginx":
            return nginx(folder, image)
    raise Failure(f"there is no server {name!r}")


@contextlib.contextmanager
def mirrorproxy(folder: Path, origin: Origin) -> Iterator[Server]:
    """The project itself with its default configuration, apart from where it listens, keeps and asks."""
    port = _free_port()
    config = {
        "server": {"listen": [f"127.0.0.1:{port}"]},
        "cache": {"directory": str(folder / "cache")},
        "upstreams": {"docker.io": {"endpoints": [origin.url], "default": True}},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mirrorproxy", "serve", "--config", str(file)]
    with _running("mirrorproxy", command, folder, port, "/readyz") as server:
        yield server


@contextlib.contextmanager
def docker_registry(folder: Path, origin: Origin) -> Iterator[Server]:
    """CNCF distribution as Debian packages it, as a pull-through cache; its access log is on unless turned off."""
    port = _free_port()
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "cache")}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "proxy": {"remoteurl": origin.url},
    }
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config))
    with _running("docker-registry", ["docker-registry", "serve", str(file)], folder, port, "/v2/") as server:
        yield server


@contextlib.contextmanager
def nginx(folder: Path, image: Image) -> Iterator[Server]:
    """The image as files under the registry's paths, served by nginx with bench/nginx.conf."""
    port = _free_port()
    files: dict[str, Iterable[bytes | memoryview]] = {
        path: [image.manifest] for path in (image.by_tag, image.by_digest)
    }
    files |= {layer.path: layer.pieces(0, layer.size, 1 << 20) for layer in image.layers}
    for path, pieces in files.items():
        file = folder / "files" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            out.writelines(pieces)
    config = Path(__file__).with_name("nginx.conf").read_text()
    values = {"@USER@": pwd.getpwuid(os.getuid()).pw_name, "@FOLDER@": str(folder), "@PORT@": str(port)}
    for name, value in values.items():
        config = config.replace(name, value)
    file = folder / "nginx.conf"
    file.write_text(config)
    with _running("nginx", ["nginx", "-p", str(folder), "-c", str(file)], folder, port, image.by_tag) as server:
        yield server


@contextlib.contextmanager
def _running(name: str, command: list[str], folder: Path, port: int, ready: str) -> Iterator[Server]:
    """The process, from its first 200 on `ready` until it has ended. Raises Failure if it does not get there."""
    log = folder / "output.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=_environment())
    try:
        server = Server(name, "127.0.0.1", port, process.pid, folder)
        _wait_ready(server, ready, process, log)
        yield server
        if process.poll() is not None:
            raise Failure(f"{name} ended during the run with {process.returncode}:\n{_tail(log)}")
    finally:
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(server: Server, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failure(f"{server.name} did not start, it ended with {process.returncode}:\n{_tail(log)}")
        with contextlib.suppress(OSError), opener.open(server.url + path, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)  # noqa: TID251 - no event loop here
    raise Failure(f"{server.name} did not answer {path} with 200 within {_READY:.0f} s:\n{_tail(log)}")


def _environment() -> dict[str, str]:
    """Ours without what would change a server's settings or send its requests elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept = {name: value for name, value in kept.items() if not name.startswith(("MIRRORPROXY_", "REGISTRY_"))}
    return kept | {"PATH": _path()}


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin"  # where Debian has nginx, and where no plain user looks


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _output(*command: str) -> str:
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment())
    return run.stdout.strip()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
