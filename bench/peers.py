"""The servers that are compared: each started in a folder of its own with its access log on, stopped at the end.

Those that can are started twice, the second time with TLS: in clear and over TLS they are measured by themselves.
"""

import contextlib
import os
import platform
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trustme
import yaml

from bench import Failure
from bench.origin import Image, Origin

_READY = 20.0
_STOP = 15.0
_PEERS = Path(__file__).parent.parent / ".venv" / "peers" / "bin"
"""Where `make bench` installs what bench/peers.txt names."""
_TOOLS = {
    "docker-registry": "apt-get install docker-registry",
    "drayage": "make .venv/.peers",
    "nginx": "apt-get install nginx-light",
    "wrk": "apt-get install wrk",
}
"""Programs that are needed beside mirrorproxy, and how to have them."""


SECURE = ("mirrorproxy", "docker-registry", "nginx")
"""Who is measured over TLS too."""


@dataclass(frozen=True)
class Server:
    """What answers on a port: `pid` is the root of its processes, `folder` has all that it keeps and logs.

    `secure` is the same program with TLS, where it was started; there, `trust` is what to connect with.
    """

    name: str
    host: str
    port: int
    pid: int
    folder: Path
    trust: ssl.SSLContext | None = None
    secure: "Server | None" = None

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"{'http' if self.trust is None else 'https'}://{self.host}:{self.port}"

    def empty_logs(self) -> None:
        """Forget what was logged: at 10 MB/s (nginx), writing it back to disk would be in the next one's figure."""
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)


def require_tools() -> None:
    """Raises Failure, saying how to install it, if a peer or the load generator is not installed."""
    if missing := [tool for tool in _TOOLS if not shutil.which(tool, path=_path())]:
        raise Failure(f"not installed: {', '.join(missing)} ({'; '.join(_TOOLS[tool] for tool in missing)})")


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
        _output("drayage", "--version"),
        f"nginx {nginx}",
        f"wrk {wrk}",
    ]
    return ", ".join(parts)


@contextlib.contextmanager
def start(
    name: str, folder: Path, origin: Origin, image: Image, certificate: "Certificate", workers: str
) -> Iterator[Server]:
    """The server of that name, ready within the context, and the same with TLS. Raises Failure if it does not start.

    `workers` is mirrorproxy's `server.workers`.
    """
    with contextlib.ExitStack() as stack:

        def begin(place: Path, tls: Certificate | None) -> Server:
            place.mkdir()
            match name:
                case "mirrorproxy":
                    running = mirrorproxy(place, origin, tls, workers)
                case "docker-registry":
                    running = docker_registry(place, origin, tls)
                case "nginx":
                    running = nginx(place, image, tls)
                case "drayage":
                    running = drayage(place, origin)
                case _:
                    raise Failure(f"there is no server {name!r}")
            return stack.enter_context(running)

        server = begin(folder, None)
        if name in SECURE:
            secure = begin(folder / "secure", certificate)
            server = replace(server, secure=replace(secure, name=name))
        yield server


class Certificate:
    """One for 127.0.0.1 that all servers show, as files in `folder`, and `trust` in who issued it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.RSA)
        issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        issued.private_key_pem.write_to_path(self.key)
        for pem in issued.cert_chain_pems:
            pem.write_to_path(self.cert, append=True)
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)


def mirrorproxy(
    folder: Path, origin: Origin, tls: Certificate | None, workers: str
) -> contextlib.AbstractContextManager[Server]:
    """The project itself with its default configuration, apart from its workers and where it listens, keeps, asks."""
    port = _free_port()
    config: dict[str, Any] = {
        "server": {"listen": [f"127.0.0.1:{port}"], "workers": workers},
        "cache": {"directory": str(folder / "cache")},
        "upstreams": {"docker.io": {"endpoints": [origin.url], "default": True}},
    }
    if tls is not None:
        config["server"]["tls"] = {"cert": str(tls.cert), "key": str(tls.key)}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mirrorproxy", "serve", "--config", str(file)]
    return _running("mirrorproxy", command, folder, port, "/readyz", tls)


def docker_registry(folder: Path, origin: Origin, tls: Certificate | None) -> contextlib.AbstractContextManager[Server]:
    """CNCF distribution as Debian packages it, as a pull-through cache; its access log is on unless turned off."""
    port = _free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "cache")}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "proxy": {"remoteurl": origin.url},
    }
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.cert), "key": str(tls.key)}
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config))
    return _running("docker-registry", ["docker-registry", "serve", str(file)], folder, port, "/v2/", tls)


def drayage(folder: Path, origin: Origin) -> contextlib.AbstractContextManager[Server]:
    """A cache written in Rust, with its default configuration; it has no access log, and no TLS by itself."""
    port = _free_port()
    cache = folder / "cache"
    cache.mkdir()
    file = folder / "config.toml"
    file.write_text(
        f'listen = "127.0.0.1:{port}"\ncache_dir = "{cache}"\n[upstreams.docker_io]\nregistry = "{origin.url}"\n'
    )
    return _running("drayage", ["drayage", "serve", "--config", str(file)], folder, port, "/readyz", None)


def nginx(folder: Path, image: Image, tls: Certificate | None) -> contextlib.AbstractContextManager[Server]:
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
    values["@SSL@"] = "" if tls is None else " ssl"
    values["@CERTIFICATE@"] = "" if tls is None else f"ssl_certificate {tls.cert}; ssl_certificate_key {tls.key};"
    for name, value in values.items():
        config = config.replace(name, value)
    file = folder / "nginx.conf"
    file.write_text(config)
    return _running("nginx", ["nginx", "-p", str(folder), "-c", str(file)], folder, port, image.by_tag, tls)


@contextlib.contextmanager
def _running(
    name: str, command: list[str], folder: Path, port: int, ready: str, tls: "Certificate | None"
) -> Iterator[Server]:
    """The process, from its first 200 on `ready` until it has ended. Raises Failure if it does not get there."""
    log = folder / "output.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=_environment())
    try:
        server = Server(name, "127.0.0.1", port, process.pid, folder, None if tls is None else tls.trust)
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
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if server.trust is not None:
        handlers.append(urllib.request.HTTPSHandler(context=server.trust))
    opener = urllib.request.build_opener(*handlers)
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
    """With where `make bench` installs peers, and where Debian has nginx, at which no plain user looks."""
    return f"{_PEERS}:{os.environ.get('PATH', os.defpath)}:/usr/sbin"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _output(*command: str) -> str:
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment())
    return run.stdout.strip()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
