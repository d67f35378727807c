"""Very many images: memory stays bounded, and the event loop has its turn."""

import asyncio
import time
import tracemalloc

import pytest

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.operations import carry_out
from tests.admin.crowd import fill


async def _listed(desk: Desk) -> int:
    """How many images `ls` has."""
    return sum([event.kind == "image" async for event in carry_out(desk, "ls", {})])


async def test_memory_does_not_grow_with_the_number_of_images(desk: Desk) -> None:
    """500 more images are not worth half a MiB; SQLite's own pages, of which it has 16 MiB at most, are not counted."""
    most = []
    for images in (100, 600):
        await fill(desk, images)
        assert await _listed(desk) == images  # tables of the interpreter grow now, and not below
        tracemalloc.start()
        async for _ in carry_out(desk, "ls", {}):
            pass
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] - most[0] < 1 << 19


@pytest.mark.soak
async def test_the_loop_has_its_turn(desk: Desk) -> None:
    """20,000 images: nobody else waits for more than a tenth of a second."""
    await fill(desk, 20_000)
    longest = 0.0
    listing = asyncio.gather(_listed(desk))
    while not listing.done():
        before = time.perf_counter()
        await asyncio.sleep(0.002)
        longest = max(longest, time.perf_counter() - before)
    (count,) = await listing
    assert count == 20_000
    assert longest < 0.1
