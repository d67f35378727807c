"""Several connections for one blob: when there are more, what each asks for, and when there is one again."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import pytest

from mirrorproxy.errors import BlobUnknown, RateLimited, ServerFailed, Unreachable, UpstreamError
from mirrorproxy.fill import Fills, Limits, Terms
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository, repository
from mirrorproxy.registry import MISS, Blob, FileBlob
from mirrorproxy.store.ingest import Partials
from tests.fill.conftest import Unlimited

ALPINE = repository("docker.io", "alpine")
MIB = 1 << 20
DATA = random.Random(5).randbytes(24 * MIB)


@dataclass
class Line:
    """An upstream that gives each connection `rate` bytes a second. Keeps the books: what was asked, what was sent."""

    data: bytes = DATA
    rate: float = 8 * MIB
    ignores_ranges: bool = False
    refuses_more_than: int = 99
    refusal: UpstreamError = field(default_factory=lambda: RateLimited("slow down"))
    asked: list[tuple[int, int | None]] = field(default_factory=list)
    sent: int = 0
    open: int = 0
    most_open: int = 0
    breaks: set[int] = field(default_factory=set)  # requests, by number, that break after 1 MiB
    denies: set[int] = field(default_factory=set)  # and those to which it says "not found"

    @property
    def digest(self) -> Digest:
        """Of the data."""
        return Digest.of(self.data)

    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> "Connection":
        """As `Source.blob`."""
        if self.open >= self.refuses_more_than:
            raise self.refusal
        self.asked.append((start, end))
        if len(self.asked) - 1 in self.denies:
            raise BlobUnknown("no such blob")
        if self.ignores_ranges:
            start, end = 0, None
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return Connection(self, start, len(self.data) if end is None else end, len(self.asked) - 1 in self.breaks)


@dataclass
class Connection:
    """One answer."""

    line: Line
    first: int
    end: int
    breaks: bool
    closed: bool = False
    outcome = MISS

    @property
    def digest(self) -> Digest:
        return self.line.digest

    @property
    def size(self) -> int:
        return len(self.line.data)

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        assert start == self.first
        step = 128 << 10
        while start < self.end:
            await asyncio.sleep(step / self.line.rate)
            if self.breaks and start - self.first >= MIB:
                raise Unreachable("the connection broke")
            data = self.line.data[start : min(start + step, self.end)]
            start += len(data)
            self.line.sent += len(data)
            yield data

    def blame(self, error: UpstreamError) -> None:
        pass

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self.line.open -= 1


def fills_with(partials: Partials, metrics: Metrics, limits: Limits) -> Fills:
    """Fills under these limits."""
    return Fills(partials, Unlimited(), metrics, Terms(budget=2, upstream=lambda _: limits))


async def read(blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    """All that `blob` gives."""
    async with aclosing(blob):
        return b"".join([chunk async for chunk in blob.chunks(start, end)])


@pytest.mark.parametrize("connections", [1, 2, 4])
async def test_a_throttle_is_beaten_by_as_many_connections_as_are_allowed(
    partials: Partials, metrics: Metrics, connections: int
) -> None:
    """Every byte once, over that many connections and no more."""
    limits = Limits(connections=connections, parallel_from=MIB)
    fills, line = fills_with(partials, metrics, limits), Line(rate=2 * MIB * 4 / connections)
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert line.most_open == connections
    assert line.sent <= len(DATA) + connections * (128 << 10), "no byte is asked for twice"
    assert (len(line.asked) == 1) is (connections == 1)
    await fills.aclose()
    assert metrics.collectors.get_sample_value("mirrorproxy_fill_connections", {"registry": "docker.io"}) == 0


async def test_a_small_blob_has_one_connection(partials: Partials, metrics: Metrics) -> None:
    """Below `parallel_from`."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=25 * MIB)), Line()
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert line.asked == [(0, None)]
    await fills.aclose()


@dataclass
class Watched(Connection):
    """Notes how much a reader may read when more is asked for than the first chunk."""

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        assert isinstance(self.line, WatchedLine)
        async for data in super().chunks(start, end):
            yield data
            self.line.ready.append(self.line.reader.ready(0))


@dataclass
class WatchedLine(Line):
    """Its one connection is `Watched`."""

    reader: FileBlob = field(init=False)
    ready: list[int] = field(default_factory=list)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Connection:
        """As `Source.blob`."""
        self.asked.append((start, end))
        self.open += 1
        return Watched(self, start, len(self.data), breaks=False)


async def test_the_first_bytes_are_a_readers_before_more_are_read(partials: Partials, metrics: Metrics) -> None:
    """An upstream that sends as fast as the machine can take it is not what they wait for."""
    line = WatchedLine(DATA[: 2 * MIB])
    blob = await fills_with(partials, metrics, Limits()).join(line, ALPINE, line.digest, None)
    line.reader = cast("FileBlob", blob)
    assert await read(blob) == line.data
    assert line.ready[0] == 128 << 10


async def test_what_comes_in_one_piece_has_nothing_to_wait_for(
    partials: Partials, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole at once."""
    monkeypatch.setattr("mirrorproxy.fill.lanes._HEAD_START", 3600.0)
    line = Line(DATA[: 100 << 10])
    assert await read(await fills_with(partials, metrics, Limits()).join(line, ALPINE, line.digest, None)) == line.data


async def test_an_upstream_that_ignores_ranges_is_asked_once_more_and_never_again(
    partials: Partials, metrics: Metrics
) -> None:
    """A 200 for a part: that connection is given up, the first one goes on alone."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line(ignores_ranges=True)
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert len(line.asked) == 2
    assert line.sent <= len(DATA) + MIB
    await fills.aclose()


@pytest.mark.parametrize("refusal", [RateLimited("429"), ServerFailed("503")])
async def test_an_upstream_that_asks_for_less_gets_less(
    partials: Partials, metrics: Metrics, refusal: UpstreamError
) -> None:
    """429 or 503 to one more connection: there is one from then on, and the pull does not notice."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line(refuses_more_than=1, refusal=refusal)
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert line.most_open == 1
    assert line.asked == [(0, None)]
    await fills.aclose()


async def test_broken_connections_take_nothing_along(partials: Partials, metrics: Metrics) -> None:
    """What one did not bring another asks for."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line(breaks={0, 1, 3})
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert line.sent <= len(DATA) + MIB
    await fills.aclose()


async def test_a_no_to_one_of_several_takes_nothing_along(partials: Partials, metrics: Metrics) -> None:
    """One storage host of many that lags behind: the others go on, and nothing is asked anew."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line(rate=4 * MIB, denies={1})
    assert await read(await fills.join(line, ALPINE, line.digest, len(DATA))) == DATA
    assert line.asked[0] == (0, None)
    assert line.sent <= len(DATA) + 4 * (128 << 10)
    await fills.aclose()


async def test_readers_far_ahead_get_their_bytes_from_there(partials: Partials, metrics: Metrics) -> None:
    """Open-ended ranges as containerd asks for them, each left early: one download, and no byte twice."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line()
    part = len(DATA) // 20
    starts = [number * part for number in range(20)]
    blobs = [await fills.join(line, ALPINE, line.digest, len(DATA), start=start) for start in starts]
    parts = await asyncio.gather(*(read(blob, at, at + part) for blob, at in zip(blobs, starts, strict=True)))
    assert b"".join(parts) == DATA[: 20 * part]
    await fills.drain(5)
    assert line.sent <= len(DATA) + 4 * (128 << 10)
    await fills.aclose()


async def test_a_lone_reader_in_the_middle_is_served_first(partials: Partials, metrics: Metrics) -> None:
    """A client that resumes at byte N of a blob that is not here: the first request is for N, then comes the rest."""
    fills, line = fills_with(partials, metrics, Limits(connections=1)), Line(rate=64 * MIB)
    assert (
        await read(await fills.join(line, ALPINE, line.digest, len(DATA), start=20 * MIB), 20 * MIB) == DATA[20 * MIB :]
    )
    await fills.drain(5)
    assert [start for start, _ in line.asked] == [20 * MIB, 0]
    assert line.sent <= len(DATA) + (128 << 10)
    await fills.aclose()


async def test_a_reader_far_ahead_ends_no_search(partials: Partials, metrics: Metrics) -> None:
    """It has its bytes at once, and the whole still comes over as many connections as make it faster."""
    fills, line = fills_with(partials, metrics, Limits(parallel_from=MIB)), Line(rate=2 * MIB)
    at, began = 18 * MIB, time.monotonic()
    front = await fills.join(line, ALPINE, line.digest, len(DATA))
    far = await fills.join(line, ALPINE, line.digest, len(DATA), start=at)
    async with asyncio.TaskGroup() as group:
        whole = group.create_task(read(front))
        assert await read(far, at, at + MIB) == DATA[at : at + MIB]
        assert time.monotonic() - began < 2, "the front would be there in 9 s"
    assert whole.result() == DATA
    assert line.most_open == 4
    assert line.sent <= len(DATA) + 4 * (128 << 10)
    assert time.monotonic() - began < 8, "12 s over one connection, 6 s over two, 3 s over four"
    await fills.aclose()


async def test_a_connection_under_the_least_rate_is_made_anew(partials: Partials, metrics: Metrics) -> None:
    """It only reconnects: a link that is slow throughout still comes to its end."""
    limits = Limits(connections=1, min_rate=4 * MIB, min_rate_over=0.3)
    fills, line = fills_with(partials, metrics, limits), Line(data=DATA[: 3 * MIB], rate=2 * MIB)
    assert await read(await fills.join(line, ALPINE, line.digest, 3 * MIB)) == line.data
    assert len(line.asked) > 2
    reconnects = metrics.collectors.get_sample_value(
        "mirrorproxy_fill_reconnects_total", {"registry": "docker.io", "reason": "slow"}
    )
    assert reconnects == len(line.asked) - 1
    await fills.aclose()


@pytest.mark.parametrize(("abandoned", "stops"), [(None, False), (0.0, True), (0.2, True)])
async def test_a_download_without_clients(
    partials: Partials, metrics: Metrics, abandoned: float | None, stops: bool
) -> None:
    """It goes on to its end, or stops now or after a while, and then goes on for the next client where it was."""
    fills = Fills(partials, Unlimited(), metrics, Terms(budget=2, abandoned=abandoned))
    line = Line(data=DATA[: 8 * MIB], rate=16 * MIB)
    blob = await fills.join(line, ALPINE, line.digest, 8 * MIB)
    await blob.wait(0)  # type: ignore[attr-defined]  # it is a FileBlob
    await blob.aclose()
    await fills.drain(5)
    assert (line.sent < 8 * MIB) is stops
    if stops:
        assert await read(await fills.join(line, ALPINE, line.digest, 8 * MIB)) == line.data
        assert line.asked[1][0] > 0
        assert line.sent <= 8 * MIB + (256 << 10)
    await fills.aclose()


async def test_a_client_that_comes_back_in_time_keeps_it(partials: Partials, metrics: Metrics) -> None:
    """Lingering ends when somebody reads again."""
    fills = Fills(partials, Unlimited(), metrics, Terms(budget=2, abandoned=0.2))
    line = Line(data=DATA[: 8 * MIB], rate=8 * MIB)
    blob = await fills.join(line, ALPINE, line.digest, 8 * MIB)
    await blob.aclose()
    assert await read(await fills.join(line, ALPINE, line.digest, 8 * MIB)) == line.data
    assert len(line.asked) == 1
    await fills.aclose()


async def test_lingering_begins_when_the_last_client_leaves(partials: Partials, metrics: Metrics) -> None:
    """And not when one left before that: clients come and go."""
    fills = Fills(partials, Unlimited(), metrics, Terms(budget=2, abandoned=0.6))
    line = Line(data=DATA[: 8 * MIB], rate=2 * MIB)
    for _ in range(2):
        blob = await fills.join(line, ALPINE, line.digest, 8 * MIB)
        await blob.aclose()
        await asyncio.sleep(0.4)
    assert len(fills) == 1, "0.8 s after the first one left, and 0.4 s after the other"
    await fills.drain(1)
    assert line.sent < 8 * MIB
    await fills.aclose()
