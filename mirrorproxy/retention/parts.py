"""What came of downloads that did not end: kept for a while, so many of them, and the first to go for want of room."""

import asyncio
from collections.abc import Callable

from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger


class Parts:
    """Drops parts. `keep`: seconds that one stays when nobody asks for more of it; `most`: so many of them do.
    `filling` says of which digests more is coming now.
    """

    def __init__(self, partials: Partials, ledger: Ledger, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.keep = 7 * 86_400.0
        self.most = 1000
        self.filling: Callable[[Digest], bool] = lambda _: False
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
        parts = await asyncio.to_thread(lambda: list(self._partials.scan()))
        idle = [part for part in parts if not self.filling(part.digest)]
        self._ledger.idle = sum(part.blocks for part in idle)  # in one step: downloads end and begin meanwhile
        for left, part in zip(range(len(idle), 0, -1), sorted(idle, key=lambda part: part.modified), strict=True):
            reason = "age" if part.modified < oldest else "size" if freed < needed else "count"
            if (reason == "count" and left <= self.most) or self.filling(part.digest):
                continue
            await asyncio.to_thread(self._partials.remove, part.digest)
            self._ledger.idle = max(0, self._ledger.idle - part.blocks)
            freed += part.blocks
            self._metrics.partials_dropped.labels(reason).inc()
