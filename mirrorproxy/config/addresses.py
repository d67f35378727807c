"""Addresses in a configuration: where to listen, registries, URLs. Each is matched whole, or refused with advice."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from mirrorproxy.config.problems import shown

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_PORT = r"(?::([0-9]{1,5}))?"
_HOST_NAME = re.compile(_NAME)
_LISTEN = re.compile(r"(\[[^\]]+\]|[^:]+):([0-9]{1,5})")
_REGISTRY = re.compile(rf"({_NAME}|\[[0-9a-f:.]+\]){_PORT}")
# Host names of containers have underscores now and then, so an endpoint's may.
_HOST_WITH_UNDERSCORES = _NAME.replace("[a-z0-9", "[a-z0-9_")
_ORIGIN = re.compile(rf"https?://({_HOST_WITH_UNDERSCORES}|\[[0-9a-f:.]+\]){_PORT}")
_PATH = re.compile(r"(?:/[A-Za-z0-9_.~+-]+)*/?")
_LONGEST_SOCKET_PATH = 107  # sun_path has 108 bytes, one of them for the end


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to accept connections: `host` and `port` (0: any free one), or the `path` of a unix socket.

    `str()` writes it as the configuration has it.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "ListenAddress":
        """Read `127.0.0.1:5000`, `[::1]:5000`, `localhost:5000` or `unix:/run/mirrorproxy.sock`. Raises ValueError."""
        if text.startswith("unix:"):
            return cls(path=_socket_path(text.removeprefix("unix:")))
        match = _LISTEN.fullmatch(text)
        if not match:
            raise ValueError(f"{shown(text)} is not an address to listen on; {_listen_advice(text)}")
        if int(match[2]) > 65535:
            raise ValueError(f"{shown(text)}: a port lies between 0 and 65535")
        return cls(_listen_host(text, match[1]), int(match[2]))

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can connect: 127.0.0.0/8, ::1, localhost, a unix socket."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(text: str) -> Path:
    if not text:
        raise ValueError("'unix:' needs a path, as in unix:/run/mirrorproxy.sock")
    if (length := len(text.encode())) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a unix socket has at most {_LONGEST_SOCKET_PATH} bytes, this one has {length}")
    return Path(text)


def _listen_host(text: str, host: str) -> str:
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _ends_in_number(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(f"{shown(text)}: {shown(host)} is not an IP address") from None
    if not _HOST_NAME.fullmatch(host.lower()):
        raise ValueError(f"{shown(text)} is not an address to listen on; {_listen_advice(text)}")
    return host.lower()


def _listen_advice(text: str) -> str:
    port = text.lstrip("*:")
    if re.fullmatch(r"[0-9]{1,5}", port):
        return f"write 127.0.0.1:{port} for this machine alone, or 0.0.0.0:{port} for all of its addresses"
    return "write host:port, [IPv6]:port or unix:/path"


def parse_registry(text: str) -> str:
    """Read a registry's name, `host` or `host:port` as in an image's name, in lower case. Raises ValueError.

    As in an image's name, a host without a dot or a port (other than localhost) could as well be a repository.
    Source: distribution/reference, the grammar of `domain`.
    """
    name = text.lower()
    if "/" in name:
        raise ValueError(f"{shown(text)} is not a registry's name; write the host alone, its URL goes into endpoints")
    match = _REGISTRY.fullmatch(name)
    if not match or len(name) > 255 or not _is_host(match[1]) or not _is_port(match[2]):
        such_as = "ghcr.io or registry.example.com:5000"
        raise ValueError(f"{shown(text)} is not a registry's name; write a host, or host:port, such as {such_as}")
    if not ("." in name or ":" in name or name == "localhost"):
        raise ValueError(f"{shown(text)} could be a repository as well; a registry's name has a dot or a port in it")
    return name


def parse_endpoint(text: str) -> str:
    """Read the http(s) URL of a registry's endpoint, without a slash at the end. Raises ValueError."""
    origin, path = _split_url(
        text, "the URL of an endpoint", "https://registry.example.com or http://cache:5000/docker.io"
    )
    if any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{shown(text)}: a path may not have . or .. in it")
    if path.endswith("/v2"):
        raise ValueError(f"{shown(text)}: leave out /v2, it is added to the URL")
    return origin + path


def parse_proxy(text: str) -> str:
    """Read the URL of an HTTP proxy, `http://egress:3128`. Raises ValueError."""
    if "@" in text:
        raise ValueError("has a name or password in it; leave proxy out, and set HTTPS_PROXY in the environment")
    origin, path = _split_url(text, "the URL of a proxy", "http://egress.example.com:3128")
    if path:
        raise ValueError(f"{shown(text)}: the URL of a proxy has no path")
    return origin


def parse_realm(text: str) -> str:
    """Read a token service to trust, with or without `https://`, as an origin. Raises ValueError."""
    url = text if "://" in text else f"https://{text}"
    origin, path = _split_url(url, "a token service's origin", "auth.example.com or https://auth.example.com:8443")
    if path:
        raise ValueError(f"{shown(text)}: leave out the path; a token service is trusted by its host")
    return origin


def _split_url(text: str, what: str, such_as: str) -> tuple[str, str]:
    """Origin (in lower case) and path of `text`. One with an @ or a query is not shown: it may hold a secret."""
    if "@" in text:
        raise ValueError("has a name or password in it; use credentials: with a password_file instead")
    if "?" in text or "#" in text:
        raise ValueError(f"is not {what}; leave out the query (?...) and the fragment (#...)")
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    origin = f"{scheme}://{authority}".lower()
    match = _ORIGIN.fullmatch(origin)
    if not match or not _is_host(match[1]) or not _is_port(match[2]) or not _PATH.fullmatch(slash + path):
        missing = "" if separator else " (http:// or https:// is missing)"
        raise ValueError(f"{shown(text)} is not {what}{missing}; write {such_as}")
    return origin, (slash + path).rstrip("/")


def _is_host(host: str) -> bool:
    """Whether `host`, which matched the grammar, is a name or a valid IP address, and of a length that DNS allows."""
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif _ends_in_number(host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return len(host) <= 253


def _ends_in_number(host: str) -> bool:
    """Whether `host` can only be an IPv4 address: no name ends so, and what resolvers make of `127.1` differs."""
    return re.fullmatch(r"[0-9]+", host.rpartition(".")[2]) is not None


def _is_port(port: str | None) -> bool:
    return port is None or 0 < int(port) <= 65535
