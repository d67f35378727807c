"""Bytes that came before the hash could take them, kept in memory until the front reaches them.

Several connections bring a blob out of order. What is here when the hash gets there need not be read back from the
file: of 64 MiB over four connections 44 came early, and 8 of those are read back. Memory is bounded for all ingests
together (`Allowance`), so with many of them some bytes are read back after all, mostly from the page cache.
"""

import threading

_LEAST = 16 << 10  # bytes that a chunk counts for at least: it has an overhead, and many make a search long


class Allowance:
    """`limit` bytes that may be kept, shared by the threads of all ingests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Allowance {self._taken} of {self._limit}>"

    def take(self, size: int) -> bool:
        """So much more is kept; False where it would be too much."""
        with self._lock:
            if self._taken + size > self._limit:
                return False
            self._taken += size
            return True

    def give(self, size: int) -> None:
        """So much is not any more."""
        with self._lock:
            self._taken -= size


class Early:
    """The early bytes of one ingest, by their offsets; for its thread alone."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._chunks: dict[int, bytes] = {}

    def keep(self, offset: int, data: bytes) -> None:
        """Keep these bytes if there is room, or others that lie farther ahead make some: they are needed later."""
        while not self._allowance.take(_weight(data)):
            farthest = max(self._chunks, default=offset)
            if farthest <= offset:
                return
            self._drop(farthest)
        if offset in self._chunks:
            self._drop(offset)
        self._chunks[offset] = data

    def take(self, offset: int) -> bytes | None:
        """The chunk that begins at `offset`, which is kept no longer."""
        return self._drop(offset) if offset in self._chunks else None

    def next(self, offset: int) -> int | None:
        """Where the next chunk after `offset` begins."""
        return min((start for start in self._chunks if start > offset), default=None)

    def clear(self) -> None:
        """Keep nothing any more."""
        for offset in list(self._chunks):
            self._drop(offset)

    def _drop(self, offset: int) -> bytes:
        data = self._chunks.pop(offset)
        self._allowance.give(_weight(data))
        return data


def _weight(data: bytes) -> int:
    return max(len(data), _LEAST)
