"""Restarts, crashes, and parts that are kept for the next start, or not."""

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorproxy.spans import Spans
from tests.e2e.client import begin, connect, rest
from tests.e2e.conftest import Place
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.networks.conftest import MIB, Serve, asked, at, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 20 * MIB
DAY = 86_400


def flushed(proxy: Proxy) -> Spans:
    """What of the one unfinished download is known to have reached the disk."""
    return Spans((start, end) for state in proxy.partials() for start, end in state["spans"])


async def come(hub: Hub, size: int) -> None:
    """Wait until the storage has sent so many bytes."""
    await until(lambda: hub.sent("cdn") >= size)


async def survives(place: Place, size: int, points: list[int]) -> None:
    """Check that a blob comes whole although the service is killed whenever its download has come to one of `points`.

    Counted by the offsets asked for: what sockets hold at a kill is lost, and no part of what was flushed.
    """
    hub, proxy, data = place.hub, place.proxy, os.urandom(size)
    digest = place.blob(data)
    hub.script.always("cdn", Quirk(rate=RATE))
    kept, cost = Spans(), 0
    for point in points:
        hub.log.clear()
        await proxy.start()
        async with connect(proxy.address) as wire:
            wire.send(place.path("blobs", digest))
            await come(hub, point - kept.total)
            await proxy.kill()
            received = await rest(wire)
            assert len(received) < size
            assert data.startswith(received.partition(b"\r\n\r\n")[2])
        for start in starts(hub.seen("cdn")):
            assert kept.end_of(start) == start, "it was here already"
        assert starts(hub.seen("cdn"))[0] == kept.front
        before, kept = kept, flushed(proxy)
        assert all(kept.end_of(start) >= end for start, end in before), "lost"
        cost += hub.sent("cdn") - (kept.total - before.total)
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        for start in starts(hub.seen("cdn")):
            assert kept.end_of(start) == start, "it was here already"
        assert starts(hub.seen("cdn"))[0] == kept.front
        assert await proxy.total("fill_resumes_total") >= 1
    # A checkpoint is made once a second: that long, and the time to make it, is what a crash may cost.
    assert cost <= len(points) * 2.5 * RATE


@pytest.mark.parametrize("connections", [1, 4])
async def test_killed_again_and_again(serve: Serve, hub: Hub, connections: int) -> None:
    """At four random points of 64 MiB: each time it goes on where the flushed part ended."""
    chance = random.Random(connections)
    points = [quarter * 16 * MIB + chance.randrange(16 * MIB) for quarter in range(4)]
    await survives(at(hub, serve(connections=connections)), 64 * MIB, points)


@pytest.mark.soak
@pytest.mark.parametrize("connections", [1, 4])
async def test_killed_at_twenty_points(serve: Serve, hub: Hub, connections: int) -> None:
    """At 20 random points of one blob of 256 MiB, at 20 MiB/s a connection."""
    chance = random.Random(20 + connections)
    points = sorted(chance.randrange(256 * MIB) for _ in range(20))
    await survives(at(hub, serve(connections=connections)), 256 * MIB, points)


async def test_restarted_in_mid_fill(serve: Serve, hub: Hub) -> None:
    """In order: nothing that came is lost, to the byte, whatever connection it came by."""
    data = os.urandom(64 * MIB)
    proxy = serve(connections=4)
    proxy.settings["server"]["grace"] = "0s"
    place = at(hub, proxy)
    digest = place.blob(data)
    hub.script.always("cdn", Quirk(rate=8 * MIB))
    await proxy.start()
    async with connect(proxy.address) as wire:
        await begin(wire, place.path("blobs", digest), 12 * MIB)
        assert await proxy.stop() == 0
    kept = flushed(proxy)
    assert len(kept) > 1, "there were several connections"
    sent = hub.sent("cdn")
    assert kept.total >= sent - 16 * MIB, "but for what was on its way"
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert all(kept.end_of(start) == start for start in starts(hub.seen("cdn")))


# What is kept, and what is not.


async def part_of(place: Place, size: int, come: int) -> Path:
    """Leave a part of a blob of `size` bytes, of which `come` have come; its folder."""
    data = os.urandom(size)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(stall=come))
    async with connect(place.proxy.address) as wire:
        await begin(wire, place.path("blobs", digest), come)
    folder = place.proxy.cache / "partial" / f"{digest.algorithm}-{digest.hex}"
    await until(lambda: (folder / "state").exists() and f"[[0, {come}]]" in (folder / "state").read_text())
    return folder


def aged(folder: Path, seconds: float) -> None:
    """Let the last byte of a part have come so long ago."""
    then = time.time() - seconds
    os.utime(folder / "data", (then, then))


async def parts(place: Place, count: int, size: int, come: int) -> list[Path]:
    """Some of them, left by a service that is stopped."""
    folders = [await part_of(place, size, come) for _ in range(count)]
    assert await place.proxy.stop() == 0
    return folders


@pytest.fixture
def stopping(serve: Serve) -> Callable[..., Proxy]:
    """As `serve`; it stops at once, and downloads stop with their clients."""

    def make(**changes: object) -> Proxy:
        proxy = serve(fills={"abandoned": "stop"}, connections=1, **changes)
        proxy.settings["server"]["grace"] = "0s"
        return proxy

    return make


async def test_parts_that_nobody_wants(stopping: Callable[..., Proxy], hub: Hub) -> None:
    """After `partials.keep` they are dropped, and no sooner; by default that is a week."""
    proxy = stopping()
    place = at(hub, proxy)
    await proxy.start()
    old, young, new = await parts(place, 3, 2 * MIB, MIB)
    aged(old, 7 * DAY + 60)
    aged(young, 7 * DAY - 600)
    async with proxy:
        await until(lambda: not old.exists())
        assert await proxy.total("partials_dropped_total", reason="age") == 1
        assert await proxy.total("partials_dropped_total", reason="size") == 0
        assert young.exists()
        assert new.exists()


async def test_parts_are_kept_as_long_as_is_said(stopping: Callable[..., Proxy], hub: Hub) -> None:
    """`partials.keep`: what is asked for again in time goes on, what is not begins anew."""
    proxy = stopping(partials={"keep": "1h"})
    place = at(hub, proxy)
    await proxy.start()
    old, young = await parts(place, 2, 2 * MIB, MIB)
    aged(old, 3700)
    aged(young, 3500)
    async with proxy:
        await until(lambda: not old.exists())
        assert young.exists()
        hub.log.clear()
        digest = young.name.replace("-", ":")
        assert (await place.get("blobs", digest)).complete
        assert [seen.range for seen in hub.seen("cdn")] == [f"bytes={MIB}-"]
        hub.log.clear()
        assert (await place.get("blobs", old.name.replace("-", ":"))).complete
        assert asked(hub.seen("cdn")) == [None]


async def test_so_many_parts(stopping: Callable[..., Proxy], hub: Hub) -> None:
    """`partials.max_count`: the oldest go, though there is space, and nobody waited for a week."""
    proxy = stopping(partials={"max_count": 2})
    place = at(hub, proxy)
    await proxy.start()
    folders = await parts(place, 4, 2 * MIB, MIB)
    for age, folder in zip((10, 400, 300, 20), folders, strict=True):
        aged(folder, age)
    async with proxy:
        await until(lambda: not folders[1].exists() and not folders[2].exists())
        assert await proxy.total("partials_dropped_total", reason="count") == 2
        assert (folders[0].exists(), folders[3].exists()) == (True, True)


async def test_space_is_short(stopping: Callable[..., Proxy], hub: Hub) -> None:
    """The oldest parts go first, as many as it takes, and before anything that is whole."""
    proxy = stopping(cache={"max_size": "33MiB"})
    place = at(hub, proxy)
    await proxy.start()
    whole = place.blob(os.urandom(4 * MIB))
    assert (await place.get("blobs", whole)).complete
    first, second, third = await parts(place, 3, 12 * MIB, 8 * MIB)
    aged(first, 300)
    aged(third, 200)
    aged(second, 100)
    sign = await part_of_nobody(place, 8 * DAY)  # which goes when the parts are looked at
    async with proxy:
        await until(lambda: not sign.exists())
        image = place.image(os.urandom(14 * MIB))
        await place.get("manifests", "1")
        assert (await place.get("blobs", image.layers[0].digest)).complete
        await until(place.kept(image.layers[0].digest).exists)
        assert [folder.exists() for folder in (first, second, third)] == [False, True, False]
        assert await proxy.total("partials_dropped_total", reason="size") == 2
        assert await proxy.total("cache_evictions_total") == 0
        assert place.kept(whole).exists()


async def test_what_is_being_filled_is_not_dropped(serve: Serve, hub: Hub) -> None:
    """However old its last byte looks, and however short space is."""
    data = os.urandom(4 * MIB)
    proxy = serve(partials={"keep": "1s"}, idle_timeout="15s", connections=1)
    place = at(hub, proxy)
    go_on = asyncio.Event()
    async with proxy:
        digest = place.blob(data)
        hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
        async with connect(proxy.address) as wire:
            _, first = await begin(wire, place.path("blobs", digest), MIB)
            folder = proxy.cache / "partial" / f"{digest.algorithm}-{digest.hex}"
            aged(folder, 100)
            other = await part_of_nobody(place, 100)
            await until(lambda: not other.exists())
            assert (folder / "data").exists()
            go_on.set()
            assert first + await wire.reader.readexactly(3 * MIB) == data
        await until(place.kept(digest).exists)
        assert len(hub.seen("cdn")) == 1


async def part_of_nobody(place: Place, age: float) -> Path:
    """A part of something, as another run may have left it so long ago."""
    digest = place.blob(os.urandom(100))
    folder = place.proxy.cache / "partial" / f"{digest.algorithm}-{digest.hex}"
    folder.mkdir()
    (folder / "data").write_bytes(b"1234")
    (folder / "state").write_text('{"total": 100, "spans": [[0, 4]]}')
    aged(folder, age)
    return folder


async def test_no_part_is_left_of_what_never_came(serve: Serve, hub: Hub) -> None:
    """Digests that upstream does not have, or errors instead of a first byte: the disk holds nothing of them, however
    many a client asks for.
    """
    async with serve() as proxy:
        place = at(hub, proxy)
        place.blob(b"something")
        missing = [Place.path(place, "blobs", f"sha256:{os.urandom(32).hex()}") for _ in range(20)]
        for answer in await asyncio.gather(*(proxy.ask(path) for path in missing)):
            assert answer.status == 404
        refused = [place.path("blobs", place.blob(os.urandom(100))) for _ in range(5)]
        hub.script.always("cdn", Quirk(status=503, headers={"Retry-After": "9"}))
        for answer in await asyncio.gather(*(proxy.ask(path) for path in refused)):
            assert answer.status in (503, 429)  # 429: who asks after the others is not let through to it
        await until(lambda: not list((proxy.cache / "partial").iterdir()))
