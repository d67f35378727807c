"""The text of a `hosts.toml`, and how a file of ours is told from anybody else's. Pure.

Valid for containerd 1.5 and newer, and for Docker 28 and newer with the containerd image store, which reads the same
files. What is written keeps to what all of them know: containerd passes over a whole file, with a line in its log and
no word to whoever pulls, when it knows one thing in it not (the capability `referrers` before 2.2; a file with nothing
but `server` before 1.7.32).
"""

import hashlib
import json
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from mirrorproxy.errors import NameInvalid
from mirrorproxy.names import DOCKER_HUB, registry_name

DEFAULT = "_default"
"""The folder whose file counts for every registry that has no folder of its own."""

_SIGN = "# Made by `mirrorproxy setup containerd`, which also takes it back (--remove). Edited, it is yours: "
_SIGNED = re.compile(re.escape(_SIGN) + r"sha256:([0-9a-f]{64})\n(.*)", re.DOTALL)
_SERVERS = {DOCKER_HUB: "https://registry-1.docker.io"}  # the one registry that answers under another name than its own


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where containerd finds mirrorproxy, and what it does when it does not.

    `url` is what `mirror_url` let through; `ca` a file that containerd reads; `fallback` says whether it goes to the
    registry itself when the mirror fails it. Raises ValueError: they do not go together.
    """

    url: str
    ca: PurePosixPath | None = None
    fallback: bool = True

    def __post_init__(self) -> None:
        if self.ca is not None and self.url.startswith("http:"):  # containerd would then try https first
            raise ValueError(f"a certificate goes with an https:// URL, not with {self.url}")
        if self.ca is not None and not self.ca.is_absolute():
            raise ValueError(f"{self.ca}: write the whole path of the certificate, as containerd finds it")


def mirror_url(text: str) -> str:
    """The URL of a mirror as containerd wants it: `http://127.0.0.1:5000`.

    Raises ValueError: it has no http or https, no host, a wrong port, or more than that. (A path would have containerd
    ask other URLs by its version.)
    """
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is no URL of a mirror: write http://host:port or https://host:port")
    try:
        registry_name(parts.netloc)
    except NameInvalid:
        raise ValueError(f"{parts.netloc!r} is neither a host nor host:port") from None
    if parts.port == 0:  # numbers that are no ports at all raise ValueError here
        raise ValueError("port 0 is none that could be dialled")
    return f"{parts.scheme}://{parts.netloc}"


def folder_of(registry: str) -> str:
    """The folder of a registry's `hosts.toml`: its name, `host_port_` where it has a port, or `_default` itself.

    Raises NameInvalid: it is no name of a registry.
    """
    if registry == DEFAULT:
        return DEFAULT
    host, colon, port = registry_name(registry).rpartition(":")
    return f"{host}_{port}_" if colon else registry_name(registry)


def hosts_toml(registry: str, mirror: Mirror) -> str:
    """The signed file for a registry, or for `_default`. The text is the same for the same words.

    Raises NameInvalid: `registry` is no name of a registry.
    """
    lines = []
    if not mirror.fallback:  # the mirror alone, in the only form that every version takes
        lines += [f"server = {_quoted(mirror.url)}"]
        lines += [f"ca = {_quoted(str(mirror.ca))}"] if mirror.ca else []
    elif registry != DEFAULT:
        name = registry_name(registry)
        lines += [f"server = {_quoted(_SERVERS.get(name, f'https://{name}'))}"]
    lines += [""] if lines else []
    lines += [f"[host.{_quoted(mirror.url)}]", '  capabilities = ["pull", "resolve"]']
    lines += [f"  ca = {_quoted(str(mirror.ca))}"] if mirror.ca else []
    lines += [f'  dial_timeout = "{_dial_timeout(mirror.url)}"']
    return _signed("".join(f"{line}\n" for line in lines))


def is_ours(text: str) -> bool:
    """Whether `hosts_toml` made this text, in this version or an earlier one, and nobody changed it since."""
    found = _SIGNED.fullmatch(text)
    return found is not None and _hash(found[2]) == found[1]


def is_edited(text: str) -> bool:
    """Whether `hosts_toml` made this text, and somebody changed it since."""
    return _SIGNED.fullmatch(text) is not None and not is_ours(text)


def _signed(text: str) -> str:
    return f"{_SIGN}sha256:{_hash(text)}\n{text}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dial_timeout(url: str) -> str:
    """How long every pull waits for a mirror that is away: on the same machine a refusal comes at once anyway.

    Known to containerd from 2.0.7 and 2.1.0; older ones pass over it, and wait 30 s.
    """
    host = urlsplit(url).hostname or ""
    try:
        near = ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    return "200ms" if near else "2s"


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False)
