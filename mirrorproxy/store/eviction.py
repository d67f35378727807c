"""What goes first. Pure: over queues that may be in the index or in memory, and that whoever asks changes by what is
said.

Content is evicted by S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP
2023), with queues counted in bytes. New content enters a small queue; what was not used again by the time that it
reaches the end of that goes, and is remembered without its bytes for a while; what was, and what comes back while it is
remembered, enters the main queue, where each use is another round. So a scan over content that is never asked for again
passes through the small queue, and takes nothing from what is pulled daily. Compared on traces by `python -m
bench.traces` (docs/storage.md).

`Oldest` is the plan of a person's `prune`: what was not used for longest, no more.
"""

import heapq
from collections import deque
from collections.abc import Container, Iterable
from enum import IntEnum
from typing import NamedTuple, Protocol

from mirrorproxy.names import Digest

MOST_USES = 3
"""Uses that count: so many rounds in the main queue at most, without another use."""

ONE_USE = 1800.0
"""Seconds of a slot of time, in which all uses are one: a pull uses a blob twice, a build's jobs pull it fifty times.
"""

_SMALL_SHARE = 0.1  # of all bytes, for the small queue; the paper's
_PAGE = 64
_MOST_MOVED = 512  # content moved on in one step: a few milliseconds, for which others wait


class Queue(IntEnum):
    """Where content stands. What is a ghost is gone: its name alone is remembered."""

    SMALL = 1
    MAIN = 2
    GHOST = 3


class Entry(NamedTuple):
    """Content in a queue: bytes on the disk, last use (Unix seconds), uses that count. `place` grows towards the
    newest.
    """

    digest: Digest
    blocks: int
    last: float
    uses: int
    place: int


class Queues(Protocol):
    """The queues, each from its oldest to its newest end."""

    def taken(self, queue: Queue) -> int:
        """The bytes of all in it."""
        ...

    def oldest(self, queue: Queue, after: int, limit: int) -> list[Entry]:
        """The next ones whose place is greater than `after`."""
        ...

    def move(self, entry: Entry, queue: Queue, uses: int) -> None:
        """Put it at the newest end of a queue."""
        ...

    def drop(self, entry: Entry) -> None:
        """Forget it."""
        ...


class _Walk:
    """A queue from its oldest end, also past what was looked at and stays where it is."""

    def __init__(self, queues: Queues, queue: Queue) -> None:
        self._queues = queues
        self._queue = queue
        self._after = 0
        self._page: deque[Entry] = deque()
        self.taken = queues.taken(queue)  # less what was chosen on the way

    def next(self) -> Entry | None:
        if not self._page:
            self._page.extend(self._queues.oldest(self._queue, self._after, _PAGE))
        if not self._page:
            return None
        entry = self._page.popleft()
        self._after = entry.place
        return entry


def first_queue(known: Queue | None) -> Queue:
    """Where new content enters, of which this was known before."""
    return Queue.SMALL if known is None else Queue.MAIN


def uses_now(uses: int, last: float, now: float) -> int:
    """How many uses count after one `now`."""
    return uses if now // ONE_USE == last // ONE_USE else min(uses + 1, MOST_USES)


def choose(queues: Queues, needed: int, limit: int) -> tuple[list[Entry], bool]:
    """What should go so that `needed` bytes are free: `limit` pieces of content at most, the first one first.

    They stay where they are; tell `gone` of each that went, or `spare` what may not. Others are moved on. The second
    value is False where there is no more to come: neither in this answer nor in the next.
    """
    small, main = _Walk(queues, Queue.SMALL), _Walk(queues, Queue.MAIN)
    chosen: list[Entry] = []
    moved = 0
    while needed > 0 and len(chosen) < limit and moved < _MOST_MOVED:
        walk, other = (small, main) if small.taken > _SMALL_SHARE * (small.taken + main.taken) else (main, small)
        entry = walk.next()
        if entry is None:
            walk, entry = other, other.next()
        if entry is None:
            return chosen, False
        if entry.uses > 0:
            queues.move(entry, Queue.MAIN, 0 if walk is small else entry.uses - 1)
            walk.taken -= entry.blocks
            main.taken += entry.blocks
            moved += 1
        else:
            chosen.append(entry)
            walk.taken -= entry.blocks
            needed -= entry.blocks
    return chosen, True


def gone(queues: Queues, went: Iterable[tuple[Queue, Entry]]) -> None:
    """These went by this plan, from these queues: what was new is remembered, as long as the names stand for no more
    bytes than there are.
    """
    for queue, entry in went:
        if queue is Queue.SMALL:
            queues.move(entry, Queue.GHOST, 0)
        else:
            queues.drop(entry)
    over = queues.taken(Queue.GHOST) - queues.taken(Queue.SMALL) - queues.taken(Queue.MAIN)
    ghosts = _Walk(queues, Queue.GHOST)
    while over > 0 and (oldest := ghosts.next()) is not None:
        queues.drop(oldest)
        over -= oldest.blocks


def spare(queues: Queues, entry: Entry, queue: Queue) -> None:
    """It was chosen and has to stay: the next to be asked is another."""
    queues.move(entry, queue, entry.uses)


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
        self._trim()

    def freed(self, size: int) -> None:
        """So many of the bytes are freed otherwise."""
        self._needed -= size
        self._trim()

    def _trim(self) -> None:
        while self._newest_first and self._total - self._newest_first[0][2] >= self._needed:
            self._total -= heapq.heappop(self._newest_first)[2]

    def candidates(self) -> list[Candidate]:
        """What should go, in this order; too little of it where everything is not enough."""
        return [Candidate(digest, size, -negated) for negated, digest, size in sorted(self._newest_first, reverse=True)]


def plan(rows: Iterable[Candidate], needed: int, protected: Container[Digest] = ()) -> list[Digest]:
    """Which of `rows` should go so that `needed` bytes are free, the first one first; never one that is protected."""
    oldest = Oldest(needed, protected)
    for row in rows:
        oldest.add(row)
    return [row.digest for row in oldest.candidates()]
