"""The store as the cache uses it: what cannot be read is not there, what cannot be kept is served all the same.

One shelf for all registries. Whatever the disk or the index does wrong ends here, as a miss and a line in the log.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol, TypeVar

from mirrorproxy.errors import BadAnswer, CacheFailed
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, parse
from mirrorproxy.names import Descriptor, Digest, Repository, Tag
from mirrorproxy.registry import Blob, Kind, Listing, Manifest, Outcome, Result
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.memory import Recent
from mirrorproxy.store.openfiles import OpenBlob
from mirrorproxy.store.records import Fact, KeptListing, TagRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

_HOT_BYTES = 8 << 20  # manifests kept in memory, by their size; a typical one has 1 to 10 KiB
_THREAD_FROM = 64 << 10  # bytes whose JSON would take 0.5 ms and more of the event loop; the largest 50
_READ = 256 << 10
_SAY_EVERY = 30.0  # seconds between two lines about what the disk or the index does wrong
_SAY_AGAIN = 3600.0  # and between two that are about the same
HIT = Outcome(Result.HIT, stored=True)


class Used(Protocol):
    """Told what was served. Of a `manifest`, all that it names was used too."""

    def __call__(self, digest: Digest, *, manifest: bool = False) -> None: ...


def _unnoted(digest: Digest, *, manifest: bool = False) -> None:
    del digest, manifest


class StoredBlob:
    """Committed content: a `FileBlob` that is whole.

    Where its file cannot be read, `failed` is told, and the rest comes by what `instead` makes, if that is set.
    """

    first = 0
    instead: Callable[[], Blob] | None = None

    def __init__(
        self,
        opened: OpenBlob,
        outcome: Outcome = HIT,
        failed: Callable[[Digest, str], None] = lambda *_: None,
    ) -> None:
        self._opened = opened
        self._failed = failed
        self.digest = opened.digest
        self.size: int | None = opened.size
        self.outcome = outcome

    @property
    def fd(self) -> int:
        """The file's."""
        return self._opened.fd

    def ready(self, start: int) -> int:
        """All of it."""
        return max(start, self._opened.size)

    async def wait(self, start: int) -> None:
        """Nothing to wait for."""

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`."""
        end = self._opened.size if end is None else end
        problem = "it became shorter than it was"
        while start < end:
            try:
                data = await asyncio.to_thread(os.pread, self._opened.fd, min(_READ, end - start), start)
            except OSError as error:
                data, problem = b"", str(error.strerror)
            if not data:
                break
            start += len(data)
            yield data
        else:
            return
        self._failed(self.digest, problem)
        if self.instead is None:
            raise CacheFailed(f"the file of {self.digest} cannot be read: {problem}")
        async with aclosing(self.instead()) as blob:
            async for data in blob.chunks(start, end):
                yield data

    async def aclose(self) -> None:
        """Give the descriptor back."""
        self._opened.close()


class Shelf:
    """Manifests, blobs, tags and listings of all registries, as far as they are kept.

    `changed` is called when a tag or manifest came or went, `used` with each digest that was served.
    """

    def __init__(
        self,
        blobs: BlobStore,
        index: Index,
        *,
        changed: Callable[[], None] = lambda: None,
        used: Used | None = None,
        grown: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._blobs = blobs
        self._index = index
        self._changed = changed
        self._used = used or _unnoted
        self._grown = grown
        self._said, self._said_of = -_SAY_EVERY, ""
        self.suspect: Callable[[Digest], None] = lambda _: None
        """Is told of content whose file could not be read."""
        self._hot: Recent[Digest, Manifest] = Recent(_HOT_BYTES, lambda manifest: 1024 + 2 * len(manifest.body))

    async def fact(self, repository: Repository, digest: Digest) -> Fact | None:
        """What is known of `digest` in `repository`; None: not known to belong there."""
        return self._index.peek_fact(repository, digest) or await self._if_it_works(
            self._index.fact(repository, digest)
        )

    async def know(self, repository: Repository, descriptors: Iterable[Descriptor]) -> None:
        """Remember that these belong to `repository`."""
        await self._if_it_works(self._index.put_facts(repository, descriptors))

    async def committed(self, repository: Repository, digest: Digest, size: int, endpoint: str | None = None) -> None:
        """A blob that this repository has was stored; it came from `endpoint`."""
        self._used(digest)
        if endpoint is not None:
            await self._if_it_works(self._index.put_origin(digest, endpoint))
        if await self.fact(repository, digest) is None:
            await self.know(repository, (Descriptor("application/octet-stream", digest, size),))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """The manifest, where it is here and known to belong to `repository`. A layer is never one. Say when it was
        `served`.
        """
        fact = await self.fact(repository, digest)
        if fact is None or fact.media_type not in MEDIA_TYPES:
            return None
        if (hot := self._hot.get(digest)) is not None and hot.descriptor.media_type == fact.media_type:
            return hot
        if (body := await self._if_it_works(self._blobs.read(digest, MAX_SIZE))) is None:
            return None
        try:
            if len(body) < _THREAD_FROM:
                contents = parse(body, fact.media_type)
            else:
                contents = await asyncio.to_thread(parse, body, fact.media_type)
        except BadAnswer:  # the fact is of another time, or forged
            return None
        manifest = Manifest(Descriptor(fact.media_type, digest, len(body)), body, contents, HIT)
        self._hot.put(digest, manifest)
        return manifest

    async def keep(self, repository: Repository, manifest: Manifest) -> bool:
        """Store a manifest, and what it names as belonging to `repository`. False where that failed. That it is new is
        no use of what it names.
        """
        digest = manifest.descriptor.digest
        try:
            if grown := await self._blobs.put(digest, manifest.body):
                self._grown(grown)
                self._used(digest)
            await self._index.put_facts(repository, (manifest.descriptor, *manifest.contents.children))
            if manifest.outcome.endpoint is not None:
                await self._index.put_origin(digest, manifest.outcome.endpoint)
        except CacheFailed as error:
            self._say("%s@%s is not kept: %s", repository, digest, error)
            self._changed()  # some of it may be, and the rest later
            return False
        self._hot.put(digest, Manifest(manifest.descriptor, manifest.body, manifest.contents, HIT))
        self._changed()
        return True

    def forget(self, digest: Digest) -> None:
        """Content was removed from the disk: a manifest is not served from memory any more."""
        self._hot.drop(digest)

    def served(self, digest: Digest) -> None:
        """A client got this manifest, or was told that its tag points at it and needs no more if it has it."""
        self._used(digest, manifest=True)

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """The record of a tag."""
        return self._index.peek_tag(repository, tag) or await self._if_it_works(self._index.tag(repository, tag))

    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Upstream vouched for it. `since` of the record is found here: where it pointed there before, it stays."""
        before = await self.tag(repository, tag)
        moved = before is None or before.digest != record.digest
        since = record.checked if before is None or moved else before.since
        await self._if_it_works(self._index.put_tag(repository, tag, replace(record, since=since)))
        if moved:
            self._changed()

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Upstream has it no more."""
        await self._if_it_works(self._index.forget_tag(repository, tag))
        self._changed()

    async def blob(self, digest: Digest, size: int | None) -> StoredBlob | None:
        """The committed content, open; None where it is not here, or not as long as `size` says."""
        opened = await self._if_it_works(self._blobs.open(digest, size))
        if opened is None:
            return None
        self._used(digest)
        return StoredBlob(opened, failed=self._unreadable)

    async def has(self, digest: Digest) -> bool:
        """Is the content here, whoever it belongs to? To look is no use of it."""
        if (opened := await self._if_it_works(self._blobs.open(digest))) is None:
            return False
        opened.close()
        return True

    async def listing(self, repository: Repository, kind: Kind, query: str) -> KeptListing | None:
        """The last answer to a listing. `query`: of referrers, the digest and the query."""
        return await self._if_it_works(self._index.listing(repository, kind, query))

    async def keep_listing(
        self, repository: Repository, kind: Kind, query: str, listing: Listing, checked: float
    ) -> None:
        """Remember an answer for the time when upstream is away."""
        await self._if_it_works(self._index.put_listing(repository, kind, query, listing, checked))

    async def _if_it_works(self, work: Awaitable[T]) -> T | None:
        """The result, or None where the disk or the index fails; said now and then, not at every access."""
        try:
            return await work
        except CacheFailed as error:
            self._say("the cache is of no help: %s", error)
            return None

    def _unreadable(self, digest: Digest, problem: str) -> None:
        """A file that is here fails its readers, who have the rest from upstream."""
        self._say("the file of %s cannot be read, and clients have it from upstream: %s", digest, problem)
        self.suspect(digest)

    def _say(self, message: str, *args: object) -> None:
        """What the disk or the index does wrong, now and then: it does so for all that comes."""
        now, problem = time.monotonic(), str(args[-1])
        if now - self._said >= (_SAY_AGAIN if problem == self._said_of else _SAY_EVERY):
            self._said, self._said_of = now, problem
            log.warning(message, *args)
