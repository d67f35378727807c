"""Connections that break, hang or trickle, and upstreams that say "not now": the client sees one uninterrupted 200."""

import asyncio
import os

import pytest

from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.script import Quirk, Seen
from tests.networks.conftest import MIB, Serve, asked, at, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = 40
UPSTREAM = {"connections": 1, "idle_timeout": "1s"}
SIZE = 16 * MIB


async def pulls(place: Place, data: bytes, *quirks: Quirk) -> list[Seen]:
    """A client pulls `data` from a storage with these quirks, and notices nothing; the storage's requests."""
    digest = place.blob(data)
    place.hub.script.next("cdn", *quirks)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body == data
    assert answer.headers["Content-Length"] == str(len(data))
    await until(lambda: place.kept(digest).exists())
    return place.seen("cdn")


async def test_cut_every_mebibyte(place: Place) -> None:
    """64 connections for 64 MiB: each asks for the first missing byte, and no byte is sent twice."""
    data = os.urandom(64 * MIB)
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(cut=MIB))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    seen = place.seen("cdn")
    assert [each.range for each in seen] == [None, *(f"bytes={number * MIB}-" for number in range(1, 64))]
    assert place.hub.sent("cdn") == len(data)
    assert await place.proxy.total("fill_resumes_total", registry=place.registry) == 63
    assert await place.proxy.total("fill_reconnects_total", registry=place.registry, reason="broken") >= 63


async def test_cut_every_mebibyte_of_several_connections(serve: Serve, place: Place) -> None:
    """As many as there are at a time: no byte is sent twice either."""
    data = os.urandom(32 * MIB)
    async with serve(connections=4) as proxy:
        own = at(place.hub, proxy)
        digest = own.blob(data)
        own.hub.script.always("cdn", Quirk(cut=MIB, rate=24 * MIB))
        answer = await own.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert own.hub.sent("cdn") <= len(data) * 1.02


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("cut", [1, SIZE // 100, SIZE // 2, SIZE * 999 // 1000, SIZE - 1])
async def test_cut_somewhere(place: Place, cut: int, reset: bool) -> None:
    """At the first byte, at 1 %, 50 %, 99.9 % and before the last: goes on there. (A reset takes with it what was under
    way.)
    """
    seen = await pulls(place, os.urandom(SIZE), Quirk(cut=cut, reset=reset))
    assert len(seen) == 2 or (reset and cut == 1)
    if reset:
        assert starts(seen)[-1] <= cut
    else:
        assert starts(seen) == [0, cut]
        assert place.hub.sent("cdn") == SIZE


async def test_cut_within_the_head(place: Place) -> None:
    """No answer at all to a resume: the next one is for the same byte."""
    seen = await pulls(place, os.urandom(SIZE), Quirk(cut=MIB), Quirk(reset=True), Quirk(reset=True))
    assert starts(seen) == [0, MIB, MIB, MIB]


async def test_hangs_for_ever(place: Place) -> None:
    """No byte for `idle_timeout`, again and again: each time another connection goes on."""
    stops = [3 * MIB, 0, 5 * MIB]
    seen = await pulls(place, os.urandom(SIZE), *(Quirk(stall=stop) for stop in stops))
    assert starts(seen) == [0, 3 * MIB, 3 * MIB, 8 * MIB]
    assert place.hub.sent("cdn") == SIZE


async def test_hangs_before_the_head(place: Place) -> None:
    """No answer to a resume for `header_timeout`."""
    place.hub.script.next("blob", Quirk(), Quirk(hold=asyncio.Event()))
    seen = await pulls(place, os.urandom(SIZE), Quirk(cut=MIB))
    assert starts(seen) == [0, MIB]
    assert [each.status for each in place.seen("blob")] == [401, 307, 0, 307]


async def test_a_trickle(serve: Serve, place: Place) -> None:
    """Under `min_rate` a connection is made anew, and that is all: the transfer takes longer than the budget allows to
    be without progress, and comes to its end, since each connection brings some.
    """
    data = os.urandom(MIB)
    slow = Quirk(rate=400 << 10)
    timing = {"idle_timeout": "400ms", "header_timeout": "1s", "connect_timeout": "1s", "revalidate_timeout": "1s"}
    async with serve(fills={"budget": "1500ms"}, min_rate="1MiB/s", **timing) as proxy:
        own = at(place.hub, proxy)
        digest = own.blob(data)
        own.hub.script.always("cdn", slow)
        began = asyncio.get_running_loop().time()
        answer = await own.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert asyncio.get_running_loop().time() - began > 1.5
        seen = own.seen("cdn")
        assert len(seen) >= 4
        assert starts(seen) == sorted(set(starts(seen))), "each one brought something"
        assert own.hub.sent("cdn") <= len(data) + len(seen) * (128 << 10)
        assert await proxy.total("fill_reconnects_total", reason="slow") == len(seen) - 1


async def test_an_honest_slow_link(serve: Serve, place: Place) -> None:
    """Without `min_rate` it is one connection, however long it takes: neither the budget nor a time-out ends it."""
    data = os.urandom(200 << 10)
    timing = {"idle_timeout": "400ms", "header_timeout": "1s", "connect_timeout": "1s", "revalidate_timeout": "1s"}
    async with serve(fills={"budget": "1100ms"}, **timing) as proxy:
        own = at(place.hub, proxy)
        digest = own.blob(data)
        own.hub.script.always("cdn", Quirk(rate=80 << 10))
        began = asyncio.get_running_loop().time()
        answer = await own.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert asyncio.get_running_loop().time() - began > 2
        assert asked(own.seen("cdn")) == [None]


@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("kind", ["cdn", "blob"])
async def test_a_storm(place: Place, kind: str, status: int) -> None:
    """A dozen refusals between one connection and the next, then all is well: at the registry, and at the storage."""
    storm = [Quirk(status=status)] * (5 if status == 429 else 9)  # of which a 5xx is asked three times at once
    place.hub.script.next("cdn", Quirk(cut=MIB))
    place.hub.script.next(kind, *([Quirk()] if kind == "blob" else []), *storm)
    seen = await pulls(place, os.urandom(4 * MIB))
    good = [each for each in seen if each.status != status]
    assert starts(good) == [0, MIB]
    assert sum(each.sent for each in good) == 4 * MIB
    assert [each.status for each in place.seen(kind)].count(status) == len(storm)


@pytest.mark.parametrize("status", [503, 429])
async def test_a_storm_all_along(place: Place, status: int) -> None:
    """Every second answer is a refusal, every other one is cut: the client still sees one 200."""
    pairs = [quirk for _ in range(12) for quirk in (Quirk(cut=MIB), Quirk(status=status))]
    seen = await pulls(place, os.urandom(12 * MIB), *pairs)
    assert starts(seen)[::2] == [number * MIB for number in range(12)]


@pytest.mark.parametrize("status", [503, 429])
async def test_retry_after(place: Place, status: int) -> None:
    """The next try is not made before upstream wants it, and not much later."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    place.hub.script.when("blob", lambda seen: times.append(loop.time()))
    place.hub.script.next("blob", Quirk(), Quirk(status=status, headers={"Retry-After": "2"}))
    seen = await pulls(place, os.urandom(4 * MIB), Quirk(cut=MIB))
    assert starts(seen) == [0, MIB]
    assert [each.status for each in place.seen("blob")] == [401, 307, status, 307]
    assert 2 <= times[-1] - times[-2] < 6


async def test_down_for_longer_than_the_budget(serve: Serve, place: Place) -> None:
    """Time without progress ends a download; what came is kept, and the next client goes on there."""
    data = os.urandom(8 * MIB)
    timing = {"idle_timeout": "300ms", "header_timeout": "500ms", "connect_timeout": "500ms"}
    async with serve(fills={"budget": "1s"}, connections=1, revalidate_timeout="500ms", **timing) as proxy:
        own = at(place.hub, proxy)
        digest = own.blob(data)
        own.hub.script.next("cdn", *[Quirk(cut=MIB)] * 3)
        own.hub.script.always("cdn", Quirk(status=503))
        answer = await own.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body) == (200, False, data[: 3 * MIB])
        assert proxy.said("no new byte of")
        own.hub.script.clear()
        own.hub.log.clear()
        answer = await own.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert [each.range for each in own.seen("cdn")] == [f"bytes={3 * MIB}-"]
