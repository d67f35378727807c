"""All flights of the service: one for a digest, so many at a time, none without an owner."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

from mirrorproxy.errors import CacheFailed, Overloaded
from mirrorproxy.fill.flight import Flight, Reader, Space
from mirrorproxy.fill.passage import Passage
from mirrorproxy.fill.slots import Slots
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Blob, Outcome, Result, Source
from mirrorproxy.store.ingest import Partials
from mirrorproxy.tasks import Tasks

_QUEUE_FACTOR = 16  # flights that may wait for each that may fly


class Fills:
    """The flights. `max_active` of them transfer at a time, the others wait in the order in which they came."""

    def __init__(
        self,
        partials: Partials,
        space: Space,
        metrics: Metrics,
        *,
        budget: float,
        max_active: int,
    ) -> None:
        self.budget = budget
        self._partials = partials
        self._space = space
        self._metrics = metrics
        self._flights: dict[Digest, Flight] = {}
        self.slots = Slots(max_active)
        self._tasks = Tasks()
        metrics.fills.set_function(self.__len__)
        metrics.readers.set_function(lambda: sum(flight.readers for flight in self._flights.values()))

    def __len__(self) -> int:
        return len(self._flights)

    def flown_for(self, digest: Digest) -> Repository | None:
        """The repository whose request began the flight of this digest; None: there is none."""
        flight = self._flights.get(digest)
        return None if flight is None else flight.repository

    async def join(
        self,
        source: Source,
        repository: Repository,
        digest: Digest,
        size: int | None,
        *,
        start: int = 0,
        stored: Callable[[int], Awaitable[None]] | None = None,
    ) -> Blob:
        """A reader of the flight of `digest`, which begins now if there is none.

        The caller has made sure that `repository` has the blob, or that no flight of it is there: then the source's
        answer says so. `size` is what a manifest said, `start` where the reader will begin. A flight that begins now
        calls `stored` with the size once the blob is in the store. Raises what the source says before its first byte;
        `Overloaded` where too many flights wait already.
        """
        flight = self._flights.get(digest)
        result = Result.MISS if flight is None else Result.COALESCED
        if flight is None:
            if len(self._flights) >= self.slots.limit * (1 + _QUEUE_FACTOR):
                raise Overloaded("too many downloads wait already; try again shortly")
            flight = self._flights[digest] = Flight(source, repository, digest, size)
            task = self._tasks.start(self._fly(flight, stored), name=f"fill of {repository}@{digest.hex[:12]}")
            task.add_done_callback(partial(self._landed, flight))
        reader = Reader(flight, Outcome(result, stored=True))
        try:
            await flight.opened()
            if isinstance(flight.error, CacheFailed):
                await reader.aclose()
                return await Passage(source, repository, digest, size or flight.size).open(start)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def _fly(self, flight: Flight, stored: Callable[[int], Awaitable[None]] | None) -> None:
        async with self.slots:
            whole = await flight.run(self._partials, self._space, self._metrics, self.budget)
        if whole and stored is not None:
            await stored(flight.size or 0)

    def _landed(self, flight: Flight, task: "asyncio.Task[None]") -> None:
        """However it ended, and even where it was cancelled before its first step."""
        del task
        del self._flights[flight.digest]
        flight.land()

    async def drain(self, grace: float) -> None:
        """Let the flights end by themselves, for `grace` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._tasks.ended()

    async def aclose(self) -> None:
        """Stop all flights. What they have is kept, and continued when it is asked for again."""
        await self._tasks.aclose()
