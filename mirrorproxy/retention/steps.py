"""How much is removed in one go, and the rest after it where nobody waits for room."""

import asyncio
import time

STEP = 32
"""Pieces of content removed in one go: 2 to 6 milliseconds, in which a hit may take a few times as long."""

_REST = 150.0  # times as long as a step took: of 100 hits less than one meets a step
_LONGEST_REST = 1.0  # seconds: where the disk takes long to remove a file, that keeps no hit waiting


async def rest(started: float) -> None:
    """Leave others alone for much longer than the step took that `started` then (`time.monotonic()`)."""
    await asyncio.sleep(min(_LONGEST_REST, _REST * (time.monotonic() - started)))
