"""What would go first: a pure plan over what is stored, least recently used first. Whoever asks removes it."""

import heapq
from collections.abc import Container, Iterable
from typing import NamedTuple

from mirrorproxy.names import Digest


class Candidate(NamedTuple):
    """Content that could go: the bytes it takes on the disk, and when it was last used (Unix seconds)."""

    digest: Digest
    size: int
    last_use: float


class Oldest:
    """The least recently used content that frees `needed` bytes together: no more of it than that takes.

    Rows are added one by one and only the answer so far is held, so that a million of them need no memory.
    """

    def __init__(self, needed: int, protected: Container[Digest] = ()) -> None:
        self._needed = needed
        self._protected = protected
        self._total = 0
        self._newest_first: list[tuple[float, Digest, int]] = []  # a heap

    def add(self, row: Candidate) -> None:
        """Consider one more."""
        if row.digest in self._protected:
            return
        heapq.heappush(self._newest_first, (-row.last_use, row.digest, row.size))
        self._total += row.size
        while self._newest_first and self._total - self._newest_first[0][2] >= self._needed:
            self._total -= heapq.heappop(self._newest_first)[2]

    def digests(self) -> list[Digest]:
        """What should go, in this order; too little of it where everything is not enough."""
        return [digest for _, digest, _ in sorted(self._newest_first, reverse=True)]


def plan(rows: Iterable[Candidate], needed: int, protected: Container[Digest] = ()) -> list[Digest]:
    """Which of `rows` should go so that `needed` bytes are free, the first one first; never one that is protected."""
    oldest = Oldest(needed, protected)
    for row in rows:
        oldest.add(row)
    return oldest.digests()
