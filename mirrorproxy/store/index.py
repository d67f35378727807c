"""The index: what tags point at, what belongs to which repository, the last listings, the last uses.

Nothing in it is needed to find content on the disk, and nothing in it is believed about what is on the disk. It can be
lost: a database that is broken is thrown away, and filled again from `index.json` (`layout.rebuild`).
A row that is not what it should be, forged or damaged, is as good as not there; it is deleted, logged and counted.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from time import monotonic
from typing import Concatenate, ParamSpec, TypeVar

from mirrorproxy.errors import CacheFailed
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Descriptor, Digest, Repository, Tag
from mirrorproxy.registry import Kind, Listing
from mirrorproxy.store import records
from mirrorproxy.store.files import disk_errors
from mirrorproxy.store.memory import Recent
from mirrorproxy.store.owed import Owed
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import BAD_ROW, Fact, KeptListing, TagRecord, Used
from mirrorproxy.store.repositories import repositories
from mirrorproxy.store.rows import DATABASE, BrokenDatabaseError, Rows, checked_row, connect, failures

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_REMEMBERED = 4096  # tags, and as many facts, that are found without a thread
_PAGE = 128  # rows read at a time: about a millisecond, for which others wait
_LISTINGS = 64 << 20  # bytes of all listings together: clients choose the queries, so there must be a bound
_LARGEST_LISTING = 4 << 20
_TRY_AGAIN = 5.0  # seconds between attempts to open a database that could not be opened, or only be read
_REBUILT = "meta:rebuilt"


class Index:
    """The index in `directory`. Open it, then call it on the event loop; the `walk_*` are for other threads.

    What waits raises `CacheFailed` when the database does. `rebuild_needed`: what `index.json` knows is not in here.
    `is_new`: it was made anew, and who keeps account of the disk has not seen it. `refused`: rows deleted as not ours.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._connected: Rows | None = None
        self._attempted = 0.0
        self._closed = False
        self._listed = 0
        self._tags: Recent[tuple[Repository, Tag], TagRecord] = Recent(_REMEMBERED)
        self._facts: Recent[tuple[Repository, Digest], Fact] = Recent(_REMEMBERED)
        self._owed = Owed(lambda: self._rows)
        self._writes = 0
        self.rebuild_needed = False
        self.is_new = False
        self.refused = 0

    def __repr__(self) -> str:
        return f"<Index {self._directory}{' closed' if self._connected is None else ''}>"

    @property
    def is_open(self) -> bool:
        """Could the database be opened?"""
        return self._connected is not None

    @property
    def is_behind(self) -> bool:
        """Does the database lack what could not be written into it?"""
        return len(self._owed) > 0

    async def open(self) -> None:
        """Open the database, a new one where there is none or it is broken. When it fails it is tried again later."""
        await self._run(self._open)

    async def aclose(self) -> None:
        """Close it, after what was asked before."""
        if not self._closed:
            self._closed = True
            closing = self._submit(self._close)
            self._thread.shutdown(wait=False)  # nothing comes after it
            await asyncio.wrap_future(closing)

    # Tags and facts. Memory is written first, without waiting: it is never behind the database, also where a caller is
    # cancelled or the database fails. What a read finds is remembered only if nothing was written since it was asked.

    def peek_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """The record, if it is in memory."""
        return self._tags.get((repository, tag))

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What the tag pointed at, or None where that is not known."""
        key = repository, tag
        record = self._tags.get(key)
        if record is None:
            writes = self._writes
            record = await self._run(self._get, records.tag_key(repository, tag), records.parse_tag)
            if record is not None and writes == self._writes:
                self._tags.put(key, record)
        return record

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Remember what the tag points at."""
        self._writes += 1
        self._tags.put((repository, tag), record)
        await self._run(self._owed.write, [(records.tag_key(repository, tag), records.tag_row(record))])

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget the tag: upstream said that it is not there."""
        self._writes += 1
        self._tags.drop((repository, tag))
        await self._run(self._owed.delete, [records.tag_key(repository, tag)])

    def peek_fact(self, repository: Repository, digest: Digest) -> Fact | None:
        """The fact, if it is in memory."""
        return self._facts.get((repository, digest))

    async def fact(self, repository: Repository, digest: Digest) -> Fact | None:
        """What the digest is in this repository, or None where it is not known to belong there.

        What is known as a manifest and as something else is a manifest.
        """
        key = repository, digest
        fact = self._facts.get(key)
        if fact is None:
            writes = self._writes
            fact = await self._run(self._get_fact, repository, digest)
            if fact is not None and writes == self._writes:
                self._facts.put(key, fact)
        return fact

    async def put_facts(self, repository: Repository, descriptors: Iterable[Descriptor]) -> None:
        """Remember that all these belong to the repository, and what they are, in one transaction."""
        self._writes += 1
        writes, descriptors = self._writes, tuple(descriptors)
        others: dict[Digest, Fact] = {}
        for each in descriptors:
            key, fact = (repository, each.digest), Fact(each.media_type, each.size)
            known = self._facts.get(key)
            if each.media_type in MEDIA_TYPES:
                self._facts.put(key, fact)
            elif known is None or known.media_type not in MEDIA_TYPES:
                self._facts.drop(key)  # not put: the database may know it as a manifest
                others[each.digest] = fact
        try:
            certain = await self._run(self._set_facts, repository, descriptors, tuple(others))
        except CacheFailed:
            for digest, fact in others.items():
                self._facts.put((repository, digest), fact)
            raise
        if writes == self._writes:  # the layers are asked for next: that need not wait for the database once more
            for digest in certain:
                self._facts.put((repository, digest), others[digest])

    async def forget_fact(self, repository: Repository, digest: Digest) -> None:
        """Forget that the digest belongs to the repository: upstream said that it does not."""
        self._writes += 1
        self._facts.drop((repository, digest))
        await self._run(self._owed.delete, records.fact_keys(repository, digest))

    async def restore(
        self, repository: Repository, descriptors: Iterable[Descriptor], tags: Iterable[Tag] = ()
    ) -> None:
        """Add what a rebuild found, in one transaction; what is known already is newer, and stays.

        `tags` point at the first of `descriptors`; their records were `checked` at 0, so upstream is asked first.
        """
        descriptors = tuple(descriptors)
        record = TagRecord(descriptors[0].digest, 0.0)
        tagged = [(records.tag_key(repository, tag), records.tag_row(record)) for tag in tags]
        await self._run(self._owed.write, chain(tagged, records.fact_rows(repository, descriptors)), new=True)

    async def rebuilt(self) -> None:
        """Say that a rebuild is complete: `rebuild_needed` is False from now on, after a restart too."""
        await self._run(self._owed.write, [(_REBUILT, b"1")])
        self.rebuild_needed = False

    # Listings.

    async def listing(self, repository: Repository, kind: Kind, query: str) -> KeptListing | None:
        """The last answer to `query` (of referrers: the digest and the query), or None."""
        return await self._run(self._get, records.listing_key(repository, kind, query), records.parse_listing)

    async def put_listing(
        self, repository: Repository, kind: Kind, query: str, listing: Listing, checked: float
    ) -> None:
        """Remember an answer; those put first are forgotten where all take too much room; over 4 MiB none is kept."""
        if len(listing.body) <= _LARGEST_LISTING:
            key = records.listing_key(repository, kind, query)
            await self._run(self._set_listing, key, KeptListing(listing, checked))

    # Content.

    async def content(self, work: Callable[Concatenate[ContentQueues, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the `ContentQueues`, in one transaction: `index.content(ContentQueues.touch, uses)`."""
        return await self._run(self._in_queues, lambda queues: work(queues, *args, **kwargs), writes=True)

    async def put_origin(self, digest: Digest, endpoint: str) -> None:
        """Remember from which endpoint content came."""
        await self._run(self._owed.write, [(records.origin_key(digest), endpoint.encode())])

    async def origins_of(self, digests: Iterable[Digest]) -> dict[Digest, str]:
        """The endpoints that these came from, as far as they are known."""
        return await self._run(self._get_all, tuple(digests), records.origin_key, records.parse_origin)

    async def asked(self, work: Callable[Concatenate[ContentQueues, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for what only reads: it works where the database cannot be written, too."""
        return await self._run(self._in_queues, lambda queues: work(queues, *args, **kwargs), writes=False)

    async def used_of(self, digests: Iterable[Digest]) -> dict[Digest, Used]:
        """The last use of these, and the bytes they take on the disk, as far as they are known to be here."""
        return await self.asked(ContentQueues.used_of, tuple(digests))

    # All there is, in the order of the keys. Many short reads: what is written meanwhile may be in it or not.

    async def repositories(self, after: str = "", limit: int = 1000) -> list[Repository]:
        """Repositories of which a tag or a manifest is known: the first `limit` that sort after `after`."""
        return await self._run(lambda: repositories(self._rows, after.encode(errors="replace"), limit))

    def tag_rows(self) -> AsyncIterator[list[tuple[Repository, Tag, TagRecord]]]:
        """All tags, in batches."""
        return self._batches(records.TAGS, records.tag_entry)

    def manifest_rows(self) -> AsyncIterator[list[tuple[Repository, Digest, Fact]]]:
        """All manifests known, in batches."""
        return self._batches(records.MANIFESTS, records.manifest_entry)

    def walk_tags(self, repository: Repository | None = None) -> Iterator[tuple[Repository, Tag, TagRecord]]:
        """All tags, by repository; or those of one repository. Blocks."""
        if repository is None:
            return self._walk(records.TAGS, records.tag_entry)
        rows = self._walk(records.TAGS, records.tag_entry, f"{records.TAGS}{repository} ")
        return takewhile(lambda row: row[0] == repository, rows)

    def walk_manifests(self) -> Iterator[tuple[Repository, Digest, Fact]]:
        """All manifests known, by repository. Blocks."""
        return self._walk(records.MANIFESTS, records.manifest_entry)

    def walk_blobs(self) -> Iterator[tuple[Repository, Digest, Fact]]:
        """All else that is known to belong to a repository, by repository. Blocks."""
        return self._walk(records.BLOBS, records.manifest_entry)

    def walk_facts(self) -> Iterator[tuple[Repository, Digest, Fact]]:
        """All facts, manifests first, by repository. Blocks."""
        return chain(self.walk_manifests(), self.walk_blobs())

    async def _batches(self, prefix: str, parse: Callable[[str, bytes], T]) -> AsyncIterator[list[T]]:
        after: bytes | None = prefix.encode()
        while after is not None:
            batch, after = await self._run(self._page, prefix, after, parse)
            yield batch

    def _walk(self, prefix: str, parse: Callable[[str, bytes], T], start: str | None = None) -> Iterator[T]:
        after: bytes | None = (start or prefix).encode()
        while after is not None:
            batch, after = self._submit(self._page, prefix, after, parse).result()
            yield from batch

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._submit(work, *args, **kwargs))

    def _submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return self._thread.submit(self._guarded, partial(work, *args, **kwargs))
        except RuntimeError as error:
            raise CacheFailed("the index is closed") from error

    # In the thread, from here on down. Rows come as iterators, so that making thousands of them happens here too.

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            with failures():
                return work()
        except BrokenDatabaseError as error:
            log.error("the index is broken, a new one is made: %s", error)
            self._make_anew()
            raise CacheFailed("the index was broken") from error

    def _open(self) -> None:
        self._attempted = monotonic()
        with disk_errors("open the index"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = (self._directory / DATABASE).is_file()
        try:
            if found:
                with failures(opening=True):
                    self._connect()
                return
        except BrokenDatabaseError as error:
            log.error("the index cannot be used, a new one is made: %s", error)
        self._make_anew()

    def _make_anew(self) -> None:
        self._close()
        self.is_new = True
        with disk_errors("clear the index"):
            for path in self._directory.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        try:
            with failures():
                self._connect()
        except BrokenDatabaseError as error:
            raise CacheFailed("the index cannot be made anew") from error

    def _connect(self) -> None:
        """Open the database and see what is in it; where a step fails nothing is open."""
        try:
            self._connected = connect(self._directory)
            self._queues = ContentQueues(self._rows)
            self.rebuild_needed = self._get(_REBUILT, bytes) is None
            self._listed = self._rows.volume_of(records.LISTINGS)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        rows, self._connected = self._connected, None
        if rows is not None:
            rows.close()

    @property
    def _rows(self) -> Rows:
        if self._connected is None or self._connected.frozen:
            if monotonic() - self._attempted >= _TRY_AGAIN:
                self._close()
                self._open()
            elif self._connected is None:
                raise CacheFailed("the index could not be opened")
        assert self._connected is not None
        return self._connected

    def _in_queues(self, work: Callable[[ContentQueues], T], *, writes: bool) -> T:
        with self._rows.transact() if writes else nullcontext(self._rows):
            return work(self._queues)

    def _get(self, key: str, parse: Callable[[bytes], T]) -> T | None:
        rows = self._rows
        try:
            value = rows.get(key)
            return None if value is None else parse(value)
        except BAD_ROW as error:
            self._refuse(error, partial(rows.drop, key))
            return None

    def _get_fact(self, repository: Repository, digest: Digest) -> Fact | None:
        first, second = records.fact_keys(repository, digest)
        return self._get(first, records.parse_fact) or self._get(second, records.parse_fact)

    def _set_facts(self, repository: Repository, facts: Iterable[Descriptor], unsure: Iterable[Digest]) -> list[Digest]:
        """Put them down. Returns which of the `unsure` are no manifests."""
        self._owed.write(records.fact_rows(repository, facts))
        rows = self._rows
        return [digest for digest in unsure if rows.get(records.fact_keys(repository, digest)[0]) is None]

    def _get_all(
        self, digests: Iterable[Digest], key: Callable[[Digest], str], parse: Callable[[bytes], T]
    ) -> dict[Digest, T]:
        found = ((each, self._get(key(each), parse)) for each in digests)
        return {digest: value for digest, value in found if value is not None}

    def _set_listing(self, key: str, kept: KeptListing) -> None:
        value = records.listing_row(kept)
        self._owed.write([(key, value)])
        self._listed += len(value)  # too much where it replaces one: the sum is taken anew at the bound
        if self._listed > _LISTINGS:
            with self._rows.transact():
                self._rows.drop_oldest(records.LISTINGS, leave=_LISTINGS * 3 // 4)
            self._listed = self._rows.volume_of(records.LISTINGS)

    def _page(self, prefix: str, after: bytes, parse: Callable[[str, bytes], T]) -> tuple[list[T], bytes | None]:
        """What the next rows behind the key `after` say, and the key to go on from, None at the end."""
        self._owed.pay()
        found = []
        rows = self._rows.page(prefix, after, _PAGE)
        for rowid, key, raw, mode, has_file, value in rows:
            try:
                text, data = checked_row(raw, mode, has_file, key, value)
                found.append(parse(text.removeprefix(prefix), data))
            except BAD_ROW as error:
                self._refuse(error, partial(self._rows.drop_row, rowid))
        return found, rows[-1][1] if len(rows) == _PAGE else None

    def _refuse(self, error: Exception, drop: Callable[[], None]) -> None:
        self.refused += 1
        log.warning("deleted a row of the index that is not ours: %s", error)
        with suppress(CacheFailed), failures():
            drop()
            self._rows.drop(_REBUILT)  # what it was is in `index.json`, before that is written from here
            self.rebuild_needed = True
