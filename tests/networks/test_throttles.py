"""A throttle for each connection, and clients that ask for one blob by several ranges: what upstream sees of it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from mirrorproxy.names import Digest
from mirrorproxy.tasks import Tasks
from tests.e2e.client import begin, connect
from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.hub import Hub
from tests.fakes.relay import Relay
from tests.fakes.script import Quirk, Seen
from tests.networks.conftest import MIB, Serve, asked, at, check_sent_once, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 48 * MIB
EACH = Quirk(rate=4 * MIB)
"""The throttle."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain() -> AsyncIterator[Hub]:
    """A registry that keeps its blobs itself, and wants no token: one connection is all that it takes to relay it."""
    async with Hub(auth="none", redirects=False) as plain:
        yield plain


@asynccontextmanager
async def watched(sent: Callable[[], list[int]]) -> AsyncIterator[list[int]]:
    """Counts, ten times a second, over how many connections bytes came, by what each of them has sent."""
    counts: list[int] = []

    async def watch() -> None:
        before: list[int] = []
        while True:
            await asyncio.sleep(0.1)
            now = sent()
            counts.append(sum(1 for number, size in enumerate(now) if size > sum(before[number : number + 1])))
            before = now

    tasks = Tasks()
    tasks.start(watch(), name="watch")
    try:
        yield counts
    finally:
        await tasks.aclose()


def storage(place: Place) -> Callable[[], list[int]]:
    """What the storage has sent, answer by answer."""
    return lambda: [seen.sent for seen in place.seen("cdn")]


def each_at_its_beginning(place: Place, quirk: Quirk) -> list[int]:
    """Has the storage answer with this quirk; how many answers were under way when each began, itself among them."""
    counts: list[int] = []

    def choose(_: Seen) -> Quirk:
        counts.append(1 + sum(seen.is_under_way for seen in place.seen("cdn")))
        return quirk

    place.hub.script.when("cdn", choose)
    return counts


def layer(place: Place, size: int = SIZE) -> tuple[bytes, Digest]:
    """An image of one layer."""
    data = os.urandom(size)
    return data, place.image(data).layers[0].digest


async def pull(place: Place, data: bytes, digest: Digest) -> None:
    """A client pulls all of it."""
    await place.get("manifests", "1")
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    await until(place.kept(digest).exists)


async def test_a_throttle_for_each_connection(place: Place) -> None:
    """The default: begins with one, decides within half a second, and comes to four, never more; each byte is sent
    once.
    """
    data, digest = layer(place)
    begun = each_at_its_beginning(place, EACH)
    async with watched(storage(place)) as counts:
        await pull(place, data, digest)
    assert begun[:4] == [1, 2, 3, 4]
    assert max(begun) == 4, begun
    first = counts.index(1)
    assert counts.index(2) - first <= 8, counts
    seen = place.seen("cdn")
    assert seen[0].range is None
    check_sent_once(seen, SIZE)
    assert await place.proxy.total("fill_connections", registry=place.registry) == 0


@pytest.mark.parametrize("most", [1, 2])
async def test_so_many_connections(serve: Serve, hub: Hub, most: int) -> None:
    """`connections` for one blob, and never more; with 1 it is one request."""
    async with serve(connections=most) as proxy:
        place = at(hub, proxy)
        data, digest = layer(place, 24 * MIB)
        begun = each_at_its_beginning(place, Quirk(rate=8 * MIB // most))
        await pull(place, data, digest)
        assert max(begun) == most, begun
        assert (len(place.seen("cdn")) == 1) is (most == 1)
        check_sent_once(place.seen("cdn"), 24 * MIB)


async def test_a_small_blob(place: Place) -> None:
    """Below `parallel_from`, by default 16 MiB, there is one request."""
    data, digest = layer(place, 16 * MIB - 1)
    place.hub.script.always("cdn", Quirk(rate=8 * MIB))
    await pull(place, data, digest)
    assert asked(place.seen("cdn")) == [None]


async def test_a_line_that_is_full(serve: Serve, plain: Hub) -> None:
    """What all connections have together has a limit: a second one is tried, does not pay, and is given up."""
    async with Relay(plain.registry.host, plain.registry.port, rate=12 * MIB) as relay:
        async with serve(endpoints=[relay.url]) as proxy:
            place = at(plain, proxy)
            data, digest = layer(place)
            async with watched(lambda: list(relay.carried)) as counts:
                await pull(place, data, digest)
        assert max(counts) <= 2
        half = counts[len(counts) // 2 :]
        assert half.count(2) <= 2, counts
        assert sum(relay.carried) <= SIZE * 1.05


async def test_an_upstream_that_ignores_ranges(place: Place) -> None:
    """It is found out by one request, and has one connection from then on: the one that it began with."""
    data, digest = layer(place, 32 * MIB)
    place.hub.script.always("cdn", Quirk(rate=12 * MIB, ignore_range=True))
    await pull(place, data, digest)
    seen = place.seen("cdn")
    assert len(seen) == 2
    assert seen[0].sent == 32 * MIB
    assert seen[1].sent <= 2 * MIB


@pytest.mark.parametrize("wait", [{}, {"Retry-After": "60"}], ids=["at any time", "for a minute"])
@pytest.mark.parametrize("status", [429, 503])
async def test_an_upstream_that_wants_no_more_connections(place: Place, status: int, wait: dict[str, str]) -> None:
    """It says so to the second one: there is no other for that blob, and the first one brings all of it."""
    data, digest = layer(place, 32 * MIB)
    refuse = Quirk(status=status, headers=wait)
    place.hub.script.when("cdn", lambda seen: refuse if seen.range else Quirk(rate=10 * MIB))
    await pull(place, data, digest)
    good = [seen for seen in place.seen("cdn") if seen.status == 200]
    assert [seen.sent for seen in good] == [32 * MIB]
    refused = [seen for seen in place.seen("cdn") if seen.status == status]
    assert len({seen.range for seen in refused}) == 1
    # Three tries of that one where it may be a moment's trouble, each at where the redirect led before, and leads now.
    assert len(refused) <= (6 if status == 503 and not wait else 2)


async def test_connections_that_break(place: Place) -> None:
    """Several at a time, each of them every 3 MiB: each byte is still sent once."""
    data, digest = layer(place)
    place.hub.script.always("cdn", Quirk(rate=4 * MIB, cut=3 * MIB))
    async with watched(storage(place)) as counts:
        await pull(place, data, digest)
    assert max(counts) > 1
    check_sent_once(place.seen("cdn"), SIZE)


async def test_a_slow_one_among_them(place: Place) -> None:
    """What the slowest connection has left is taken over by the others: by itself it would take half a minute."""
    size = 64 * MIB
    data, digest = layer(place, size)
    breaks, slow = Quirk(rate=4 * MIB, cut=8 * MIB), Quirk(rate=MIB // 4)
    quirks = iter([EACH, breaks, EACH, EACH, slow])
    place.hub.script.when("cdn", lambda seen: next(quirks, EACH))
    async with asyncio.timeout(15):
        await pull(place, data, digest)
    assert place.seen("cdn")[4].sent <= 3 * MIB
    check_sent_once(place.seen("cdn"), size)


async def test_one_connection_of_several_hangs(serve: Serve, hub: Hub) -> None:
    """What it was to bring comes by another one; the client waits for that alone."""
    async with serve(idle_timeout="1s") as proxy:
        place = at(hub, proxy)
        data, digest = layer(place)
        hub.script.next("cdn", EACH, Quirk(rate=4 * MIB, stall=MIB))
        hub.script.always("cdn", EACH)
        await pull(place, data, digest)
        check_sent_once(place.seen("cdn"), SIZE)


async def test_the_front_comes_first(place: Place) -> None:
    """More connections take nothing from the one whose bytes a client waits for."""
    data, digest = layer(place)
    place.hub.script.always("cdn", EACH)
    await place.get("manifests", "1")
    async with connect(place.proxy.address, limit=64 << 10) as wire:
        await begin(wire, place.path("blobs", digest), SIZE // 4)
        seen = place.seen("cdn")
        assert len(seen) == 4
        assert starts(seen)[0] == 0
        assert seen[0].sent == max(each.sent for each in seen)
        async with asyncio.timeout(30):
            assert await wire.reader.readexactly(SIZE * 3 // 4) == data[SIZE // 4 :]


# Ranges.


async def test_a_range_behind_the_end(place: Place) -> None:
    """Of a cold blob, its size known or not: 416, and the blob comes nevertheless, each byte of it once."""
    for named in (False, True):
        place.hub.log.clear()
        _, digest = layer(place, 3 * MIB)
        if named:
            await place.get("manifests", "1")
        answer = await place.get("blobs", digest, Range=f"bytes={100 * MIB}-")
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{3 * MIB}")
        await until(place.kept(digest).exists)
        assert sum(seen.sent for seen in place.seen("cdn") if seen.status != 416) == 3 * MIB


async def test_a_range_far_ahead(place: Place) -> None:
    """While the front is on its way: it is fetched there, and has its bytes long before the front would be there."""
    data, digest = layer(place)
    place.hub.script.always("cdn", Quirk(rate=8 * MIB))
    await place.get("manifests", "1")
    start = SIZE * 3 // 4
    async with connect(place.proxy.address) as first, connect(place.proxy.address) as second:
        await begin(first, place.path("blobs", digest), 64 << 10)
        headers, part = await begin(second, place.path("blobs", digest), MIB, {"Range": f"bytes={start}-"})
        assert headers["Content-Range"] == f"bytes {start}-{SIZE - 1}/{SIZE}"
        assert part == data[start : start + MIB]
        assert place.hub.sent("cdn") <= SIZE // 2
    await until(place.kept(digest).exists)
    check_sent_once(place.seen("cdn"), SIZE)


async def test_a_range_alone(place: Place) -> None:
    """A client that lacks the end of a blob that is not here: that comes first, and then the rest of it."""
    data, digest = layer(place)
    await place.get("manifests", "1")
    start = SIZE * 3 // 4
    answer = await place.get("blobs", digest, Range=f"bytes={start}-")
    assert (answer.status, answer.complete, answer.body == data[start:]) == (206, True, True)
    await until(place.kept(digest).exists)
    assert starts(place.seen("cdn"))[0] == start
    check_sent_once(place.seen("cdn"), SIZE)


@pytest.mark.parametrize("connections", [1, 4])
async def test_twenty_open_ended_ranges(serve: Serve, hub: Hub, connections: int) -> None:
    """As containerd asks for a layer, each dropped when its part is there: one download, each byte sent once."""
    async with serve(connections=connections) as proxy:
        place = at(hub, proxy)
        size = 60 * MIB
        data, digest = layer(place, size)
        part = size // 20
        hub.script.always("cdn", Quirk(rate=6 * MIB if connections > 1 else 24 * MIB))
        await place.get("manifests", "1")

        async def one(start: int) -> None:
            async with connect(proxy.address, limit=64 << 10) as wire:
                wanted = {"Range": f"bytes={start}-"} if start else {}
                _, got = await begin(wire, place.path("blobs", digest), part, wanted)
                assert got == data[start : start + part]

        await asyncio.gather(*(one(number * part) for number in range(20)))
        await until(place.kept(digest).exists)
        check_sent_once(place.seen("cdn"), size)
        assert await proxy.total("cache_requests_total", kind="blob", result="miss") == 1
        assert await proxy.total("cache_requests_total", kind="blob", result="coalesced") == 19
        answer = await place.get("blobs", digest)
        assert (answer.headers["Cache-Status"], answer.body == data) == ("mirrorproxy; hit", True)
