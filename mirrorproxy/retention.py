"""What stays and what goes: room for new content, made by removing what was not used for longest.

Uses are noted in memory and written to the index in batches, with the bytes that the content takes: finding the oldest
needs no walk through folders. What the disk holds in all is counted once, in the background of a start.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from itertools import islice

from mirrorproxy.errors import CacheFailed
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.eviction import Candidate, Oldest
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger, Reservation
from mirrorproxy.store.records import Used

log = logging.getLogger(__name__)

_WRITE_EVERY = 5.0  # seconds
_GRACE = (
    60.0  # seconds for which what was just used stays, so that a manifest's blobs are there when they are asked for
)
_SLACK = 0.02  # of the limit, freed beyond what is needed: not each download begins with a search for the oldest
_BATCH = 500


class Retention:
    """Room in the cache: a `Space` for fills.

    `changed` is called when content went. `keep_partials`: seconds that a part stays when nobody asks for more of it,
    `most_partials`: so many of them do; `filling` says of which digests more is coming now.
    """

    def __init__(
        self,
        blobs: BlobStore,
        index: Index,
        partials: Partials,
        ledger: Ledger,
        metrics: Metrics,
        *,
        changed: Callable[[], None] = lambda: None,
        keep_partials: float = 7 * 86_400.0,
        most_partials: int = 1000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._blobs = blobs
        self._index = index
        self._partials = partials
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._changed = changed
        self.keep_partials = keep_partials
        self.most_partials = most_partials
        self.filling: Callable[[Digest], bool] = lambda _: False
        self._uses: dict[Digest, float] = {}
        self._evicting = asyncio.Lock()

    def used(self, digest: Digest) -> None:
        """It was served now."""
        self._uses[digest] = self._clock()

    def grown(self, size: int) -> None:
        """Content of `size` bytes on the disk was stored without a reservation."""
        self._ledger.added(size)

    def corrupt(self, digest: Digest, size: int) -> None:
        """Content was removed because it was wrong."""
        del digest
        self._ledger.removed(size)
        self._count("corrupt", 1, size)

    async def reserve(self, size: int) -> Reservation:
        """Room for `size` bytes; what was not used for longest goes for it. Raises `CacheFailed` where that fails."""
        await self._ledger.refresh()
        if (reservation := self._ledger.reserve(size)) is not None:
            return reservation
        async with self._evicting:
            if size > self._ledger.room:
                await self._evict(size - self._ledger.room + int(self._ledger.limit * _SLACK))
            reservation = self._ledger.reserve(size)
        if reservation is None:
            raise CacheFailed(
                f"there is no room for {size} bytes in the cache: its content was used in the last {_GRACE:.0f} s, or "
                "max_size and min_free do not allow for so much"
            )
        return reservation

    async def run(self) -> None:
        """Count what is there, then write down uses and keep to the limit, for ever."""
        await self._count_disk()
        while True:
            with contextlib.suppress(CacheFailed):  # the next round tries again; a service without an index goes on
                await self._tidy_partials(0)
                await self.write_uses()
                await self._ledger.refresh()
                if self._ledger.room < 0:
                    async with self._evicting:
                        await self._evict(-self._ledger.room)
            await asyncio.sleep(_WRITE_EVERY)

    async def aclose(self) -> None:
        """Write down the last uses."""
        with contextlib.suppress(CacheFailed):
            await self.write_uses()

    async def write_uses(self) -> None:
        """Put the uses noted so far into the index. Raises `CacheFailed`."""
        while self._uses:
            batch = {digest: self._uses.pop(digest) for digest in list(islice(self._uses, _BATCH))}
            await self._index.put_used(await asyncio.to_thread(self._measured, batch))

    def _measured(self, uses: dict[Digest, float]) -> dict[Digest, Used]:
        """These uses with the bytes on the disk, as far as the content is there."""
        measured = {}
        for digest, last in uses.items():
            with contextlib.suppress(OSError):
                measured[digest] = Used(last, self._blobs.path(digest).stat().st_blocks * 512)
        return measured

    async def _count_disk(self) -> None:
        """Tell the ledger what is on the disk, and a new index how old it is."""
        unknown = self._index.rebuild_needed
        scan, size, objects = self._blobs.scan(before=self._clock()), 0, 0
        try:
            while found := await asyncio.to_thread(lambda: list(islice(scan, _BATCH))):
                size += sum(stored.blocks for stored in found)
                objects += len(found)
                if unknown:
                    await self._index.put_used({each.digest: Used(each.modified, each.blocks) for each in found})
        except CacheFailed as error:
            log.warning("the content on the disk cannot be counted: %s", error)
            return
        self._ledger.set_used(size, objects)

    async def _tidy_partials(self, needed: int) -> int:
        """Drop parts that nobody has asked for for long, and the oldest ones until `needed` bytes are free.

        Returns the bytes that this freed.
        """
        oldest = self._clock() - self.keep_partials
        freed = 0
        parts = await asyncio.to_thread(lambda: list(self._partials.scan()))
        idle = [part for part in parts if not self.filling(part.digest)]
        self._ledger.idle = sum(part.blocks for part in idle)  # in one step: downloads end and begin meanwhile
        for left, part in zip(range(len(idle), 0, -1), sorted(idle, key=lambda part: part.modified), strict=True):
            reason = "age" if part.modified < oldest else "size" if freed < needed else "count"
            if (reason == "count" and left <= self.most_partials) or self.filling(part.digest):
                continue
            await asyncio.to_thread(self._partials.remove, part.digest)
            self._ledger.idle = max(0, self._ledger.idle - part.blocks)
            freed += part.blocks
            self._metrics.partials_dropped.labels(reason).inc()
        return freed

    async def _evict(self, needed: int) -> None:
        needed -= await self._tidy_partials(needed)
        if needed <= 0:
            return
        await self.write_uses()
        oldest = Oldest(needed)
        recent = self._clock() - _GRACE
        async for rows in self._index.used_rows():
            for digest, used in rows:
                if used.last < recent:
                    oldest.add(Candidate(digest, used.blocks, used.last))
        gone = oldest.digests()
        for start in range(0, len(gone), _BATCH):
            batch = gone[start : start + _BATCH]
            for digest in batch:
                size = await self._blobs.remove(digest)
                self._ledger.removed(size)
                self._count("size", 1, size)
            await self._index.forget_used(batch)
        if gone:
            self._changed()

    def _count(self, reason: str, objects: int, size: int) -> None:
        self._metrics.evictions.labels(reason).inc(objects)
        self._metrics.evicted_bytes.labels(reason).inc(size)
