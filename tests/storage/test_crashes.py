"""Killed with -9 at random moments, under load: fills, hits, evictions, tags that move."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from mirrorproxy.names import Digest
from mirrorproxy.tasks import Tasks
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.storage.conftest import MIB, Serve
from tests.storage.load import Load, Stock, content, damaged, put_old, temporary

log = logging.getLogger(__name__)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 48 * MIB  # of the cache: so small that something has to go all the time


async def accounted(proxy: Proxy, directory: Path) -> float:
    """Wait until the service counts what is on the disk, for a minute at most; the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(60):
        while True:
            on_disk = content(directory)
            counted = await proxy.total("cache_size_bytes"), await proxy.total("cache_objects")
            if counted == (sum(on_disk.values()), len(on_disk)):
                return loop.time() - began
            await asyncio.sleep(0.1)


async def continues(proxy: Proxy, stock: Stock) -> int:
    """Ask for each blob of which there is a part: it comes whole, from where the part ends; how many there were."""
    count = 0
    for folder in (proxy.cache / "partial").iterdir():
        digest = folder.name.replace("-", ":", 1)
        state = folder / "state"
        if digest not in stock.owners or not state.exists() or '"spans": []' in state.read_text():
            continue
        resumes = await proxy.total("fill_resumes_total")
        answer = await proxy.ask(f"/v2/{stock.owners[digest]}/blobs/{digest}")
        assert (answer.status, answer.complete) == (200, True)
        await proxy.idle()
        count += await proxy.total("fill_resumes_total") > resumes
    return count


async def none_lost(proxy: Proxy, before: Set[Digest]) -> None:
    """All that is gone was evicted since the start: so many, to a piece. A step of an eviction is counted when all of
    it went, so this is true between two of them.
    """
    async with asyncio.timeout(5):
        while len(before - content(proxy.cache).keys()) != await proxy.total("cache_evictions_total", reason="size"):
            await asyncio.sleep(0.02)


async def flushed(directory: Path) -> None:
    """Wait until some download would go on after a crash: for 3 s, since it is for each second time alone."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            while not any('"spans": [[' in state for state in states(directory)):
                await asyncio.sleep(0.02)


def states(directory: Path) -> Iterator[str]:
    """What is written down of the downloads under way."""
    for path in (directory / "partial").glob("*/state"):
        with contextlib.suppress(FileNotFoundError):
            yield path.read_text()


async def crash(hub: Hub, proxy: Proxy, kills: int, chance: random.Random) -> None:
    """Check what must hold after each of so many crashes."""
    stock = Stock(hub, chance)
    stock.fill()
    load = Load(proxy, stock, chance)
    hub.script.always("cdn", Quirk(rate=3 * MIB))
    continued, slowest, evicted, tasks = 0, 0.0, 0.0, Tasks()
    put_old(proxy.cache, chance, 160, 256 << 10)
    await proxy.start()
    for number in range(kills):
        running = tasks.start(load.run(6), name="load")
        for _ in range(chance.randint(1, 6)):
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            stock.move()
        if number % 2:
            await flushed(proxy.cache)
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            evicted += await proxy.total("cache_evictions_total", reason="size")
        await proxy.kill()
        running.cancel()
        await asyncio.wait([running])
        assert load.wrong == [], f"kill {number}"
        before, left = content(proxy.cache), temporary(proxy.cache)
        assert damaged(proxy.cache) == [], f"kill {number}: committed content that is not right"
        await proxy.start()
        assert not left & temporary(proxy.cache), "left for ever"
        slowest = max(slowest, await accounted(proxy, proxy.cache))
        await none_lost(proxy, before.keys())
        assert await proxy.total("cache_evictions_total", reason="corrupt") == 0
        assert sum(content(proxy.cache).values()) <= LIMIT + MIB  # manifests need no reservation
        continued += await continues(proxy, stock)
    assert await proxy.stop() == 0
    figures = (
        f"{kills} kills: {load.complete} whole answers, {load.broken} broken off, 0 wrong; {evicted:.0f} evicted; "
        f"{continued} downloads continued; accounting right after {slowest:.1f} s at most"
    )
    log.info(figures)
    assert load.complete > 10 * kills, figures
    assert min(continued, evicted) > 0, figures


async def test_killed_under_load(serve: Serve, hub: Hub) -> None:
    """Eight times: no wrong byte, nothing lost, nothing left, accounting right, downloads go on."""
    await crash(hub, serve(cache={"max_size": str(LIMIT)}, prefetch="auto"), 8, random.Random(4))


@pytest.mark.soak
async def test_killed_200_times_under_load(serve: Serve, hub: Hub) -> None:
    """The same, 200 times."""
    await crash(hub, serve(cache={"max_size": str(LIMIT)}, prefetch="auto"), 200, random.Random(200))
