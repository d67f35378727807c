"""`quarantine/`: what was found wrong, under `<algorithm>-<hex>`, for somebody who wants to know how it came to be.

It is never served, never read by the service, and goes by itself: after seven days, or sooner, the oldest first, when
all of it takes more than it may.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

KEPT_FOR = 7 * 86_400.0  # seconds
_SHARE = 100  # one part of so many of the cache's limit
_MOST = 1 << 30  # bytes


class Quarantine:
    """The folder. `limit` gives the cache's limit in bytes: of it a hundredth, 1 GiB at most, may be in quarantine."""

    def __init__(self, folder: Path, limit: Callable[[], int], clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._limit = limit
        self._clock = clock

    async def tidy(self) -> int:
        """Drop what is too old or too much; returns the bytes on the disk that stay."""
        return await asyncio.to_thread(self._tidy)

    def _tidy(self) -> int:
        most, oldest = min(_MOST, self._limit() // _SHARE), self._clock() - KEPT_FOR
        kept: list[tuple[float, int, str]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                kept.append((found.st_mtime, found.st_blocks * 512, entry.path))
        kept.sort(reverse=True)
        total = 0
        for modified, blocks, path in kept:
            if total + blocks <= most and modified >= oldest:
                total += blocks
            else:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
        return total
