"""One download, read in two processes: asked for once, whoever comes, waits, stays behind, runs ahead or leaves."""

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.e2e.client import begin, rest
from tests.e2e.conftest import Place
from tests.e2e.proxy import Proxy
from tests.fakes.script import Quirk
from tests.web.wire import Wire
from tests.workers.processes.conftest import MIB, PATIENCE, connections, pids

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("workers downloads")]

WORKERS = (2,)
PLACES = 10
UPSTREAM = {"idle_timeout": PATIENCE}
CLIENTS = 50


async def results(place: Place) -> dict[str, float]:
    """How many blobs this registry's clients got, by what the cache did."""
    samples = re.findall(
        rf'^mirrorproxy_cache_requests_total{{kind="blob",registry="{place.registry}",result="(\w+)"}} (.+)$',
        await place.proxy.metrics(),
        re.MULTILINE,
    )
    return {result: float(number) for result, number in samples if float(number)}


def read(proxy: Proxy) -> int:
    """How many bytes the workers have read from files, and not from sockets."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split()[1]) for pid in pids(proxy))


async def whole(wire: Wire, place: Place, digest: str, **headers: str) -> bytes:
    """The blob, or the part that was asked for, on this connection."""
    answer = await wire.ask(place.path("blobs", digest), headers=headers)
    assert (answer.status in (200, 206), answer.complete) == (True, True)
    return answer.body


async def test_many_clients_of_one_cold_blob(place: Place) -> None:
    """Of both workers: one GET, all bytes, which go from the file past the core; one of them is counted as the miss."""
    data = os.urandom(3 * MIB)
    digest = place.blob(data)
    before = read(place.proxy)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connections(place.proxy, CLIENTS // 2) as (some, others), asyncio.TaskGroup() as group:
        clients = [group.create_task(whole(wire, place, digest)) for wire in (*some, *others)]
        async with asyncio.timeout(20):
            while await place.proxy.total("fill_readers") < CLIENTS:
                await asyncio.sleep(0.02)
        go_on.set()
    assert all(client.result() == data for client in clients)
    assert read(place.proxy) - before >= CLIENTS * len(data)
    assert place.asked() == ["GET blob", "GET cdn"]
    assert await results(place) == {"miss": 1, "coalesced": CLIENTS - 1}
    assert await place.proxy.total("response_bytes_total", registry=place.registry) == CLIENTS * len(data)
    await place.proxy.idle()
    async with connections(place.proxy) as ((one,), (other,)):
        assert await whole(one, place, digest) == await whole(other, place, digest) == data
    assert await results(place) == {"miss": 1, "coalesced": CLIENTS - 1, "hit": 2}
    assert place.asked() == ["GET blob", "GET cdn"]


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
async def test_the_fast_the_slow_and_the_late(place: Place, known: bool) -> None:
    """Each at its own pace: who takes nothing for a while, who is always at the end, who comes when half is here."""
    data = os.urandom(24 * MIB)
    digest = place.blob(data)
    half = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=12 * MIB, release=half, chunked=not known))
    async with connections(place.proxy, 2) as ((fast, late), (slow, other)), asyncio.TaskGroup() as group:
        slow.send(place.path("blobs", digest))
        running = group.create_task(whole(fast, place, digest))
        async with asyncio.timeout(20):
            while place.hub.sent("cdn") < 12 * MIB:
                await asyncio.sleep(0.01)
        latecomers = [group.create_task(whole(wire, place, digest)) for wire in (late, other)]
        async with asyncio.timeout(20):
            while await place.proxy.total("fill_readers") < 4:
                await asyncio.sleep(0.02)
        half.set()
        assert await running == data
        for latecomer in latecomers:
            assert await latecomer == data
        assert (await slow.answer()).body == data
    assert len(place.seen("cdn")) == 1


async def test_a_client_that_leaves(place: Place) -> None:
    """Takes nothing from the others, of its own worker and of the other, though it was the one that began, and though
    its worker asked the core in its name.
    """
    data = os.urandom(8 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connections(place.proxy, 3) as (some, others), asyncio.TaskGroup() as group:
        await begin(some[0], place.path("blobs", digest), MIB)  # and waits for more
        staying = [group.create_task(whole(wire, place, digest)) for wire in (*some[1:], *others[1:])]
        await begin(others[0], place.path("blobs", digest), MIB)
        async with asyncio.timeout(20):
            while await place.proxy.total("fill_readers") < 6:
                await asyncio.sleep(0.02)
            for leaving in (some[0], others[0]):
                leaving.writer.transport.abort()
            while await place.proxy.total("fill_readers") > 4:
                await asyncio.sleep(0.02)
        go_on.set()
    assert [client.result() == data for client in staying] == [True] * 4
    assert len(place.seen("cdn")) == 1


async def test_all_clients_leave(place: Place) -> None:
    """The download goes on, and nobody reads it any more; it is a hit for both workers then."""
    data = os.urandom(4 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connections(place.proxy) as ((one,), (other,)):
        await begin(one, place.path("blobs", digest), MIB)
        await begin(other, place.path("blobs", digest), MIB)
    async with asyncio.timeout(20):
        while await place.proxy.total("fill_readers"):
            await asyncio.sleep(0.02)
    go_on.set()
    await place.proxy.idle()
    async with connections(place.proxy) as ((one,), (other,)):
        assert await whole(one, place, digest) == await whole(other, place, digest) == data
    assert len(place.seen("cdn")) == 1


async def test_a_range_far_ahead(place: Place) -> None:
    """Of the other worker's client: it does not wait for what is before, which upstream sends slowly, and no byte is
    sent twice.
    """
    data = os.urandom(48 * MIB)
    image = place.image(data)
    digest = image.layers[0].digest
    await place.get("manifests", "1")
    place.hub.script.always("cdn", Quirk(rate=8 * MIB))
    start = 40 * MIB
    async with connections(place.proxy) as ((one,), (other,)), asyncio.TaskGroup() as group:
        running = group.create_task(whole(one, place, digest))
        async with asyncio.timeout(20):
            while not place.seen("cdn"):
                await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        assert await whole(other, place, digest, Range=f"bytes={start}-{start + MIB - 1}") == data[start : start + MIB]
        assert asyncio.get_running_loop().time() - began < 2.5, "the front alone takes 5 s of one connection"
        assert not running.done()
        place.hub.script.clear()
        assert await running == data


async def test_a_throttle_for_each_connection(place: Place) -> None:
    """The download has several connections, and readers in both workers have the pieces in order."""
    data = os.urandom(32 * MIB)
    image = place.image(data)
    await place.get("manifests", "1")
    place.hub.script.always("cdn", Quirk(rate=6 * MIB))
    async with connections(place.proxy, 2) as (some, others), asyncio.TaskGroup() as group:
        clients = [group.create_task(whole(wire, place, image.layers[0].digest)) for wire in (*some, *others)]
    assert [client.result() == data for client in clients] == [True] * 4
    assert len(place.seen("cdn")) > 1
    assert sum(seen.sent for seen in place.seen("cdn")) < len(data) + 4 * MIB


async def test_wrong_bytes(place: Place) -> None:
    """Fail all who read them, in both workers, before the end: nobody takes them for the blob."""
    data = os.urandom(2 * MIB)
    image = place.image(data)
    digest = image.layers[0].digest
    await place.get("manifests", "1")
    place.hub.script.always("cdn", Quirk(corrupt=True))
    place.proxy.tolerate(digest)
    async with connections(place.proxy) as ((one,), (other,)):
        for wire in (one, other):
            wire.send(place.path("blobs", digest))
        for wire in (one, other):
            assert len((await rest(wire)).partition(b"\r\n\r\n")[2]) < len(data)
    place.hub.script.clear()
    assert (await place.get("blobs", digest)).body == data
