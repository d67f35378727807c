"""The account of what is on the disk, checked against the disk: after a crash within a minute, else slowly.

A crash may leave content that the index does not know (it came in the last seconds), and rows of content that is gone.
The check walks through folders and rows in small pieces, in threads, and rests between them.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from itertools import islice

from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Digest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.content import Stored
from mirrorproxy.store.index import Index
from mirrorproxy.store.ledger import Ledger
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import Used

_BATCH = 500
_LATE = 60.0  # seconds within which a clock that was put back is noticed: what came since is entered every few of them
_AT_ONCE, _SOON, _AT_LEISURE = 0.0, 0.5, 20.0  # rest between pieces, in times of what a piece took


class Account:
    """What the index says is on the disk, for the ledger."""

    def __init__(self, blobs: BlobStore, index: Index, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._index = index
        self._ledger = ledger
        self._began = clock()
        self._clean = False
        self._correcting = False

    async def open(self) -> None:
        """Tell the ledger what is there, where the index knows. Raises `CacheFailed`."""
        with contextlib.suppress(CacheFailed):  # a disk that takes nothing: then ours has to do
            self._began = await asyncio.to_thread(self._blobs.now)
        self._correcting, self._clean = await self._index.content(ContentQueues.opened)
        if self._correcting:
            self._ledger.set_used(*await self._index.asked(ContentQueues.account))

    def begin_anew(self) -> None:
        """The index is a new one: what it does not know has been counted all the same."""
        self._correcting = False

    async def close(self) -> None:
        """Say that the index knows all. Raises `CacheFailed`."""
        await self._index.content(ContentQueues.left)

    async def check(self, removing: asyncio.Lock, *, lost: bool = False) -> None:
        """See that the index knows what is on the disk and nothing else, and correct the ledger. Raises `CacheFailed`.

        `removing` is held by whoever removes content; `lost`: what came lately may be unknown.
        """
        complete, _ = await self._index.content(ContentQueues.opened)
        self._correcting = complete  # else the ledger knows better, or nobody knows
        rest = _AT_ONCE if not complete else _AT_LEISURE if self._clean and not lost else _SOON
        if self._ledger.used is None:
            size, objects = await self._count_disk()
        else:
            size, objects = 0, 0
            await self._walk_disk(rest)
        await self._walk_rows(removing, rest)
        await self._index.content(ContentQueues.recount)
        if self._ledger.used is None:
            self._ledger.set_used(size, objects)
        self._clean = True

    async def _count_disk(self) -> tuple[int, int]:
        """Put in all that is there; returns bytes and pieces of what was there at the start."""
        total = count = 0
        found = self._blobs.scan()
        while batch := await asyncio.to_thread(lambda: list(islice(found, _BATCH))):
            old = [each for each in batch if each.changed < self._began]
            total += sum(each.blocks for each in old)
            count += len(old)
            await self.enter(batch)
        return total, count

    async def _walk_disk(self, rest: float) -> None:
        """Put in what the index does not know."""
        names = self._blobs.digests()
        while True:
            started = time.monotonic()
            batch = await asyncio.to_thread(lambda: list(islice(names, _BATCH)))
            if not batch:
                return
            if absent := await self._index.asked(ContentQueues.absent, batch):
                await self.enter(await asyncio.to_thread(lambda: list(self._blobs.stat(absent))))
            await asyncio.sleep(rest * (time.monotonic() - started))

    async def enter(self, content: Iterable[Stored]) -> None:
        """Put in content, as far as the index does not know it, with its last use as `modified`. Raises `CacheFailed`.

        What was put on the disk since the start has been counted; what was there before and is not known was not.
        """
        await self._look_at_the_clock()
        before: dict[Digest, Used] = {}
        since: dict[Digest, Used] = {}
        for each in content:
            (before if each.changed < self._began else since)[each.digest] = Used(each.modified, each.blocks)
        if since:
            await self._index.content(ContentQueues.enter, since)
        if before:
            self._correct(*await self._index.content(ContentQueues.enter, before))

    async def _walk_rows(self, removing: asyncio.Lock, rest: float) -> None:
        """Take out what is not there."""
        after: Digest | None = None
        while page := await self._index.asked(ContentQueues.names, after, _BATCH):
            started = time.monotonic()
            after = page[-1]
            if await asyncio.to_thread(self._blobs.missing, page):
                async with removing:
                    gone = await asyncio.to_thread(self._blobs.missing, page)
                    size, objects = await self._index.content(ContentQueues.forget, gone)
                    self._correct(-size, -objects)
            await asyncio.sleep(rest * (time.monotonic() - started))

    async def _look_at_the_clock(self) -> None:
        """A clock that was put back stamps what comes now as if it had come before the start."""
        with contextlib.suppress(CacheFailed):
            now = await asyncio.to_thread(self._blobs.now)
            if now < self._began:
                self._began = now - _LATE

    def _correct(self, size: int, objects: int) -> None:
        if self._correcting and not self._index.is_new:
            self._ledger.correct(size, objects)
