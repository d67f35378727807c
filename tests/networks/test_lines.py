"""Lines that are far, break at random, lose packets or are dead for a while, between the service and its upstream."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.conftest import Place, settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.relay import Line, Relay, breaking
from tests.networks.conftest import BUDGET, MIB, Serve, at, starts
from tests.networks.link import Link

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 24 * MIB
HEADS = 4 << 10
"""Bytes that are none of the blob, on a connection."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Hub]:
    """A registry that keeps its blobs itself, and wants no token: one connection is all that it takes to relay it."""
    async with Hub(auth="none", redirects=False) as hub:
        yield hub


@pytest.fixture
def data() -> bytes:
    """A blob."""
    return os.urandom(SIZE)


async def pull(place: Place, data: bytes) -> None:
    """A client pulls it, and notices nothing."""
    digest = place.blob(data)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    await until(place.kept(digest).exists)


# A line of our own.


async def test_the_relay_itself(hub: Hub) -> None:
    """Its delay, rate and count are what they are said to be: what is told by its tests is told by the clock."""
    loop, host, port = asyncio.get_running_loop(), hub.registry.host, hub.registry.port
    async with Relay(host, port, Line(delay=0.1, rate=MIB)) as relay:
        reader, writer = await asyncio.open_connection(*relay.url.removeprefix("http://").split(":"))
        began = loop.time()
        hub.add_blob("team/image", bytes(MIB // 2))
        digest = next(iter(hub.stock("team/image").blobs))
        writer.write(f"GET /v2/team/image/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert 0.4 <= loop.time() - began < 0.8, "two round trips"
        body = await reader.read(-1)
        assert 0.8 <= loop.time() - began < 1.6, "and half a second"
        assert body == bytes(MIB // 2)
        assert relay.carried == [len(head) + len(body)]
        writer.close()
    hub.stock("team/image").blobs.clear()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("connections", [1, 4])
async def test_breaks_at_random(serve: Serve, hub: Hub, data: bytes, connections: int, seed: int) -> None:
    """Ends, resets and silence, after 3 MiB on average, 20 ms away: each byte once, but for what a break takes."""
    line = breaking(random.Random(seed), 3 * MIB, delay=0.02)
    async with Relay(hub.registry.host, hub.registry.port, line) as relay:
        async with serve(endpoints=[relay.url], connections=connections, idle_timeout="500ms") as proxy:
            await pull(at(hub, proxy), data)
        assert len(relay.carried) >= 3
        if connections == 1:
            assert starts(hub.seen("blob")) == sorted(starts(hub.seen("blob")))
        assert sum(relay.carried) <= SIZE + len(relay.carried) * MIB


async def test_a_far_and_narrow_line(serve: Serve, hub: Hub, data: bytes) -> None:
    """200 ms of round trip at 12 MiB/s: one connection is made for one blob, and is as good as the line."""
    async with Relay(hub.registry.host, hub.registry.port, Line(delay=0.1), rate=12 * MIB) as relay:
        async with serve(endpoints=[relay.url], connections=1) as proxy:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await pull(at(hub, proxy), data)
            assert loop.time() - began < 4
        assert len(relay.carried) == 1
        assert relay.carried[0] <= SIZE + HEADS


# The kernel's.


@asynccontextmanager
async def linked(hub: Hub, directory: Path, **changes: Any) -> AsyncIterator[tuple[Link, Place]]:
    """A service at one end of a cable, and the hub at the other. Clients come by a unix socket."""
    hub.log.clear()
    with Link() as link:
        async with Relay(hub.registry.host, hub.registry.port, listener=link.listener()) as relay:
            address = f"unix:{directory / 's'}"
            upstreams = {"docker.io": upstream(hub, endpoints=[relay.url], **changes)}
            others = {"server": {"listen": [address]}, "fills": {"budget": BUDGET}}
            proxy = Proxy(directory, settings(upstreams, **others), within=link.within)
            proxy.address = address
            async with proxy:
                yield link, at(hub, proxy)


async def test_lost_packets(hub: Hub, tmp_path: Path, data: bytes) -> None:
    """One of 20, in each direction: the blob comes whole, and costs no more than what was lost."""
    async with linked(hub, tmp_path, idle_timeout="5s", header_timeout="5s", connect_timeout="5s") as (link, place):
        link.lose(0.05)
        await pull(place, data)
        link.lose(0)
        assert SIZE < link.sent() <= 1.15 * SIZE, "5 % again, and the heads of the packets"


async def test_a_narrow_cable(hub: Hub, tmp_path: Path, data: bytes) -> None:
    """A line of 8 MiB/s that drops what is more: as many connections as there are tried, each byte comes once."""
    async with linked(hub, tmp_path) as (link, place):
        link.narrow(8 * MIB)
        await pull(place, data)
        assert SIZE < link.sent() <= 1.1 * SIZE


async def test_a_dead_cable(hub: Hub, tmp_path: Path, data: bytes) -> None:
    """Nothing passes for some time, and nobody says so: it goes on at the first missing byte, and the client waits."""
    times = {"idle_timeout": "1s", "header_timeout": "1s", "connect_timeout": "1s"}
    async with linked(hub, tmp_path, connections=1, **times) as (link, place):
        link.narrow(8 * MIB)
        async with asyncio.TaskGroup() as group:
            client = group.create_task(pull(place, data))
            await until(lambda: hub.sent("blob") > SIZE // 2)
            await asyncio.to_thread(link.lose, 1)
            await asyncio.sleep(2.5)
            assert not client.done()
            await asyncio.to_thread(link.lose, 0)
        first, *others = starts(hub.seen("blob"))
        assert first == 0
        assert 0 < others[0] < SIZE
        assert len(set(others)) == 1
        assert await place.proxy.total("fill_resumes_total") >= 1
