"""Very many images: memory stays bounded, and the event loop has its turn."""

import asyncio
import time
import tracemalloc

import pytest

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.operations import carry_out
from tests.admin.crowd import fill


async def _listed(desk: Desk) -> tuple[int, int, float]:
    """How many images `ls` has, the most bytes that it takes, and the longest that the loop had to wait meanwhile."""
    longest = 0.0
    ended = False

    async def look() -> None:
        nonlocal longest
        while not ended:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            longest = max(longest, time.perf_counter() - before - 0.002)

    looking = asyncio.gather(look())
    tracemalloc.start()
    try:
        count = 0
        async for event in carry_out(desk, "ls", {}):
            count += event.kind == "image"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        ended = True
        await looking
    return count, most, longest


async def test_memory_does_not_grow_with_the_number_of_images(desk: Desk) -> None:
    """800 more images are not worth half a MiB; SQLite's own pages, of which it has 16 MiB at most, are not counted."""
    await fill(desk, 200)
    few, before, _ = await _listed(desk)
    await fill(desk, 1000)
    many, after, _ = await _listed(desk)
    assert (few, many) == (200, 1000)
    assert after - before < 1 << 19


@pytest.mark.soak
async def test_the_loop_has_its_turn(desk: Desk) -> None:
    """20,000 images: nobody else waits for more than a tenth of a second."""
    await fill(desk, 20_000)
    count, _, longest = await _listed(desk)
    assert count == 20_000
    assert longest < 0.1
