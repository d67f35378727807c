"""What came of downloads that did not end: kept for a while, so many of them, and the first to go for want of room."""

import asyncio
from collections.abc import Callable, Collection

from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.store.ingest import Part, Partials
from mirrorproxy.store.ledger import Ledger


class Parts:
    """Drops parts. `keep`: seconds that one stays when nobody asks for more of it; `most`: so many of them do.
    `filling`: the digests of which more is coming now.
    """

    def __init__(self, partials: Partials, ledger: Ledger, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.keep = 7 * 86_400.0
        self.most = 1000
        self.filling: Collection[Digest] = frozenset()
        self._partials = partials
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock

    async def tidy(self, needed: int) -> None:
        """Drop what nobody has asked for for long, what is too much, and the oldest until `needed` bytes are free.

        What is left is counted. Raises `CacheFailed`.
        """
        oldest = self._clock() - self.keep
        freed = 0
        idle = await self.idle()
        for left, part in zip(range(len(idle), 0, -1), idle, strict=True):
            reason = "age" if part.modified < oldest else "size" if freed < needed else "count"
            if (reason != "count" or left > self.most) and await self.drop(part, reason):
                freed += part.blocks

    async def idle(self) -> list[Part]:
        """Those that nobody is filling, the oldest first. They are counted. Raises `CacheFailed`."""
        parts = await asyncio.to_thread(lambda: list(self._partials.scan()))
        idle = [part for part in parts if part.digest not in self.filling]
        self._ledger.idle = sum(part.blocks for part in idle)  # in one step: downloads end and begin meanwhile
        return sorted(idle, key=lambda part: part.modified)

    async def drop(self, part: Part, reason: str) -> bool:
        """Throw it away; False where somebody is filling it by now."""
        if part.digest in self.filling:
            return False
        await asyncio.to_thread(self._partials.remove, part.digest)
        self._ledger.idle = max(0, self._ledger.idle - part.blocks)
        self._metrics.partials_dropped.labels(reason).inc()
        return True
