"""Clients that come and go, downloads that wait for their turn, and what is refused when there are too many."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mirrorproxy.config import load
from mirrorproxy.fill import flight
from mirrorproxy.names import Digest
from mirrorproxy.service.service import Service
from tests.e2e.client import begin, connect
from tests.e2e.conftest import Place, settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.networks.conftest import MIB, Serve, asked, at, starts
from tests.web.wire import Answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPSTREAM = {"connections": 1, "idle_timeout": "8s"}  # clients gather before the upstream goes on
CLIENTS = 200
SIZE = 16 * MIB


async def crowd(stack: AsyncExitStack, place: Place, path: str, size: int) -> list[Any]:
    """200 clients on connections of their own, each of which has the first `size` bytes."""
    wires = [await stack.enter_async_context(connect(place.proxy.address)) for _ in range(CLIENTS)]
    await asyncio.gather(*(begin(wire, path, size) for wire in wires))
    return wires


async def readers(proxy: Proxy, count: int) -> None:
    """Wait until so many clients read from downloads."""
    async with asyncio.timeout(20):
        while await proxy.total("fill_readers") != count:
            await asyncio.sleep(0.02)


async def fills(proxy: Proxy, count: int) -> None:
    """Wait until there are so many downloads."""
    async with asyncio.timeout(20):
        while await proxy.total("fills_inflight") != count:
            await asyncio.sleep(0.02)


async def test_199_of_200_clients_leave(place: Place) -> None:
    """In mid-flight, all at once: the last one has all bytes of one transfer."""
    data = os.urandom(SIZE)
    digest, go_on = place.blob(data), asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=SIZE // 2, release=go_on))
    async with AsyncExitStack() as stack:
        wires = await crowd(stack, place, place.path("blobs", digest), 1 * MIB)
        await readers(place.proxy, CLIENTS)
        for wire in wires[1:]:
            wire.writer.transport.abort()
        await readers(place.proxy, 1)
        go_on.set()
        async with asyncio.timeout(30):
            assert await wires[0].reader.readexactly(SIZE - MIB) == data[MIB:]
    assert asked(place.seen("cdn")) == [None]
    assert place.hub.sent("cdn") == SIZE


async def test_all_clients_leave(place: Place) -> None:
    """By default the download goes on to its end, and the next client finds it here."""
    data = os.urandom(SIZE)
    digest, go_on = place.blob(data), asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with AsyncExitStack() as stack:
        await crowd(stack, place, place.path("blobs", digest), 1000)
        await readers(place.proxy, CLIENTS)
    await readers(place.proxy, 0)
    go_on.set()
    await until(place.kept(digest).exists)
    answer = await place.get("blobs", digest)
    assert (answer.headers["Cache-Status"], answer.body == data) == ("mirrorproxy; hit", True)
    assert asked(place.seen("cdn")) == [None]
    assert await place.proxy.total("fills_abandoned_total", registry=place.registry) == 0


async def test_a_client_that_leaves_before_the_head(place: Place) -> None:
    """It changes nothing either: upstream is not asked again by the next one."""
    data = os.urandom(MIB)
    digest, hold = place.blob(data), asyncio.Event()
    place.hub.script.next("cdn", Quirk(hold=hold))
    async with connect(place.proxy.address) as wire:
        wire.send(place.path("blobs", digest))
        await until(lambda: bool(place.seen("cdn")))
    await readers(place.proxy, 0)
    hold.set()
    assert (await place.get("blobs", digest)).body == data
    assert asked(place.seen("cdn")) == [None]


@pytest.mark.parametrize("abandoned", ["stop", {"linger": "300ms"}])
async def test_a_download_that_may_be_given_up(serve: Serve, hub: Hub, abandoned: Any) -> None:
    """When the last of its clients has left, at once or after a while. What came is kept; the next client goes on."""
    data = os.urandom(SIZE)
    async with serve(fills={"abandoned": abandoned}, connections=1) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        hub.script.next("cdn", Quirk(stall=4 * MIB))
        async with connect(proxy.address) as first, connect(proxy.address) as second:
            await begin(first, place.path("blobs", digest), MIB)
            await begin(second, place.path("blobs", digest), 4 * MIB)
            first.writer.transport.abort()
            await readers(proxy, 1)
            assert await proxy.total("fills_inflight") == 1
        began = asyncio.get_running_loop().time()
        await fills(proxy, 0)
        assert asyncio.get_running_loop().time() - began < 2
        assert await proxy.total("fills_abandoned_total") == 1
        answer = await place.get("blobs", digest)
        assert (answer.complete, answer.body == data) == (True, True)
        assert starts(place.seen("cdn")) == [0, 4 * MIB]
        assert hub.sent("cdn") == SIZE


async def test_a_client_that_comes_back_in_time(serve: Serve, hub: Hub) -> None:
    """A download that lingers is as good as new."""
    data = os.urandom(SIZE)
    async with serve(fills={"abandoned": {"linger": "1s"}}, connections=1) as proxy:
        place = at(hub, proxy)
        digest, go_on = place.blob(data), asyncio.Event()
        hub.script.next("cdn", Quirk(stall=4 * MIB, release=go_on))
        async with connect(proxy.address) as wire:
            await begin(wire, place.path("blobs", digest), 4 * MIB)
        await readers(proxy, 0)
        async with connect(proxy.address) as wire:
            _, first = await begin(wire, place.path("blobs", digest), 4 * MIB)
            await asyncio.sleep(1.1)
            go_on.set()
            assert first + await wire.reader.readexactly(SIZE - 4 * MIB) == data
        assert asked(place.seen("cdn")) == [None]
        assert await proxy.total("fills_abandoned_total") == 0


async def test_clients_that_come_and_go(serve: Serve, hub: Hub) -> None:
    """Fifty times, each the moment the one before left, while downloads stop with their clients: the last one stays,
    and has all of it; no byte was fetched for nothing but what was under way.
    """
    data = os.urandom(SIZE)
    async with serve(fills={"abandoned": "stop"}, connections=1) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        hub.script.always("cdn", Quirk(rate=16 * MIB))
        for number in range(50):
            async with connect(proxy.address) as wire:
                wire.send(place.path("blobs", digest))
                await asyncio.sleep(number % 5 / 100)
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert starts(place.seen("cdn")) == sorted(starts(place.seen("cdn")))
        assert await proxy.total("fill_connections") == 0


async def test_what_was_fetched_ahead_may_be_given_up_too(serve: Serve, hub: Hub) -> None:
    """Once a client has asked for it, and left."""
    async with serve(fills={"abandoned": "stop"}, connections=1, prefetch="auto") as proxy:
        place = at(hub, proxy)
        layers = [os.urandom(2 * MIB) for _ in range(2)]
        image = place.image(*layers)
        place.hub.script.when(
            "cdn", lambda seen: Quirk(stall=MIB) if image.layers[1].digest.hex in seen.target else None
        )
        await place.get("manifests", "1")
        await place.get("blobs", image.layers[0].digest)
        await fills(proxy, 1)
        async with connect(proxy.address) as wire:
            await begin(wire, place.path("blobs", image.layers[1].digest), MIB)
        await fills(proxy, 0)
        assert await proxy.total("fills_abandoned_total") == 1


# Turns.


async def layers(place: Place, count: int, size: int = 1000) -> tuple[list[bytes], list[Digest]]:
    """Blobs that a manifest names which was pulled here: whose size is known, and that the repository has them."""
    data = [os.urandom(size) for _ in range(count)]
    image = place.image(*data)
    await place.get("manifests", "1")
    return data, [layer.digest for layer in image.layers]


async def asked_of_storage(place: Place, count: int) -> None:
    """Wait until there were so many requests for blobs."""
    await until(lambda: len(place.seen("cdn")) == count)


def order(place: Place, blobs: Sequence[str]) -> list[int]:
    """Which of the blobs the storage was asked for, in order."""
    return [
        next(i for i, digest in enumerate(blobs) if digest.partition(":")[2] in each.target)
        for each in place.seen("cdn")
    ]


@pytest.mark.parametrize("limits", [{"fills": {"max_active": 2}}, {"max_fills": 2}], ids=["in all", "of an upstream"])
async def test_so_many_at_a_time(serve: Serve, hub: Hub, limits: dict[str, Any]) -> None:
    """Never more; the others wait for their turn, in the order in which they were asked for, and all come."""
    async with serve(connections=1, **limits) as proxy:
        place = at(hub, proxy)
        data, blobs = await layers(place, 8, 300_000)
        gates = [asyncio.Event() for _ in blobs]
        hub.script.next("cdn", *(Quirk(hold=gate) for gate in gates))
        async with asyncio.TaskGroup() as group:
            clients = []
            for number, digest in enumerate(blobs, 1):
                clients.append(group.create_task(place.get("blobs", digest)))
                await fills(proxy, number)
            for number, gate in enumerate(gates):
                await asked_of_storage(place, min(number + 2, 8))
                gate.set()
        assert [client.result().body == each for client, each in zip(clients, data, strict=True)] == [True] * 8
        assert order(place, blobs) == list(range(8))


async def test_a_busy_upstream_keeps_back_no_other(serve: Serve, hub: Hub) -> None:
    """Its downloads wait; those of another one pass by."""
    proxy = serve(connections=1, max_fills=1)
    settings = proxy.settings["upstreams"]
    settings["quay.io"] = {**settings["docker.io"], "default": False}
    async with proxy:
        busy, other = at(hub, proxy), Place(hub, proxy, "quay.io", "team/other")
        hold = asyncio.Event()
        hub.script.next("cdn", Quirk(hold=hold))
        data = os.urandom(1000)
        _, blobs = await layers(busy, 3)
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(busy.get("blobs", digest)) for digest in blobs]
            await fills(proxy, 3)
            await until(lambda: bool(busy.seen("cdn")))
            assert (await other.get("blobs", other.blob(data))).body == data
            assert len(busy.seen("cdn")) == 1
            hold.set()
        assert all(client.result().complete for client in clients)


async def test_what_clients_wait_for_comes_first(serve: Serve, hub: Hub) -> None:
    """Before all that is fetched ahead of them, which comes in the order in which it will be asked for."""
    async with serve(connections=1, max_fills=1, prefetch="auto") as proxy:
        place = at(hub, proxy)
        image = place.image(*(os.urandom(1000) for _ in range(6)))
        blobs = [layer.digest for layer in image.layers]
        await place.get("manifests", "1")
        await place.get("blobs", image.config.digest)
        hub.log.clear()
        hold = asyncio.Event()
        hub.script.next("cdn", Quirk(hold=hold))
        async with asyncio.TaskGroup() as group:
            group.create_task(place.get("blobs", blobs[0]))
            await fills(proxy, 6)
            group.create_task(place.get("blobs", blobs[4]))
            await readers(proxy, 2)
            group.create_task(place.get("blobs", blobs[3]))
            await readers(proxy, 3)
            hold.set()
        await fills(proxy, 0)
        assert order(place, blobs) == [0, 3, 4, 1, 2, 5]


# Limits.


def check_refused(answer: Answer) -> None:
    """Check that it says: later."""
    assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


@pytest.mark.parametrize(
    "limits", [{"fills": {"max_active": 1, "max_waiting": 16}}, {"max_fills": 1}], ids=["in all", "of an upstream"]
)
async def test_too_many_wait(serve: Serve, hub: Hub, limits: dict[str, Any]) -> None:
    """503 with `Retry-After`, at once; who waits has not been forgotten; and then there is room again."""
    async with serve(connections=1, **limits) as proxy:
        place = at(hub, proxy)
        data, (*blobs, one_more) = await layers(place, 18)
        hold = asyncio.Event()
        hub.script.next("cdn", Quirk(hold=hold))
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(place.get("blobs", digest)) for digest in blobs]
            await fills(proxy, 17)
            began = asyncio.get_running_loop().time()
            answer = await place.get("blobs", one_more)
            assert asyncio.get_running_loop().time() - began < 1
            check_refused(answer)
            assert await proxy.total("refused_total", limit="fills") == 1
            joined = group.create_task(place.get("blobs", blobs[5]))  # a client more of what waits is no download more
            await readers(proxy, 18)
            hold.set()
        for client, each in zip([*clients, joined], [*data[:17], data[5]], strict=True):
            assert client.result().body == each
        assert (await place.get("blobs", one_more)).body == data[17]
        assert place.hub.count("cdn") == 18


async def test_too_many_read(serve: Serve, hub: Hub) -> None:
    """`fills.max_readers`, of all downloads: one more is told to come later, and nothing is begun for it. What is
    cached is served all the same, and whoever leaves makes room.
    """
    async with serve(fills={"max_readers": 3}) as proxy:
        place = at(hub, proxy)
        data, (here, first, second, third) = await layers(place, 4)
        assert (await place.get("blobs", here)).complete
        hold = asyncio.Event()
        hub.script.next("cdn", *[Quirk(hold=hold)] * 2)
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(place.get("blobs", digest)) for digest in (first, first)]
            async with connect(proxy.address) as wire:
                wire.send(place.path("blobs", second))
                await readers(proxy, 3)
                for digest in (first, third):
                    check_refused(await place.get("blobs", digest))
                assert await proxy.total("refused_total", limit="readers") == 2
                assert await proxy.total("fills_inflight") == 2
                assert (await place.get("blobs", here)).body == data[0]
            await readers(proxy, 2)
            assert (await place.get("blobs", third)).body == data[3]
            hold.set()
        assert [client.result().body for client in clients] == [data[1]] * 2


async def test_too_many_requests_upstream(serve: Serve, hub: Hub) -> None:
    """Beyond `max_connections` they wait for each other: as long as for an answer, `header_timeout`, and no longer."""
    async with serve(max_connections=1, header_timeout="1s") as proxy:
        place = at(hub, proxy)
        place.blob(b"something")
        hub.script.always("manifest", Quirk(stall=0))
        hub.script.always("manifest", Quirk(stall=0, body=b"never"), method="GET")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(place.get("manifests", "a"))
            await until(lambda: bool(place.seen("manifest")))
            began = asyncio.get_running_loop().time()
            others = [group.create_task(place.get("manifests", tag)) for tag in "bcd"]
            for other in others:
                check_refused(await other)
            assert 0.9 <= asyncio.get_running_loop().time() - began <= 3
            assert await proxy.total("refused_total", limit="connections") == 3
            assert {seen.target.rpartition("/")[2] for seen in place.seen("manifest")} == {"a"}
            hub.script.clear()
            hub.revoke_tokens()
            first.cancel()


async def test_nothing_is_fetched_ahead_beyond_the_limit(serve: Serve, hub: Hub) -> None:
    """Half of the places are for what clients ask for; a client sees nothing of what could not be fetched ahead."""
    async with serve(fills={"max_active": 1, "max_waiting": 16}, connections=1, prefetch="all") as proxy:
        place = at(hub, proxy)
        image = place.image(*(os.urandom(1000) for _ in range(30)))
        hold = asyncio.Event()
        hub.script.when("cdn", lambda seen: Quirk(hold=hold))
        assert (await place.get("manifests", "1")).status == 200
        await fills(proxy, 8)
        hold.set()
        await fills(proxy, 0)
        assert await proxy.total("fills_ahead_total") == 8
        for layer in image.layers:
            assert (await place.get("blobs", layer.digest)).complete


async def test_so_many_connections(serve: Serve, hub: Hub) -> None:
    """`max_connections` holds for all there is to ask of an upstream: what is more waits, and comes."""
    async with serve(max_connections=2) as proxy:
        place = at(hub, proxy)
        _, blobs = await layers(place, 12)
        hub.script.always("cdn", Quirk(delay=0.05))
        answers = await asyncio.gather(*(place.get("blobs", digest) for digest in blobs))
        assert all(answer.complete for answer in answers)
        assert len({seen.connection for seen in place.seen("cdn")}) == 2


# Headers.


async def test_who_waits_for_a_turn_has_headers(serve: Serve, hub: Hub) -> None:
    """At once, of a blob that a manifest names; the bytes follow when it is their turn. Nothing is asked for it."""
    async with serve(fills={"max_active": 1}) as proxy:
        place = at(hub, proxy)
        (_, data), (busy, waiting) = await layers(place, 2, MIB)
        hold = asyncio.Event()
        hub.script.next("cdn", Quirk(hold=hold))
        async with connect(proxy.address) as first, connect(proxy.address) as wire:
            first.send(place.path("blobs", busy))
            await until(lambda: bool(place.seen("cdn")))
            hub.log.clear()
            wire.send(place.path("blobs", waiting))
            async with asyncio.timeout(2):
                status, headers = await wire.head()
            assert (status, headers["Content-Length"]) == (200, str(MIB))
            assert place.asked() == [], "it still waits"
            hold.set()
            assert await wire.reader.readexactly(MIB) == data
            assert (await first.answer()).complete
        assert place.asked() == ["GET blob", "GET cdn"]


async def test_who_waits_for_a_turn_without_a_manifest(serve: Serve, hub: Hub) -> None:
    """A HEAD upstream says whether the repository has the blob: headers at once if it has, 404 at once if not."""
    async with serve(fills={"max_active": 1}) as proxy:
        place = at(hub, proxy)
        _, (busy,) = await layers(place, 1)
        data = os.urandom(MIB)
        waiting, absent = place.blob(data), Digest.of(b"nobody has this")
        hold = asyncio.Event()
        hub.script.next("cdn", Quirk(hold=hold))
        async with connect(proxy.address) as first, connect(proxy.address) as wire:
            first.send(place.path("blobs", busy))
            await until(lambda: bool(place.seen("cdn")))
            hub.log.clear()
            wire.send(place.path("blobs", waiting))
            async with asyncio.timeout(2):
                status, headers = await wire.head()
                assert (status, headers["Content-Length"]) == (200, str(MIB))
                assert place.asked() == ["HEAD blob", "HEAD cdn"]
                assert (await place.get("blobs", absent)).status == 404
            assert await proxy.total("fills_inflight") == 2, "nothing waits for what nobody has"
            hold.set()
            assert await wire.reader.readexactly(MIB) == data
            assert (await first.answer()).complete


async def headers_come_before_bytes(place: Place, least: float, most: float) -> None:
    """Check that a client has headers, though upstream does not answer, between `least` and `most` seconds later."""
    (data,), (digest,) = await layers(place, 1, MIB)
    hold = asyncio.Event()
    place.hub.script.next("cdn", Quirk(hold=hold))
    async with connect(place.proxy.address) as wire:
        began = asyncio.get_running_loop().time()
        wire.send(place.path("blobs", digest))
        async with asyncio.timeout(most):
            status, headers = await wire.head()
        assert asyncio.get_running_loop().time() - began >= least
        assert (status, headers["Content-Length"]) == (200, str(MIB))
        hold.set()
        assert await wire.reader.readexactly(MIB) == data


async def test_who_waits_for_an_answer_has_headers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a blob that a manifest names, when upstream has not answered for half of the time after which containerd gives
    up; the bytes follow. (In this process, where 15 s can be 0.3 s.)
    """
    monkeypatch.setattr(flight, "_PATIENCE", 0.3)
    hub.script.clear()
    hub.log.clear()
    upstreams = {"docker.io": upstream(hub, header_timeout="20s")}
    proxy = Proxy(tmp_path, settings(upstreams, fills={"budget": "1m"}))
    proxy.configure()
    service = Service((await asyncio.to_thread(load, proxy.config)).settings)
    try:
        await service.start()
        await headers_come_before_bytes(at(hub, proxy), 0.3, 10)
    finally:
        await service.stop()
        await service.aclose()


@pytest.mark.soak
async def test_who_waits_for_an_answer_has_headers_in_time(serve: Serve, hub: Hub) -> None:
    """Before containerd gives up after 30 s."""
    async with serve(fills={"budget": "10m"}, header_timeout="40s") as proxy:
        await headers_come_before_bytes(at(hub, proxy), 10, 25)


async def test_headers_are_no_promise_without_a_manifest(serve: Serve, hub: Hub) -> None:
    """Upstream's "no" to a blob that no manifest names is the client's answer, however many wait for it."""
    async with serve() as proxy:
        place = at(hub, proxy)
        digest, hold = place.blob(os.urandom(1000)), asyncio.Event()
        hub.script.next("blob", Quirk(hold=hold, status=404))
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(place.get("blobs", digest)) for _ in range(5)]
            await readers(proxy, 5)
            hold.set()
        assert [client.result().status for client in clients] == [404] * 5
        assert [seen.status for seen in hub.seen("blob")] == [401, 404]
