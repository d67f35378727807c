"""A client's view of a running download."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing

from mirrorproxy.errors import CacheFailed
from mirrorproxy.fill.flight import Flight
from mirrorproxy.fill.passage import Passage
from mirrorproxy.names import Digest
from mirrorproxy.registry import Outcome
from mirrorproxy.store.files import disk_errors

_MOST = 256 << 10  # bytes read at a time


class Reader:
    """One reader of a flight: a `FileBlob`."""

    first = 0

    def __init__(self, flight: Flight, outcome: Outcome) -> None:
        self.outcome = outcome
        self._flight = flight
        self._open = True
        flight.enter()

    @property
    def digest(self) -> Digest:
        """The flight's."""
        return self._flight.digest

    @property
    def download(self) -> int:
        """The number of the download: all readers with the same one read the same file."""
        return self._flight.number

    @property
    def size(self) -> int | None:
        """What is known of it now."""
        return self._flight.size

    @property
    def fd(self) -> int:
        """The partial file's; -1 as long as there is none, and so nothing ready."""
        return -1 if self._flight.ingest is None else self._flight.ingest.fd

    def ready(self, start: int) -> int:
        """See `FileBlob.ready`."""
        return self._flight.ready(start)

    async def wait(self, start: int) -> None:
        """See `FileBlob.wait`."""
        await self._flight.wait(start)

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`: from the file, and from upstream where the disk failed, or the file cannot be read."""
        flight = self._flight
        try:
            while end is None or start < end:
                await flight.wait(start)
                ready = flight.ready(start)
                if ready <= start:
                    return
                size = min(_MOST, ready - start, (end or ready) - start)
                data = await asyncio.to_thread(_read, self.fd, size, start)
                start += len(data)
                yield data
            return
        except CacheFailed:
            pass
        hasher, hashed = None, 0
        if isinstance(flight.error, CacheFailed) and flight.ingest is not None:  # else it is being hashed still
            hasher, hashed = flight.ingest.hash_so_far()
        passage = Passage(flight.source, flight.repository, flight.digest, flight.size, hasher=hasher, hashed=hashed)
        async with aclosing(passage):
            async for data in passage.chunks(start, end):
                yield data

    async def aclose(self) -> None:
        """Leave; the flight goes on."""
        if self._open:
            self._open = False
            self._flight.leave()


def _read(fd: int, size: int, offset: int) -> bytes:
    """Some of the bytes at `offset`, which are there. Blocks. Raises `CacheFailed` where they are not."""
    with disk_errors("read a partial file"):
        data = os.pread(fd, size, offset)
    if not data:
        raise CacheFailed("a partial file became shorter than it was")
    return data
