"""A registry in memory: complete, and slow, broken or endless where a test says so.

Its blobs are files (as the cache's are) or streams (as an upstream's are), and may grow while they are read.
"""

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, quote

from mirrorproxy import manifests
from mirrorproxy.errors import BlobUnknown, ManifestUnknown, MirrorproxyError, NameUnknown
from mirrorproxy.names import Descriptor, Digest, Reference, Repository, Tag
from mirrorproxy.registry import Blob, Listing, Manifest, Outcome, Resolved, Result

HIT = Outcome(Result.HIT)
_CHUNK = 100_000


class Growth:
    """The bytes of a blob as they come: `available` of them are there; then it ends, whole or with an error."""

    def __init__(
        self, data: bytes, *, available: int, size_known: bool, in_memory: bool, digest: Digest | None
    ) -> None:
        self.data = data
        self.digest = digest or Digest.of(data)
        self.size = len(data) if size_known else None
        self.available = 0
        self.ended = False
        self.error: MirrorproxyError | None = None
        self.fd = os.memfd_create("blob") if in_memory else _nameless_file()
        self._waiters: list[asyncio.Future[None]] = []
        self.extend(available)

    def __del__(self) -> None:
        os.close(self.fd)

    def extend(self, to: int) -> None:
        """Let the bytes up to `to` be there."""
        os.pwrite(self.fd, self.data[self.available : to], self.available)
        self.available = to
        self._wake()

    def finish(self) -> None:
        """Let all be there."""
        self.extend(len(self.data))
        self.ended = True
        self._wake()

    def fail(self, error: MirrorproxyError) -> None:
        """Let the rest never come."""
        self.error = error
        self._wake()

    async def wait(self, start: int) -> None:
        """As `FileBlob.wait`."""
        while self.available <= start and not self.ended:
            if self.error is not None:
                raise self.error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class StreamBlob:
    """A blob that can only be read chunk by chunk, and has no other bytes than those from `first` to `last`."""

    def __init__(
        self, growth: Growth, outcome: Outcome, opened: Counter[str], first: int = 0, last: int | None = None
    ) -> None:
        self._last = last
        self.digest, self.size, self.outcome, self.first = growth.digest, growth.size, outcome, first
        self._growth = growth
        self._opened = opened
        self._closed = False
        opened["open"] += 1

    async def chunks(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """The bytes, as they come."""
        self._opened["chunks"] += 1
        growth = self._growth
        assert start >= self.first, "these bytes were not asked for"
        assert self._last is None or (end is not None and end <= self._last), "so many bytes were not asked for"
        while end is None or start < end:
            stop = min(growth.available, start + _CHUNK, growth.available if end is None else end)
            if stop > start:
                yield growth.data[start:stop]
                start = stop
            elif growth.ended:
                return
            else:
                await growth.wait(start)

    async def aclose(self) -> None:
        """Let go of it; once more does nothing."""
        if not self._closed:
            self._closed = True
            self._opened["open"] -= 1


class MemoryFileBlob(StreamBlob):
    """A blob in a file."""

    def __init__(self, growth: Growth, outcome: Outcome, opened: Counter[str]) -> None:
        super().__init__(growth, outcome, opened)
        self.fd = os.dup(growth.fd)

    def ready(self, start: int) -> int:
        """Up to where there are bytes."""
        return max(start, self._growth.available)

    async def wait(self, start: int) -> None:
        """Wait for more."""
        await self._growth.wait(start)

    async def aclose(self) -> None:
        """Close the descriptor."""
        if not self._closed:
            os.close(self.fd)
        await super().aclose()


@dataclass
class MemoryRegistry:
    """Implements `Registry`. What was asked is in `asked`, one line a call.

    `blobs_are`: a `file` on disk, a file in `memory` (whose file system cannot say whether reading it would wait), or
    a `stream`.
    """

    blobs_are: Literal["file", "memory", "stream"] = "file"
    outcome: Outcome = HIT
    asked: list[str] = field(default_factory=list)
    opened: Counter[str] = field(default_factory=Counter)
    _manifests: dict[tuple[Repository, Digest], Manifest] = field(default_factory=dict)
    _tags: dict[tuple[Repository, Tag], Digest] = field(default_factory=dict)
    _blobs: dict[tuple[Repository, Digest], Growth] = field(default_factory=dict)
    _failures: dict[str, BaseException] = field(default_factory=dict)
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def put_manifest(self, repository: Repository, body: bytes, media_type: str, *tags: str) -> Digest:
        """Put in a manifest, with tags or without."""
        digest = Digest.of(body)
        contents = manifests.parse(body, media_type)
        descriptor = Descriptor(media_type, digest, len(body))
        self._manifests[repository, digest] = Manifest(descriptor, body, contents)
        for tag in tags:
            self.tag(repository, tag, digest)
        return digest

    def tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Let a tag name a manifest."""
        self._tags[repository, Tag(tag)] = digest

    def put_blob(self, repository: Repository, data: bytes) -> Digest:
        """Put in a whole blob."""
        growth = self.put_growing(repository, data, available=len(data))
        growth.finish()
        return growth.digest

    def put_growing(
        self,
        repository: Repository,
        data: bytes,
        *,
        available: int = 0,
        size_known: bool = True,
        digest: Digest | None = None,
    ) -> Growth:
        """Put in a blob that comes as the test says; under a `digest` that is not its own for a bad one."""
        in_memory = self.blobs_are == "memory"
        growth = Growth(data, available=available, size_known=size_known, in_memory=in_memory, digest=digest)
        self._blobs[repository, growth.digest] = growth
        return growth

    def fail(self, method: str, error: BaseException | None) -> None:
        """Let every call of `method` raise `error`; None: no longer."""
        if error is None:
            self._failures.pop(method, None)
        else:
            self._failures[method] = error

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of `method` wait until the event that is returned is set."""
        return self._gates.setdefault(method, asyncio.Event())

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """As `Registry.resolve`."""
        await self._asked("resolve", f"{repository} {reference}{' fresh' if fresh else ''}")
        return Resolved(self._manifest(repository, reference).descriptor, self.outcome)

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """As `Registry.manifest`."""
        await self._asked("manifest", f"{repository} {reference}{' fresh' if fresh else ''}")
        found = self._manifest(repository, reference)
        return Manifest(found.descriptor, found.body, found.contents, self.outcome)

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """As `Registry.stat`."""
        await self._asked("stat", f"{repository} {digest}")
        growth = self._blob(repository, digest)
        return Resolved(Descriptor("application/octet-stream", digest, len(growth.data)), self.outcome)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """As `Registry.blob`."""
        await self._asked("blob", f"{repository} {digest} {start}-{'' if end is None else end}")
        growth = self._blob(repository, digest)
        if self.blobs_are == "stream":
            first, last = (start, end) if start < len(growth.data) else (0, None)
            return StreamBlob(growth, self.outcome, self.opened, first, last)
        return MemoryFileBlob(growth, self.outcome, self.opened)

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """As `Registry.tags`."""
        await self._asked("tags", f"{repository} {query}")
        self._known(repository)
        names = sorted(str(tag) for owner, tag in self._tags if owner == repository)
        names, next_query = _page(names, query)
        body = json.dumps({"name": repository.name, "tags": names}).encode()
        return Listing(body, "application/json", next_query, outcome=self.outcome)

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """As `Registry.referrers`."""
        await self._asked("referrers", f"{repository} {digest} {query}")
        wanted = parse_qs(query).get("artifactType", [None])[0]
        found: list[dict[str, Any]] = []
        for (owner, own), manifest in self._manifests.items():
            subject, kind = manifest.contents.subject, manifest.contents.artifact_type
            if owner == repository and subject and subject.digest == digest and wanted in (None, kind):
                descriptor = manifest.descriptor
                found.append(
                    {"mediaType": descriptor.media_type, "digest": own, "size": descriptor.size, "artifactType": kind}
                )
        body = json.dumps({"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": found}).encode()
        filters = "artifactType" if wanted else None
        return Listing(body, manifests.OCI_INDEX, filters=filters, outcome=self.outcome)

    async def catalog(self, registry: str | None, n: int, last: str | None) -> tuple[list[str], bool]:
        """As `Catalog.catalog`, of everything here."""
        owners = {owner for owner, _ in self._tags}
        names = sorted(
            str(owner) if registry is None else owner.name for owner in owners if registry in (None, owner[0])
        )
        after = [name for name in names if last is None or name > last]
        return after[:n], len(after) > n

    async def _asked(self, method: str, what: str) -> None:
        self.asked.append(f"{method} {what}".rstrip())
        if method in self._gates:
            await self._gates[method].wait()
        if method in self._failures:
            raise self._failures[method]

    def _known(self, repository: Repository) -> None:
        if not any(owner == repository for owner, _ in [*self._manifests, *self._blobs]):
            raise NameUnknown("no such repository", detail={"name": repository.name})

    def _manifest(self, repository: Repository, reference: Reference) -> Manifest:
        self._known(repository)
        digest = reference if isinstance(reference, Digest) else self._tags.get((repository, reference))
        found = None if digest is None else self._manifests.get((repository, digest))
        if found is None:
            raise ManifestUnknown("no such manifest", detail={"reference": reference})
        return found

    def _blob(self, repository: Repository, digest: Digest) -> Growth:
        self._known(repository)
        if (repository, digest) not in self._blobs:
            raise BlobUnknown("no such blob", detail={"digest": digest})
        return self._blobs[repository, digest]


def _page(names: list[str], query: str) -> tuple[list[str], str | None]:
    parameters = parse_qs(query)
    if last := parameters.get("last"):
        names = [name for name in names if name > last[0]]
    if "n" not in parameters:
        return names, None
    n = int(parameters["n"][0])
    more = n and len(names) > n
    return names[:n], f"n={n}&last={quote(names[n - 1])}" if more else None


def _nameless_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
