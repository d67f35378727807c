"""The connections of one download: each fetches a part; where one more makes it faster there is one more."""

import asyncio
import os
import time
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from mirrorproxy.errors import (
    BadAnswer,
    MirrorproxyError,
    NotFound,
    RateLimited,
    ServerFailed,
    TimedOut,
    UpstreamError,
)
from mirrorproxy.fill.pace import Pace
from mirrorproxy.fill.plan import Claim, next_span, starving, steal, superfluous
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Source, Transfer
from mirrorproxy.spans import Spans
from mirrorproxy.store.ingest import Ingest
from mirrorproxy.tasks import Tasks

_TICK = 0.1  # seconds between two looks at what is going on
_SEGMENT = 4.0  # seconds of download for one request: at a round trip of 200 ms, 5 % of it is waiting
_LEAST_SEGMENT = 2 << 20
_LEAST_STOLEN = 1.0  # seconds
_SOON = 1.0  # seconds that a reader far ahead may wait for a connection that comes its way
# Seconds for the first bytes to reach their client before more are read: what comes as fast as the machine can take it
# would keep all cores busy, and a client without its first byte waiting for one (10 ms, with this 7).
_HEAD_START = 0.002
_ENDLESS = 1 << 62  # the size of what nobody knows the size of


@dataclass(frozen=True, slots=True)
class Limits:
    """What the downloads from one upstream may do.

    `fills`: how many at a time; `connections`: for one of them, where it has `parallel_from` bytes or more; `min_rate`:
    bytes a second, measured over `min_rate_over` seconds, below which a connection is made anew (0: none).
    """

    fills: int = 16
    connections: int = 4
    parallel_from: int = 16 << 20
    min_rate: float = 0.0
    min_rate_over: float = 30.0


class DisputedError(BadAnswer):
    """What the upstream sends now is not what was sent before: one of the two is wrong."""


class Owner(Protocol):
    """The flight, as its lanes see it."""

    source: Source
    repository: Repository
    digest: Digest

    metrics: Metrics

    @property
    def wanted(self) -> Collection[int]:
        """Where readers wait for bytes."""
        ...

    async def met(self, transfer: Transfer) -> None:
        """An answer came. Raises `BadAnswer` where it does not fit, `CacheFailed` where there is no room for it."""
        ...

    def refused(self) -> None:
        """The upstream ignores ranges, or wants no more than one connection."""
        ...

    def came(self, upto: int, size: int) -> None:
        """`size` bytes came, up to the offset `upto`. Raises `CacheFailed` where there is no room for more."""
        ...


class _Lane(Claim):
    """One request and its answer."""

    __slots__ = ("answered", "bytes", "looked", "looked_bytes", "slow", "task", "to_the_end")

    def __init__(self, at: int, end: int, total: int) -> None:
        super().__init__(at, end)
        self.to_the_end = end >= total  # what was asked for, whatever is left to others since
        self.task: asyncio.Task[None]
        self.answered = 0.0  # when, by the monotonic clock; 0: not yet
        self.bytes = 0
        self.looked = time.monotonic()  # the beginning of the time over which `min_rate` is measured
        self.looked_bytes = 0
        self.slow = False


class Lanes:
    """Fetches what is missing of a blob: `run` returns when all of it came, or raises why it cannot go on.

    `pace` outlives it, so that what was learned of an upstream is not learned again after each broken connection.
    """

    def __init__(self, owner: Owner, ingest: Ingest, limits: Limits, pace: Pace) -> None:
        self._owner = owner
        self._ingest = ingest
        self._limits = limits
        self._pace = pace
        self._connections = owner.metrics.connections.labels(owner.repository.registry)
        self._lanes: list[_Lane] = []
        self._tasks = Tasks()
        self._error: MirrorproxyError | None = None

    async def run(self) -> None:
        """Fetch. Raises what the last connection met, an `UpstreamError` or `NotFound`; `CacheFailed` from any."""
        try:
            while self._start():
                tasks = [lane.task for lane in self._lanes]
                await asyncio.wait(tasks, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
                self._look()
        finally:
            await self._tasks.aclose()
            self._connections.dec(len(self._lanes))
        if self._error is not None:
            raise self._error
        await self._ingest.settle()

    @property
    def _total(self) -> int:
        return _ENDLESS if self._ingest.total is None else self._ingest.total

    def _start(self) -> bool:
        """Have as many connections as there should be, each with something to do. False: nothing is under way."""
        if self._error is None:
            while len(self._lanes) < self._pace.wanted and (lane := self._claim()) is not None:
                lane.task = self._tasks.start(self._fetch(lane), name=f"{self._owner.digest.hex[:12]} from {lane.at}")
                self._lanes.append(lane)
                self._connections.inc()
        return bool(self._lanes) and self._error is None

    def _claim(self) -> _Lane | None:
        """What a connection more would fetch; None: nothing is worth one."""
        total, wanted = self._total, self._owner.wanted
        if self._pace.wanted == 1:
            span = next_span(self._ingest.accepted, self._lanes, wanted, total, total)
            return None if span is None else _Lane(*span, total)
        length = max(_LEAST_SEGMENT, int(_SEGMENT * max((lane.rate for lane in self._lanes), default=0.0)))
        position = starving(self._ingest.accepted, self._lanes, wanted, total, _SOON)
        for lane in self._lanes:
            if position is not None and lane.at < position < lane.end:
                lane.end = position  # what comes after is wanted sooner than it gets there
        span = next_span(self._ingest.accepted, self._lanes, wanted, total, length)
        if span is None and self._pace.spreads:
            answered = [lane for lane in self._lanes if lane.answered]
            for lane in answered:  # one that was to fetch all the rest leaves it to the others
                if lane.left > 2 * length:
                    lane.end = lane.at + length
                    return self._claim()
            stolen = steal(answered, _LEAST_STOLEN)
            if stolen is None:
                return None
            victim, span = stolen
            victim.end = span.start
        return None if span is None else _Lane(*span, total)

    def _collect(self) -> None:
        """See to the connections that ended."""
        registry = self._owner.repository.registry
        for lane in [lane for lane in self._lanes if lane.task.done()]:
            self._lanes.remove(lane)
            self._connections.dec()
            if lane.slow and lane.task.cancelled():
                error: BaseException | None = TimedOut(f"upstream sent less than {self._limits.min_rate:.0f} bytes/s")
            else:
                error = lane.task.exception()
            if error is None:
                continue
            self._hand_back(lane)
            if not isinstance(error, MirrorproxyError):
                raise error
            self._owner.metrics.reconnects.labels(registry, "slow" if lane.slow else "broken").inc()
            alone = not self._lanes
            if isinstance(error, RateLimited | ServerFailed):
                self._pace.cap(1)  # it asked for less
                if not alone:
                    self._owner.refused()
            elif not lane.bytes:
                self._pace.cap(max(1, len(self._lanes)))
            if alone or not isinstance(error, UpstreamError | NotFound):
                self._error = error

    def _hand_back(self, lane: _Lane) -> None:
        """Leave what a connection did not bring to the one that had left it to it, and is still on its way there."""
        for other in self._lanes:
            if other is not lane and other.to_the_end and other.end == lane.at:
                other.end = lane.end

    def _look(self) -> None:
        """Measure, and decide how many connections there should be."""
        now, total = time.monotonic(), self._total
        for lane in self._lanes:
            if lane.answered:
                lane.rate = lane.bytes / max(now - lane.answered, _TICK)
            if self._limits.min_rate and now - lane.looked >= self._limits.min_rate_over:
                if lane.bytes - lane.looked_bytes < self._limits.min_rate * (now - lane.looked):
                    lane.slow = True
                    lane.task.cancel()
                lane.looked, lane.looked_bytes = now, lane.bytes
        if not self._limits.parallel_from <= total < _ENDLESS:
            return
        waits = starving(self._ingest.accepted, self._lanes, self._owner.wanted, total, _SOON)
        if waits is not None and len(self._lanes) == self._pace.wanted and all(lane.answered for lane in self._lanes):
            self._pace.allow()
        self._pace.look(now, sum(1 for lane in self._lanes if lane.answered), sum(lane.left for lane in self._lanes))
        going_on = [lane for lane in self._lanes if lane.left]
        if len(going_on) > self._pace.wanted:
            # It does not pay: it takes from the front what that could have.
            lane = superfluous(self._ingest.accepted, going_on, self._owner.wanted)
            lane.end = lane.at

    async def _fetch(self, lane: _Lane) -> None:
        """One request: from where the lane is up to its end, which may come nearer meanwhile."""
        begin, owner = lane.at, self._owner
        end = None if lane.to_the_end else lane.end
        async with aclosing(await owner.source.blob(owner.repository, owner.digest, begin, end)) as transfer:
            try:
                await owner.met(transfer)
                lane.end = min(lane.end, self._total)
                lane.answered = lane.looked = time.monotonic()
                if transfer.first != begin:
                    await self._whole(lane, transfer)
                else:
                    await self._part(lane, transfer)
            except BadAnswer as error:
                transfer.blame(error)
                raise
        if self._ingest.total is None:
            self._ingest.total = lane.end = lane.at
        elif lane.at == begin < lane.end:
            raise BadAnswer(f"upstream sent nothing from byte {begin} on")

    async def _part(self, lane: _Lane, transfer: Transfer) -> None:
        async for chunk in transfer.chunks(lane.at, None):
            if lane.at + len(chunk) > self._total:
                raise BadAnswer(f"upstream sends more than the {self._total} bytes of {self._owner.digest}")
            if lane.at + len(chunk) > lane.end:
                chunk = chunk[: lane.end - lane.at]
            await self._keep(lane, chunk)
            if lane.at >= lane.end != self._total:
                return  # another connection has what follows

    async def _whole(self, lane: _Lane, transfer: Transfer) -> None:
        """The blob from its start where a part was asked for: never appended blindly."""
        if transfer.first > lane.at:
            raise BadAnswer(
                f"upstream sends bytes from {transfer.first} on where those from {lane.at} on were asked for"
            )
        self._pace.cap(1)
        self._owner.refused()
        if len(self._lanes) > 1:
            self._hand_back(lane)
            lane.end = lane.at
            return  # one connection is enough for an upstream that ignores ranges
        await self._ingest.settle()
        here, position = Spans(self._ingest.spans), transfer.first
        lane.end = self._total
        async for chunk in transfer.chunks(position, None):
            after = position + len(chunk)
            if after > self._total:
                raise BadAnswer(f"upstream sends more than the {self._total} bytes of {self._owner.digest}")
            begin = position
            for gap in here.gaps(after, position):
                await self._compare(position, chunk[position - begin : gap.start - begin])
                lane.at = gap.start
                await self._keep(lane, chunk[gap.start - begin : gap.end - begin])
                position = gap.end
            await self._compare(position, chunk[position - begin :])
            position = after
        lane.at = position

    async def _compare(self, position: int, data: bytes) -> None:
        """See that what upstream sends again is what is here."""
        if data and await asyncio.to_thread(os.pread, self._ingest.fd, len(data), position) != data:
            raise DisputedError(f"upstream sends other bytes than before for {self._owner.digest}")

    async def _keep(self, lane: _Lane, chunk: bytes) -> None:
        if chunk:
            begins = not self._ingest.accepted
            self._owner.came(lane.at + len(chunk), len(chunk))
            await self._ingest.write(lane.at, chunk)
            lane.at += len(chunk)
            lane.bytes += len(chunk)
            self._pace.arrived(len(chunk))
            if begins and lane.at < lane.end:
                await self._ingest.settle()
                await asyncio.sleep(_HEAD_START)
