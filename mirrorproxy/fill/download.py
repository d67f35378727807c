"""One download: from the first missing byte to the committed blob, however often the connection breaks."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol

from mirrorproxy.errors import (
    BadAnswer,
    CacheFailed,
    DigestMismatch,
    MirrorproxyError,
    NotFound,
    Overloaded,
    UpstreamError,
)
from mirrorproxy.fill.flight import Flight, stopping
from mirrorproxy.fill.lanes import DisputedError, Lanes, Limits
from mirrorproxy.fill.pace import Pace
from mirrorproxy.fill.patience import Patience
from mirrorproxy.metrics import Metrics
from mirrorproxy.registry import Transfer
from mirrorproxy.store.ingest import Ingest, Partials
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 1.0  # seconds of download that a crash may cost
_RESTARTS = 2  # from the first byte, while nobody has seen one of those that were wrong


class Space(Protocol):
    """Room on the disk, asked for before the first byte is written."""

    async def reserve(self, size: int) -> "Room":
        """Room for `size` bytes. Raises `CacheFailed` where there is none."""
        ...

    def resume(self, size: int) -> "Room":
        """The room of `size` bytes that are on the disk already, as a part that nobody was filling."""
        ...


class Room(Protocol):
    """What was reserved, in bytes. `store.ledger.Reservation` is one."""

    def extend(self, size: int) -> bool:
        """So much more; False where there is none."""
        ...

    def wrote(self, size: int) -> None:
        """So much of it is on the disk."""
        ...

    def leave(self, size: int) -> None:
        """Without the whole: a part that takes `size` bytes stays, all the rest is free again."""
        ...

    def commit(self, size: int) -> None:
        """The content stays, and takes `size` bytes."""
        ...


class Download:
    """The work behind a flight. `budget`: seconds without a new byte after which it fails."""

    def __init__(
        self,
        flight: Flight,
        limits: Limits,
        metrics: Metrics,
        budget: float,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.refused = refused
        self.source = flight.source
        self.repository = flight.repository
        self.digest = flight.digest
        self._flight = flight
        self._given = flight.size  # by a manifest: what an answer says besides is that answer's mistake
        self._limits = limits
        self.metrics = metrics
        self._budget = budget
        self._pace = Pace(limits.connections)
        self._ingest: Ingest
        self._space: Space
        self._room: Room
        self._reserved = 0
        self._left = 0  # bytes on the disk of what ended without the whole
        self._progress = 0.0  # when the last new byte came, by the monotonic clock; 0: none did
        self._last: Transfer | None = None

    async def run(self, partials: Partials, space: Space) -> bool:
        """Fetch, check and commit; True where the blob is in the store now.

        Raises nothing but a cancellation, and faults of the program: then it has ended as by a stop.
        """
        tasks = Tasks()
        with contextlib.ExitStack() as stack:
            try:
                self._ingest = self._flight.ingest = await partials.open(self.digest)
                self._ingest.changed = self._flight.wake
                size, here = self._flight.size or self._ingest.total or 0, self._ingest.spans.total
                self._space, self._reserved = space, here or size
                self._room = space.resume(here) if here else await space.reserve(size)
                stack.callback(lambda: self._room.leave(self._left))
                await self._reserve(size)
                tasks.start(_checkpoints(self._ingest), name=f"checkpoints of {self.digest.hex[:12]}")
                await self._fetch()
                await tasks.aclose()
                self._room.commit(await self._ingest.commit())
            except MirrorproxyError as error:
                await tasks.aclose()
                await self._end(error)
                return False
            except BaseException:  # a cancellation, or a fault of the program
                await tasks.aclose()
                await self._end(stopping())
                raise
        return True

    async def _end(self, error: MirrorproxyError) -> None:
        """End without the whole: what came is kept, unless it is known to be wrong, and readers get the error."""
        if (ingest := self._flight.ingest) is not None:
            if isinstance(error, DigestMismatch) or not ingest.accepted:  # else a client fills the disk with digests
                await ingest.discard()
            else:
                self._left = await ingest.close()
        self._flight.tell(error)
        if not isinstance(error, NotFound | Overloaded):
            if not isinstance(error, CacheFailed):  # which `Fills` says, once for all; clients are passed through
                self.metrics.fill_failures.labels(self.repository.registry).inc()
                log.warning("%s@%s: %s", self.repository, self.digest, error)

    async def _fetch(self) -> None:
        """Return once all bytes are there and right. Raises an `UpstreamError`, `NotFound` or `CacheFailed`."""
        flight, ingest = self._flight, self._ingest
        if flight.size is not None:
            if ingest.total not in (None, flight.size):
                await ingest.restart()
            ingest.total = flight.size
        patience = Patience(self._budget, time.monotonic())
        disputed, restarts = -1.0, 0
        while True:
            try:
                await self._transfer()
                await ingest.verify()
            except (DisputedError, DigestMismatch) as error:
                if isinstance(error, DigestMismatch):
                    self.metrics.mismatches.labels(self.repository.registry).inc()
                    if self._last is not None:
                        self._last.blame(error)
                elif self._progress > disputed:
                    disputed = time.monotonic()
                    continue  # the answer that is new is the likelier liar: ask once more
                if flight.handed or restarts == _RESTARTS:
                    raise DigestMismatch(error.message) from error
                restarts += 1
                await ingest.restart()
                ingest.total = flight.size
            except (UpstreamError, NotFound) as error:
                if not self._progress and not flight.promised:
                    raise  # nobody waits for more than an answer: this is it
                pause = patience.pause(error, self._progress, time.monotonic())
                here, total = ingest.accepted.total, ingest.total
                log.info("%s@%s goes on at %d of %s bytes after: %s", self.repository, self.digest, here, total, error)
                await asyncio.sleep(pause)
            else:
                break
        flight.size = ingest.total
        flight.verified = True
        flight.wake()

    async def _transfer(self) -> None:
        """Ask for what is missing, once."""
        if self._ingest.spans.front == self._ingest.total:
            self._flight.admit()
            return  # a crash between the last byte and the commit
        if self._ingest.spans:
            self.metrics.resumes.labels(self.repository.registry).inc()
        await Lanes(self, self._ingest, self._limits, self._pace).run()

    # For the lanes.

    @property
    def wanted(self) -> Collection[int]:
        """See `Owner.wanted`."""
        return self._flight.wanted

    async def met(self, transfer: Transfer) -> None:
        """See whether an answer fits what is known of the blob, and let clients have their headers."""
        self._last = transfer
        flight, size, known = self._flight, transfer.size, self._ingest.total
        if size is not None and known not in (None, size):
            message = f"upstream speaks of {size} bytes, not {known}, for {self.digest}"
            raise BadAnswer(message) if self._given is not None else DisputedError(message)
        if size is not None:
            self._ingest.total = flight.size = size
            await self._reserve(size)  # what was not known to be so large
        flight.admit()

    async def _reserve(self, size: int) -> None:
        """Have room for `size` bytes in all: for what lacks, other content may go. Raises `CacheFailed`."""
        if size > self._reserved:
            (await self._space.reserve(size - self._reserved)).leave(0)
            self._need(size)

    def came(self, upto: int, size: int) -> None:
        """Count what came."""
        self._need(upto)
        self._room.wrote(size)
        self._progress = time.monotonic()

    def _need(self, size: int) -> None:
        """See that there is room for `size` bytes in all. Raises `CacheFailed`."""
        if size > self._reserved and not self._room.extend(size - self._reserved):
            raise CacheFailed("there is no room for it in the cache")
        self._reserved = max(self._reserved, size)


async def _checkpoints(ingest: Ingest) -> None:
    """Make what came survive a crash, now and then."""
    kept = ingest.spans.total
    with contextlib.suppress(CacheFailed):  # the writer meets the same disk, and tells
        while True:
            await asyncio.sleep(_CHECKPOINT_EVERY)
            if ingest.spans.total != kept:
                kept = ingest.spans.total
                await ingest.checkpoint()
