"""Which content should go? Replays pulls over made-up months: `python -m bench.traces`, about two minutes.

Images have shared base layers and layers of their own, with log-normal sizes; a manifest that is served counts as a use
of all that it names. The policy that is replayed is the service's own code (`mirrorproxy.store.eviction`), over queues
in memory. `least recently used` is what it is compared with. No policy can know the future: `Belady` drops what is
wanted again last, which is best where all sizes are equal; no policy at all, whatever it knows, has more hits than
`bound` (PFOO-L: Berger, Beckmann, Harchol-Balter, "Practical bounds on optimal caching with variable object sizes",
SIGMETRICS 2018).
"""

import argparse
import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

from mirrorproxy.names import Digest
from mirrorproxy.store.eviction import Entry, Queue, choose, first_queue, gone, uses_now

_DAY = 86_400.0
_DAYS = 30
_HEAD = "trace and size of the cache", "LRU", "S3-FIFO", "Belady", "bound"


class Piece(NamedTuple):
    """Content: its number and its bytes."""

    name: int
    size: int


class Event(NamedTuple):
    """An image is pulled, at a time in seconds: its manifest is served, then all it names is asked for."""

    when: float
    pieces: tuple[Piece, ...]


class Maker:
    """Makes images, at random but always the same ones. `part`: so much of a whole trace is made."""

    def __init__(self, seed: int, part: float = 1.0) -> None:
        self.part = part
        self.random = random.Random(seed)
        self._names = itertools.count()
        self._bases = [tuple(self._layer() for _ in range(self.random.randint(1, 4))) for _ in range(30)]

    def image(self, below: tuple[Piece, ...] | None = None, layers: int | None = None) -> tuple[Piece, ...]:
        """Manifest, config, the layers of a base (a few bases are in most images), layers of its own."""
        base = below or self._bases[min(int(self.random.paretovariate(1.0)) - 1, len(self._bases) - 1)]
        count = self.random.randint(1, 6) if layers is None else layers
        own = tuple(self._layer() for _ in range(count))
        small = Piece(next(self._names), self.random.randint(500, 4000)), Piece(next(self._names), 6000)
        return (*small, *base, *own)

    def _layer(self) -> Piece:
        """Median 3 MiB, one in twenty above 60 MiB."""
        return Piece(next(self._names), int(min(3e9, max(200.0, self.random.lognormvariate(math.log(3 << 20), 1.8)))))


def zipf(maker: Maker) -> Iterator[Event]:
    """A stable set of images, of which the n-th is pulled 1/n as often as the first, at any time."""
    images, pulls = int(2000 * maker.part), int(30_000 * maker.part)
    all_images = [maker.image() for _ in range(images)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(images)))
    times = sorted(maker.random.uniform(0, _DAYS * _DAY) for _ in range(pulls))
    for when in times:
        yield Event(when, maker.random.choices(all_images, cum_weights=weights)[0])


def scans(maker: Maker) -> Iterator[Event]:
    """The same, and every night something (a scanner, a migration) pulls 300 images that nobody pulls again."""
    scanned = (
        Event(day * _DAY + number * 30.0, maker.image())
        for day in range(_DAYS)
        for number in range(int(300 * maker.part))
    )
    yield from heapq.merge(zipf(maker), scanned, key=lambda event: event.when)


def bursts(maker: Maker) -> Iterator[Event]:
    """The same, and builds: 60 new images a day, each on what its project built before, pulled 40 times in ten minutes,
    now and then in the day after, then never.
    """
    built: list[Event] = []
    projects = [maker.image()[2:] for _ in range(20)]
    a_day = int(60 * maker.part)
    for number in range(_DAYS * a_day):
        image = maker.image(below=maker.random.choice(projects), layers=2)
        when = number * _DAY / a_day
        built += [Event(when + maker.random.uniform(0, 600), image) for _ in range(40)]
        built += [Event(when + maker.random.uniform(3600, _DAY), image) for _ in range(3)]
    built.sort(key=lambda event: event.when)
    yield from heapq.merge(zipf(maker), built, key=lambda event: event.when)


TRACES: dict[str, Callable[[Maker], Iterator[Event]]] = {"Zipf": zipf, "scan over Zipf": scans, "CI bursts": bursts}


class MemoryQueues:
    """The queues of `eviction`, in memory."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[Queue, Entry]] = {}
        self._queues: dict[Queue, OrderedDict[int, int]] = {queue: OrderedDict() for queue in Queue}
        self._taken = dict.fromkeys(Queue, 0)
        self._places = itertools.count(1)

    def taken(self, queue: Queue) -> int:
        """See `Queues`."""
        return self._taken[queue]

    def oldest(self, queue: Queue, after: int, limit: int) -> list[Entry]:
        """See `Queues`. Only ever asked from the end on, in a replay that drops one at a time."""
        names = itertools.islice((name for place, name in self._queues[queue].items() if place > after), min(limit, 1))
        return [self.at[name][1] for name in names]

    def move(self, entry: Entry, queue: Queue, uses: int) -> None:
        """See `Queues`."""
        self.drop(entry)
        name, place = int(entry.digest), next(self._places)
        self.at[name] = queue, entry._replace(place=place, uses=uses)
        self._queues[queue][place] = name
        self._taken[queue] += entry.blocks

    def drop(self, entry: Entry) -> None:
        """See `Queues`."""
        found = self.at.pop(int(entry.digest), None)
        if found is not None:
            del self._queues[found[0]][found[1].place]
            self._taken[found[0]] -= found[1].blocks

    def note(self, name: int, when: float) -> None:
        """A use of what is here, by the service's rule."""
        queue, entry = self.at[name]
        self.at[name] = queue, entry._replace(last=when, uses=uses_now(entry.uses, entry.last, when))


def _name(number: int) -> Digest:
    """A number where a digest is meant: digests of their own would be most of the run."""
    return cast("Digest", str(number))


def s3fifo(events: list[Event], room: int) -> tuple[int, int]:
    """Bytes that were hits, and all bytes asked for, by the service's policy."""
    queues, hits, asked = MemoryQueues(), 0, 0
    for when, pieces in events:
        for name, size in pieces:
            asked += size
            queue, _ = queues.at.get(name, (None, None))
            if queue in (Queue.SMALL, Queue.MAIN):
                hits += size
                queues.note(name, when)
                continue
            if size > room:
                continue
            _make_room(queues, queues.taken(Queue.SMALL) + queues.taken(Queue.MAIN) + size - room)
            queues.move(Entry(_name(name), size, when, 0, 0), first_queue(queue), 0)
    return hits, asked


def _make_room(queues: MemoryQueues, needed: int) -> None:
    more = True
    while needed > 0 and more:
        chosen, more = choose(queues, needed, 1)
        for entry in chosen:
            needed -= entry.blocks
            gone(queues, [(queues.at[int(entry.digest)][0], entry)])


def lru(events: list[Event], room: int) -> tuple[int, int]:
    """The same, least recently used first."""
    kept: OrderedDict[int, int] = OrderedDict()
    taken = hits = asked = 0
    for _, pieces in events:
        for name, size in pieces:
            asked += size
            if name in kept:
                hits += size
                kept.move_to_end(name)
                continue
            if size > room:
                continue
            kept[name] = size
            taken += size
            while taken > room:
                taken -= kept.popitem(last=False)[1]
    return hits, asked


def belady(events: list[Event], room: int) -> tuple[int, int]:
    """The same by one who knows the future: what is wanted again last goes, or is not kept where that is itself."""
    flat = [piece for event in events for piece in event.pieces]
    following = _following(flat)
    kept: dict[int, tuple[int, int]] = {}  # when it is wanted again, and its bytes
    last_first: list[tuple[int, int]] = []
    taken = hits = 0
    for position, (name, size) in enumerate(flat):
        if name in kept:
            hits += size
        elif size <= room:
            taken += size
        else:
            continue
        kept[name] = following[position], size
        heapq.heappush(last_first, (-following[position], name))
        while taken > room:
            when, other = heapq.heappop(last_first)
            if kept.get(other, (0, 0))[0] == -when:
                taken -= kept.pop(other)[1]
    return hits, sum(size for _, size in flat)


def bound(events: list[Event], room: int) -> tuple[int, int]:
    """More than any policy: the shortest stays that `room` bytes could hold on average over the whole time."""
    flat = [piece for event in events for piece in event.pieces]
    following = _following(flat)
    stays = sorted((following[at] - at, size) for at, (_, size) in enumerate(flat) if following[at] < len(flat))
    left, hits = room * len(flat), 0
    for length, size in stays:
        left -= length * size
        if left < 0:
            break
        hits += size
    return hits, sum(size for _, size in flat)


def _following(flat: list[Piece]) -> list[int]:
    """Where each is asked for next; the end where it is not."""
    following = [len(flat)] * len(flat)
    seen: dict[int, int] = {}
    for position in range(len(flat) - 1, -1, -1):
        following[position] = seen.get(flat[position].name, len(flat))
        seen[flat[position].name] = position
    return following


POLICIES = {"LRU": lru, "S3-FIFO": s3fifo, "Belady": belady, "bound": bound}


def compare(
    trace: str, shares: tuple[float, ...], seed: int = 1, part: float = 1.0
) -> Iterator[tuple[float, dict[str, float]]]:
    """Hit ratios by bytes of all policies, for caches of these shares of all bytes that the trace ever asks for."""
    events = list(TRACES[trace](Maker(seed, part)))
    footprint = sum({piece.name: piece.size for event in events for piece in event.pieces}.values())
    for share in shares:
        ratios = {}
        for name, replay in POLICIES.items():
            hits, asked = replay(events, int(footprint * share))
            ratios[name] = hits / asked
        yield share, ratios


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.traces", description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", choices=TRACES, action="append", help="only this one (repeatable)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("| " + " | ".join(_HEAD) + " |\n|---|" + "---:|" * (len(_HEAD) - 1))
    for trace in arguments.trace or TRACES:
        for share, ratios in compare(trace, (0.02, 0.05, 0.1, 0.25), arguments.seed):
            cells = " | ".join(f"{100 * ratios[name]:.1f}" for name in POLICIES)
            print(f"| {trace}, {share:.0%} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
