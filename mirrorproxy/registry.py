"""The one contract: what a registry to pull from can do.

Everything is a `Registry` or a wrapper of one: an upstream host, the endpoints of a registry tried in order, the
cache, the policy, the choice of the upstream by name, and the registry in memory of the tests. `web` knows this and
nothing else.

Errors, of every method: `NotFound` (its subclass says what) only where the upstream, healthy, said so; `Denied`; any
`UpstreamError`; `Overloaded`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mirrorproxy.errors import UpstreamError
from mirrorproxy.manifests import Contents
from mirrorproxy.names import Descriptor, Digest, Reference, Repository


class Kind(StrEnum):
    """What is asked for; the label `kind` of the metrics."""

    BLOB = "blob"
    MANIFEST = "manifest"
    TAGS = "tags"
    REFERRERS = "referrers"


class Result(StrEnum):
    """What the cache did for a request; the label `result` of the metrics."""

    HIT = "hit"  # from the cache, nothing asked upstream
    MISS = "miss"  # from upstream
    COALESCED = "coalesced"  # from upstream, by a transfer or check that another request began
    REVALIDATED = "revalidated"  # from the cache, upstream says that it still holds
    STALE = "stale"  # from the cache, upstream could not be asked
    NEGATIVE = "negative"  # "not there", from memory
    BYPASS = "bypass"  # from upstream, and not kept
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer came about. `age`: seconds since upstream last vouched for it; `stored`: it is (being) kept.

    `endpoint` is the name of the one that gave it just now, None where it did not come from there.
    """

    result: Result
    age: float = 0.0
    stored: bool = False
    endpoint: str | None = None


MISS = Outcome(Result.MISS)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference points at now."""

    descriptor: Descriptor
    outcome: Outcome = MISS


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it came, byte for byte; the digest of `body` is the descriptor's."""

    descriptor: Descriptor
    body: bytes
    contents: Contents
    outcome: Outcome = MISS


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of tags or referrers as upstream wrote it.

    `next_query` is the query of the next page without `ns`, still encoded, or None on the last one;
    `filters` the value of `OCI-Filters-Applied`.
    """

    body: bytes
    media_type: str
    next_query: str | None = None
    filters: str | None = None
    outcome: Outcome = MISS


class Blob(Protocol):
    """An open blob. Close it, whatever happens: `async with contextlib.aclosing(blob)`.

    `size` is its bytes in all, or None where neither upstream nor a manifest said. `first` is the offset of the first
    byte that can be read: 0, or the start that was asked for where the upstream kept to it.
    """

    @property
    def digest(self) -> Digest: ...
    @property
    def size(self) -> int | None: ...
    @property
    def first(self) -> int: ...
    @property
    def outcome(self) -> Outcome: ...

    def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end` (None: to the end of the blob), as they come.

        Raises an `UpstreamError` where they end early or their digest is wrong.
        """
        ...

    async def aclose(self) -> None:
        """Let go of it. A transfer that serves others too goes on."""
        ...


class Transfer(Blob, Protocol):
    """A blob as it comes from an upstream: its bytes can be read once, from `first` on."""

    def blame(self, error: UpstreamError) -> None:
        """Say that what came was wrong, so that another endpoint is asked next time."""
        ...


class Source(Protocol):
    """Where a fill gets its bytes from: an upstream, or several."""

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Transfer:
        """As `Registry.blob`."""
        ...


class FileBlob(Blob, Protocol):
    """A blob whose bytes are, or will be, in a file: the sender may read them by itself.

    A running fill and committed content look the same: the file grows until it is whole.
    """

    @property
    def fd(self) -> int:
        """A descriptor to `pread` from; open until `aclose`."""
        ...

    def ready(self, start: int) -> int:
        """Up to where the bytes from `start` on may be sent now, `start` itself when none may. Never blocks."""
        ...

    async def wait(self, start: int) -> None:
        """Return when `ready(start)` would be more than `start`, or `start` is the end of the blob.

        Raises an `UpstreamError` when these bytes will never come, `CacheFailed` when the file can serve no more and
        the rest must be read by `chunks`.
        """
        ...


class Registry(Protocol):
    """A registry to pull from. Errors: see the module's page."""

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """What a HEAD of a manifest says. `fresh`: ask upstream about a tag now, however young the answer kept.

        Raises `ManifestUnknown` or `NameUnknown`.
        """
        ...

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """The manifest. Its digest is right: by the reference where that is a digest. Raises as `resolve`."""
        ...

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """What a HEAD of a blob says; never begins a transfer. Raises `BlobUnknown` or `NameUnknown`."""
        ...

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """Open a blob; returns as soon as the repository is known to have it.

        `start` and `end` (exclusive; None: all the rest): the part that is wanted first. An upstream asks for no more
        than that; a cache may fetch all. Raises `BlobUnknown` or `NameUnknown`.
        """
        ...

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """A page of tag names. Raises `NameUnknown`.

        `query` is `n=..&last=..` as the client encoded it, without `ns`.
        """
        ...

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """A page of the manifests whose subject is `digest`. Raises `NotFound` where upstream has no such API."""
        ...


class Origin(Registry, Protocol):
    """A registry that is asked over the network: its blobs come as transfers."""

    def expect(self, blobs: int) -> None:
        """So many blobs will be asked for in a moment: what takes time, and asks for none yet, may begin now."""
        ...

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Transfer:
        """See `Registry.blob`."""
        ...
