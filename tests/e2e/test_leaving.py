"""Clients that leave in the middle, take nothing, or come by the hundred: the others notice nothing."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from mirrorproxy.names import Digest
from tests.e2e.client import begin, connect
from tests.e2e.conftest import Place
from tests.e2e.proxy import Proxy, until
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e leaving")]

WORKERS = (1, 2)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_to_tell(proxy: Proxy) -> Iterator[None]:
    """A client that leaves is no error, and nothing to warn of."""
    yield
    assert [line for line in proxy.log() if line["level"] != "info"] == []


def sockets(proxy: Proxy) -> int:
    """How many sockets it has open: clients', those upstream, and its own few."""
    return sum(name.startswith("socket:") for name in proxy.descriptors())


def files(proxy: Proxy, folder: str) -> list[str]:
    """What it has open in a folder of the cache."""
    return [name for name in proxy.descriptors() if f"{proxy.cache / folder}/" in name]


async def test_the_fill_goes_on_alone(place: Place) -> None:
    """The only client leaves: all of the blob is fetched, once, and the next client has it from the cache."""
    data = os.urandom(4 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connect(place.proxy.address) as wire:
        headers, _ = await begin(wire, place.path("blobs", digest), MIB // 2)
    line = await place.proxy.logged(headers["X-Request-ID"])
    assert (line["status"], line["aborted"], line["cache"]) == (200, True, "miss")
    assert MIB // 2 <= line["bytes"] <= MIB
    assert await place.proxy.total("fills_inflight") == 1
    assert await place.proxy.total("fill_readers") == 0
    go_on.set()
    await until(lambda: place.kept(digest).exists())
    assert place.kept(digest).read_bytes() == data
    assert (await place.get("blobs", digest)).headers["Cache-Status"] == "mirrorproxy; hit"
    assert place.asked() == ["GET blob", "GET cdn"]


async def test_the_others_are_served_on(place: Place) -> None:
    """The one who began it leaves, and some who joined: those who stay get all of it, from one transfer."""
    data = os.urandom(4 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connect(place.proxy.address) as first:
        await begin(first, place.path("blobs", digest), 1000)
        stay = [asyncio.get_running_loop().create_task(place.get("blobs", digest)) for _ in range(5)]
        leave = [asyncio.get_running_loop().create_task(place.get("blobs", digest)) for _ in range(5)]
        while await place.proxy.total("fill_readers") < 11:
            await asyncio.sleep(0.02)
    for task in leave:
        task.cancel()
    while await place.proxy.total("fill_readers") > 5:
        await asyncio.sleep(0.02)
    go_on.set()
    for answer in await asyncio.gather(*stay):
        assert (answer.complete, answer.body == data) == (True, True)
    await asyncio.gather(*leave, return_exceptions=True)
    assert place.asked() == ["GET blob", "GET cdn"]


async def test_one_that_reads_nothing(place: Place) -> None:
    """Keeps nobody back: the download, and those who read it, are done while it still sleeps."""
    data = os.urandom(32 * MIB)
    digest = place.blob(data)
    async with connect(place.proxy.address, limit=1 << 12) as sleeper:
        await begin(sleeper, place.path("blobs", digest), 1)
        answer = await place.get("blobs", digest)
        assert (answer.complete, answer.body == data) == (True, True)
        await until(lambda: place.kept(digest).exists())
        rest = await sleeper.reader.readexactly(len(data) - 1)  # and it misses nothing
        assert rest == data[1:]
    assert len(place.seen("cdn")) <= 8  # one connection, or some more for a large blob


async def test_leaving_before_the_headers(place: Place) -> None:
    """While upstream has not answered yet: the answer is kept for the next one."""
    image = place.image()
    answer_now = asyncio.Event()
    place.hub.script.always("manifest", Quirk(hold=answer_now))
    place.hub.script.always("blob", Quirk(hold=answer_now))
    for path in (place.path("manifests", "1"), place.path("blobs", image.layers[0].digest)):
        async with connect(place.proxy.address) as wire:
            wire.send(path)
            kind = "manifest" if "manifests" in path else "blob"
            while not any(seen.authorization for seen in place.seen(kind)):
                await asyncio.sleep(0.01)
    answer_now.set()
    await until(lambda: place.kept(image.layers[0].digest).exists() and place.kept(image.manifest.digest).exists())
    assert (await place.get("blobs", image.layers[0].digest)).headers["Cache-Status"] == "mirrorproxy; hit"
    assert place.asked() == ["GET manifest", "GET blob", "GET cdn"]

    def gone() -> list[tuple[bool, int]]:
        lines = [line for line in place.proxy.requests() if place.repository in line["path"]]
        return [(line["aborted"], line["bytes"]) for line in lines if line["status"] == 499]

    await until(lambda: gone() == [(True, 0)] * 2)


async def test_nothing_stays_open(place: Place) -> None:
    """Hundreds who leave at any point, cold and warm: as many descriptors as before, no transfer that hangs on."""
    data = os.urandom(MIB)

    async def leave(digest: Digest, size: int, *, reset: bool) -> None:
        async with connect(place.proxy.address, limit=1 << 12) as wire:
            wire.send(place.path("blobs", digest))
            if size:
                await wire.head()
                await wire.reader.readexactly(size - 1)
            if reset:
                raw = wire.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async def crowd() -> None:
        digest = place.blob(data + os.urandom(4))
        for _ in range(2):  # cold, then warm
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(leave(digest, (number % 5) * 50_000, reset=number % 3 == 0))
            await place.proxy.idle()

    async def settled(most: int) -> int:
        """Descriptors are closed a moment after the clients that they were for."""
        for _ in range(200):
            if (count := sockets(place.proxy)) <= most:
                return count
            await asyncio.sleep(0.01)
        return sockets(place.proxy)

    await crowd()
    await settled(0)
    before = sockets(place.proxy)
    for _ in range(2):
        await crowd()
    assert await settled(before) <= before
    assert files(place.proxy, "partial") == []
    assert len(files(place.proxy, "blobs")) <= 20
    assert not [name for name in place.proxy.descriptors() if name.endswith("(deleted)")]
    assert await place.proxy.total("fill_readers") == 0
    assert len(place.seen("cdn")) == 3
