"""The words of the registry protocol, each parsed once and right ever after.

A value of one of these types fully matched its grammar, so it may become a path, a key or a part of an URL without
another look. Nothing that a client sends does so before.
Grammar: OCI distribution specification, "Pulling manifests"; image specification, "Digests"; distribution/reference.
"""

import hashlib
import re
from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from mirrorproxy.errors import DigestInvalid, NameInvalid, TagInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_DIGITS = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile("|".join(f"{algorithm}:[0-9a-f]{{{digits}}}" for algorithm, digits in _HEX_DIGITS.items()))
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_NAME_LIMIT = 255  # bytes, the registry not counted (RepositoryNameTotalLengthMax of distribution/reference 0.6)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?")

DOCKER_HUB = "docker.io"
_ALIASES = {"index.docker.io": DOCKER_HUB, "registry-1.docker.io": DOCKER_HUB}


class Digest(str):
    """`sha256:<hex>` or `sha512:<hex>`. Raises `DigestInvalid`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _DIGEST.fullmatch(text):
            raise DigestInvalid(
                "not a digest: write sha256: and 64, or sha512: and 128, lower-case hex digits",
                detail={"digest": text[:160]},
            )
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self[:6]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self[7:]

    def hasher(self) -> "_Hash":
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def of_same_algorithm(self, data: bytes) -> "Digest":
        """The digest of `data` by the algorithm of this one."""
        return Digest(f"{self.algorithm}:{hashlib.new(self.algorithm, data).hexdigest()}")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 digest of `data`."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")


class Tag(str):
    """A tag, at most 128 characters. Raises `TagInvalid`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _TAG.fullmatch(text):
            raise TagInvalid("not a tag: nothing can have this name", detail={"tag": text[:160]})
        return super().__new__(cls, text)


Reference = Tag | Digest


def reference(text: str) -> Reference:
    """A digest when there is a colon in it (no tag has one), else a tag. Raises `DigestInvalid` or `TagInvalid`."""
    return Digest(text) if ":" in text else Tag(text)


def registry_name(text: str) -> str:
    """The canonical name of a registry: lower case, Docker Hub's aliases made one. Raises `NameInvalid`.

    `text` is `host`, `host:port` or `[v6]:port`; default ports are kept, since they are part of an image's name.
    """
    name = text.lower()
    if not text.isascii() or not _REGISTRY.fullmatch(name) or len(name) > _NAME_LIMIT:  # lower() makes a k of U+212A
        raise NameInvalid("not a registry: write host or host:port", detail={"registry": text[:160]})
    return _ALIASES.get(name, name)


class Repository(NamedTuple):
    """A repository of a registry: `Repository("docker.io", "library/alpine")`. Made by `repository()` alone."""

    registry: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


def repository(registry: str, name: str) -> Repository:
    """The repository `name` of the registry with the canonical name `registry`. Raises `NameInvalid`.

    Docker Hub's single-word names get their `library/` here, and nobody else's do.
    """
    full = f"library/{name}" if registry == DOCKER_HUB and "/" not in name else name
    if not _NAME.fullmatch(name) or len(full) > _NAME_LIMIT:
        raise NameInvalid(
            "not a repository name: lower-case words joined by one of . _ __ - and separated by /, 255 bytes at most",
            detail={"name": name[:160]},
        )
    return Repository(registry, full)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a piece of content is: media type, digest, size in bytes (image specification, "Descriptor").

    `platform`, as in `linux/arm64/v8`, is what an index says of a manifest; it is no part of what the content is.
    """

    media_type: str
    digest: Digest
    size: int
    platform: str | None = field(default=None, compare=False)


def image(text: str, *, default: str = DOCKER_HUB, known: Container[str] = ()) -> tuple[Repository, Reference]:
    """An image as people write it: `nginx`, `ghcr.io/team/app:1`, `quay.io/a/b@sha256:...`. Raises an `Invalid`.

    As docker reads it: a first part with a dot or a port in it, or `localhost`, is a registry, and so is one that is
    `known`; without one it is the `default` registry's; without a tag or digest it is `latest`.
    """
    name, at, digest = text.partition("@")
    above, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = above + slash + last
    first, slash, rest = name.partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost" or first in known)
    registry, name = (first, rest) if is_registry else (default, name)
    found: Reference = Digest(digest) if at else Tag(tag if colon else "latest")
    return repository(registry_name(registry), name), found
