"""Which HTTP proxy an URL is asked through: the upstream's own (`proxy:`), else the environment's.

Done here and not by aiohttp's `trust_env`, which goes to a thread for each request, and sends what `~/.netrc` has for a
host along with it, storage behind a redirect included. The environment is read as Go's net/http does, since that
is what operators of Docker and containerd are used to: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in
either case, with host names (`example.com` and all under it; `.example.com` only those), `host:port`, addresses,
networks (`10.0.0.0/8`) and `*` in `NO_PROXY`; loopback is never asked through a proxy.
"""

import ipaddress
from collections.abc import Mapping

from yarl import URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """What to connect through. `explicit` is the configured proxy; `environ` is read once, here."""

    def __init__(self, explicit: str | None, environ: Mapping[str, str]) -> None:
        self._explicit = _proxy(explicit)
        everything = _variable(environ, "ALL_PROXY")
        self._by_scheme = {
            scheme: _proxy(_variable(environ, f"{scheme.upper()}_PROXY") or everything) for scheme in ("http", "https")
        }
        self._bypass = [entry.strip().lower() for entry in _variable(environ, "NO_PROXY").split(",") if entry.strip()]

    def of(self, url: URL) -> URL | None:
        """The proxy for this URL, None for a direct connection."""
        if self._explicit is not None:
            return self._explicit
        proxy = self._by_scheme.get(url.scheme)
        return None if proxy is None or self._bypassed(url.host or "", url.port) else proxy

    def _bypassed(self, host: str, port: int | None) -> bool:
        host = host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(entry, host, address, port) for entry in self._bypass)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.lower()) or ""


def _proxy(text: str | None) -> URL | None:
    if not text:
        return None
    return URL(text if "://" in text else f"http://{text}")


def _matches(entry: str, host: str, address: Address | None, port: int | None) -> bool:
    """Does an entry of NO_PROXY name this host?"""
    if entry == "*":
        return True
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and _address(entry) is None:
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*")
    return host == entry or (address is None and host.endswith(entry if entry.startswith(".") else f".{entry}"))


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
