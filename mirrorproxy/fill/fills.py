"""All downloads of the service: one for a digest, so many at a time, none without an owner."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, KeysView
from dataclasses import dataclass, replace
from functools import partial

from mirrorproxy import tracing
from mirrorproxy.errors import CacheFailed, Overloaded
from mirrorproxy.fill.download import Download, Space
from mirrorproxy.fill.flight import Flight
from mirrorproxy.fill.lanes import Limits
from mirrorproxy.fill.passage import Passage
from mirrorproxy.fill.reader import Reader
from mirrorproxy.fill.slots import Slots, Turn
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Blob, Outcome, Result, Source
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.memory import Recent
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_SAY_EVERY = 60.0  # seconds, for each reason
_REASONS = 16
_NUMBER = re.compile(r"[0-9]+")  # of bytes: the same reason for each blob
_TROUBLE_FOR = 60.0  # seconds that a download which was not kept tells of the disk
_SINGLE_FOR = 600.0  # seconds
_QUEUE_FACTOR = 16  # downloads of one upstream that may wait for each that may run: none has the whole queue
_TO_COMMIT = 5.0  # seconds for the disk to take what is whole, at the end of the service

Stored = Callable[[int], Awaitable[None]]


@dataclass
class Terms:
    """What holds for all downloads, and may change while they run.

    `budget`: seconds without a new byte after which one fails. `max_active`: so many at a time. `abandoned`: seconds
    that one goes on when all its clients are gone; None: to its end. `upstream` gives the limits of one registry.
    `max_waiting`: so many more that wait for their turn, and `max_readers`: so many clients that read from all of them.
    """

    budget: float = 600.0
    max_active: int = 64
    abandoned: float | None = None
    upstream: Callable[[str], Limits] = lambda _: Limits()
    max_waiting: int = 1024
    max_readers: int = 10_000


class Fills:
    """The downloads. What cannot run yet waits: what clients wait for before what is fetched ahead, then in order."""

    def __init__(self, partials: Partials, space: Space, metrics: Metrics, terms: Terms) -> None:
        self._trouble = ("", -_TROUBLE_FOR)  # why the last download was not kept, and when
        self._said: Recent[str, float] = Recent(_REASONS)
        self._terms = terms
        self._partials = partials
        self._space = space
        self._metrics = metrics
        self._flights: dict[Digest, Flight] = {}
        self._under_way: dict[Digest, asyncio.Task[None]] = {}
        self._slots = Slots(terms.max_active, lambda registry: self._terms.upstream(registry).fills)
        self._single: dict[str, float] = {}  # until when a registry gets one connection a blob
        self._tasks = Tasks()
        metrics.fills.set_function(self.__len__)
        metrics.waiting.set_function(lambda: sum(flight.waits for flight in self._flights.values()))
        metrics.readers.set_function(lambda: self.readers)

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def trouble(self) -> str | None:
        """Why a download of the last minute was not kept, where none was since."""
        reason, since = self._trouble
        return reason if time.monotonic() - since < _TROUBLE_FOR else None

    @property
    def readers(self) -> int:
        """How many clients read from them."""
        return sum(flight.readers for flight in self._flights.values())

    @property
    def digests(self) -> KeysView[Digest]:
        """What is being downloaded, now and whenever it is looked at."""
        return self._flights.keys()

    def use(self, terms: Terms) -> None:
        """Other terms from now on."""
        self._terms = terms
        self._slots.limit = terms.max_active

    def flown_for(self, digest: Digest) -> Repository | None:
        """The repository whose request began the download of this digest; None: there is none."""
        flight = self._flights.get(digest)
        return None if flight is None else flight.repository

    def must_wait(self, registry: str, digest: Digest) -> bool:
        """Does the download of `digest` wait for its turn, or would it if it began now?"""
        flight = self._flights.get(digest)
        return self._slots.busy(registry) if flight is None else flight.waits

    async def join(
        self,
        source: Source,
        repository: Repository,
        digest: Digest,
        size: int | None,
        *,
        start: int = 0,
        stored: Stored | None = None,
    ) -> Blob:
        """A reader of the download of `digest`, which begins now if there is none.

        The caller has made sure that `repository` has the blob, or that no download of it is under way: then the
        source's answer says so. `size` is what the repository said of it, by a manifest or else: with it, a download
        that waits for its turn has its reader at once. `start` is where that will begin. A download that begins now
        calls `stored` with the size once the blob is in the store. Raises what the source says before its first byte;
        `Overloaded` where too many wait or read already.
        """
        if self.readers >= self._terms.max_readers:
            raise Overloaded("too many clients wait for downloads; try again shortly", limit="readers")
        while (flight := self._flights.get(digest)) is not None and self._under_way[digest].cancelling():
            await flight.landed.wait()  # it was given up in this moment: the next one goes on from where it was
        result = Result.MISS if flight is None else Result.COALESCED
        if flight is None:
            flight = self._begin(Flight(source, repository, digest, size, start=start, left=self._left), stored)
        elif flight.waits and flight.size is None:
            flight.size = size
        reader = Reader(flight, Outcome(result, stored=True))
        self._slots.admit()  # one that was fetched ahead is urgent now
        try:
            await flight.opened()
            if isinstance(flight.error, CacheFailed):
                await reader.aclose()
                return await Passage(source, repository, digest, size or flight.size).open(start)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    def fetch_ahead(self, source: Source, repository: Repository, digest: Digest, size: int, stored: Stored) -> None:
        """Begin a download that clients will want soon, after all that they want now. Does nothing where one runs, or
        where half of those that may wait are there already.
        """
        if digest not in self._flights:
            with contextlib.suppress(Overloaded):
                self._begin(Flight(source, repository, digest, size, left=self._left), stored, ahead=True)
                self._metrics.fills_ahead.labels(repository.registry).inc()

    def _begin(self, flight: Flight, stored: Stored | None, *, ahead: bool = False) -> Flight:
        registry = flight.repository.registry
        theirs = sum(1 for each in self._flights.values() if each.repository.registry == registry)
        share = self._terms.upstream(registry).fills * (1 + _QUEUE_FACTOR)
        most = self._terms.max_active + self._terms.max_waiting
        if ahead:  # the other half is for what clients ask for
            share, most = share // 2, most // 2
        if theirs >= share or len(self._flights) >= most:
            raise Overloaded("too many downloads wait already; try again shortly", limit="fills")
        self._flights[flight.digest] = flight
        turn = self._slots.turn(registry, lambda: flight.readers > 0)
        flight.waits = turn.waits
        task = self._tasks.start(
            self._fly(flight, turn, stored), name=f"fill of {flight.repository}@{flight.digest.hex[:12]}"
        )
        self._under_way[flight.digest] = task
        task.add_done_callback(partial(self._landed, flight, turn))
        return flight

    async def _fly(self, flight: Flight, turn: Turn, stored: Stored | None) -> None:
        registry, name = flight.repository
        told = {"mirrorproxy.registry": registry, "mirrorproxy.repository": name, "mirrorproxy.digest": flight.digest}
        with tracing.span("fill", attributes=told):
            async with turn:
                flight.waits = False
                limits = self._terms.upstream(registry)
                if time.monotonic() < self._single.get(registry, 0.0):
                    limits = replace(limits, connections=1)
                refused = partial(self._refused, registry)
                download = Download(flight, limits, self._metrics, self._terms.budget, refused)
                whole = await download.run(self._partials, self._space)
                tracing.note({"mirrorproxy.size": flight.size}, failed=not whole)
                if whole:
                    self._trouble = ("", -_TROUBLE_FOR)
                elif isinstance(flight.error, CacheFailed):
                    self._passes_through(flight, flight.error)
            if whole and stored is not None:
                await stored(flight.size or 0)

    def _passes_through(self, flight: Flight, error: CacheFailed) -> None:
        """The disk does not take it. Said once in a while: all that comes meets the same disk."""
        now, reason = time.monotonic(), _NUMBER.sub("", error.message)
        self._trouble = error.message, now
        self._metrics.not_kept.labels(flight.repository.registry).inc()
        if now - (self._said.get(reason) or -_SAY_EVERY) >= _SAY_EVERY:
            self._said.put(reason, now)
            log.warning("downloads pass through and are not kept: %s@%s: %s", flight.repository, flight.digest, error)

    def _refused(self, registry: str) -> None:
        """It ignores ranges, or said 429 or 503 to one more connection: it gets one for each blob, for a while."""
        self._single[registry] = time.monotonic() + _SINGLE_FOR

    def _landed(self, flight: Flight, turn: Turn, task: "asyncio.Task[None]") -> None:
        """However it ended, and even where it was cancelled before its first step."""
        del task
        turn.leave()
        del self._flights[flight.digest], self._under_way[flight.digest]
        flight.land()

    def _left(self, flight: Flight) -> None:
        """The last reader left: give it up, now or after a while, if that is what the terms say."""
        if self._terms.abandoned is not None and not flight.verified and flight.digest in self._flights:
            asyncio.get_running_loop().call_later(self._terms.abandoned, self._give_up, flight, flight.entered)

    def _give_up(self, flight: Flight, entered: int) -> None:
        """Nobody has come since, when so many had `entered`."""
        if self._flights.get(flight.digest) is flight and flight.entered == entered and not flight.verified:
            self._under_way[flight.digest].cancel()
            self._metrics.fills_abandoned.labels(flight.repository.registry).inc()

    async def drain(self, grace: float) -> None:
        """Let the downloads end by themselves, for `grace` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._tasks.ended()

    async def aclose(self) -> None:
        """Stop all downloads, but for those that are whole and right, which are put in their place first. What the
        others have is kept, and continued when it is asked for again.
        """
        if whole := [self._under_way[digest] for digest, flight in self._flights.items() if flight.verified]:
            await asyncio.wait(whole, timeout=_TO_COMMIT)
        await self._tasks.aclose()
