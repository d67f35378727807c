"""Which token services may be told a registry's credentials.

A registry names its token service itself, in the realm of its challenge. Whoever could change that answer (a registry
gone bad, somebody on a plain HTTP line) could have our credentials sent anywhere, or us ask hosts of an inner network.
So a realm is trusted where it is

- on the registry's own host, any port, or under the same registrable domain: `auth.docker.io` for
  `registry-1.docker.io`, `gitlab.com` for `registry.gitlab.com`. The registrable domain is the last two labels of a
  name, or the last three where those two are a country's usual second level (`co.uk`, `com.cn`). Addresses and names
  of one label (`localhost`) have none: they must be equal;
- and over TLS when the registry is;
- or its origin is named in the configuration (`token_realms`); there, and only there, may TLS be missing where the
  registry has it.
"""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from mirrorproxy.errors import BadAnswer

_SECOND_LEVELS = frozenset({"ac", "co", "com", "edu", "go", "gov", "mil", "ne", "net", "or", "org"})
_URL_CHARACTERS = re.compile(r"[!-~]{1,4096}")


def check(realm: str, registry: str, token_realms: Collection[str]) -> str:
    """The `realm`, an URL, as it may be asked by the registry at the URL `registry`. Raises `BadAnswer` where not."""
    home, service = urlsplit(registry), _split(realm)
    if service is None:
        raise BadAnswer(f"{home.netloc} asks for a token from something that is not an http or https URL")
    if _origin(service) in {_origin(urlsplit(entry)) for entry in token_realms}:
        return realm
    host, own = service.hostname or "", home.hostname or ""
    if host != own and registrable_domain(host) != registrable_domain(own):
        raise BadAnswer(
            f"{home.netloc} asks for a token from {host}, which is not trusted with it; "
            f"if it is right, add {service.scheme}://{service.netloc} to this upstream's token_realms"
        )
    if home.scheme == "https" and service.scheme != "https":
        raise BadAnswer(f"{home.netloc} asks for a token from {host} without TLS, which would show it to everybody")
    return realm


def registrable_domain(host: str) -> str:
    """The part of a host name that somebody registered; addresses and single labels as they are."""
    host = host.lower().rstrip(".")
    labels = host.split(".")
    if len(labels) < 3 or _is_address(host):
        return host
    wide = len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVELS
    return ".".join(labels[-3 if wide else -2 :])


def _split(realm: str) -> SplitResult | None:
    try:
        parts = urlsplit(realm)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return None
    return parts if usable and _URL_CHARACTERS.fullmatch(realm) else None


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
