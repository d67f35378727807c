"""Many images: memory stays bounded, and the event loop has its turn."""

import asyncio
import time
import tracemalloc

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.operations import carry_out
from tests.admin.crowd import fill


async def _listed(desk: Desk) -> int:
    """How many images `ls` has."""
    return sum([event.kind == "image" async for event in carry_out(desk, "ls", {})])


async def _traced(desk: Desk) -> int:
    """The most bytes that a listing has at once; now and then a table of the interpreter grows in one, to 4 MiB."""
    tracemalloc.start()
    try:
        await _listed(desk)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_neither_memory_nor_the_loop_feels_the_number_of_images(desk: Desk) -> None:
    """500 more images are not worth half a MiB; SQLite's own pages, of which it has 16 MiB at most, are not counted.

    No step on the loop takes more than 20 ms of its processor time, whatever else the machine does.
    """
    most = []
    for images in (100, 600):
        await fill(desk, images)
        longest = 0.0
        listing = asyncio.gather(_listed(desk))
        while not listing.done():
            before = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)
        assert (await listing)[0] == images
        assert longest < 0.02
        most.append(min([await _traced(desk) for _ in range(3)]))
    assert most[1] - most[0] < 1 << 19
