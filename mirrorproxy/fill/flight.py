"""One download: from the first missing byte to the committed blob, however often the connection breaks."""

import asyncio
import contextlib
import copy
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

from mirrorproxy.errors import (
    BadAnswer,
    CacheFailed,
    DigestMismatch,
    MirrorproxyError,
    NotFound,
    Overloaded,
    TimedOut,
    UpstreamError,
)
from mirrorproxy.fill.passage import HELD, Passage
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Outcome, Source, Transfer
from mirrorproxy.store.ingest import Ingest, Partials
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 1.0  # seconds of download that a crash may cost
_PATIENCE = 15.0  # seconds: half of what containerd waits for headers
_LONGEST_PAUSE = 10.0  # seconds between two tries, where upstream asks for no more
_READ = 256 << 10


class Space(Protocol):
    """Room on the disk, asked for before the first byte is written."""

    async def reserve(self, size: int) -> "Room":
        """Room for `size` bytes. Raises `CacheFailed` where there is none."""
        ...


class Room(Protocol):
    """What was reserved, in bytes. `store.ledger.Reservation` is one."""

    def extend(self, size: int) -> bool:
        """So much more; False where there is none."""
        ...

    def wrote(self, size: int) -> None:
        """So much of it is on the disk."""
        ...

    def commit(self, size: int) -> None:
        """The content stays, and takes `size` bytes."""
        ...

    def release(self) -> None:
        """What was not committed is free again."""
        ...


class _Disputed(BadAnswer):
    """What the upstream sends now is not what was sent before: one of the two is wrong."""


class Flight:
    """One download and its readers. It ends `verified`, or with `error`.

    `size` is what clients were told, or will be: a manifest's word, else the first answer's.
    """

    def __init__(self, source: Source, repository: Repository, digest: Digest, size: int | None) -> None:
        self.digest = digest
        self.repository = repository
        self.source = source
        self.size = size
        self.verified = False
        self.error: MirrorproxyError | None = None
        self.ingest: Ingest | None = None
        self._handed = 0  # up to where readers were told that they may read
        self._promised = False  # some client has headers, though no byte came yet
        self._landed = False
        self._room: Room | None = None
        self._reserved = 0
        self._opened = asyncio.get_running_loop().create_future()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self.readers = 0
        self._last: Transfer | None = None
        self._progress = 0.0  # when the last new byte came; 0: none did

    def __repr__(self) -> str:
        state = "verified" if self.verified else type(self.error).__name__ if self.error else "flying"
        return f"<Flight {self.digest.hex[:12]} {state}, {self.readers} readers, {self.ingest!r}>"

    # What readers ask.

    async def opened(self) -> None:
        """Return when headers may go to a client: upstream has the blob. Raises what upstream said instead.

        Where a manifest says the size, upstream gets `_PATIENCE` seconds: containerd gives up after 30 s without
        headers.
        """
        try:
            async with asyncio.timeout(None if self.size is None else _PATIENCE):
                await asyncio.shield(self._opened)
        except TimeoutError:
            self._promised = True
        except MirrorproxyError as error:
            raise again(error) from error

    def ready(self, start: int) -> int:
        """See `FileBlob.ready`."""
        if self.ingest is None:
            return start
        end = self.ingest.spans.end_of(start)
        if not self.verified:
            whole = self.ingest.spans.front if self.size is None else self.size
            end = max(start, min(end, whole - HELD))
        if end > start:
            self._handed = max(self._handed, end)
        return end

    async def wait(self, start: int) -> None:
        """See `FileBlob.wait`."""
        while not (self.verified and start == self.size) and self.ready(start) <= start:
            if self.error is not None:
                raise again(self.error)
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = start
            try:
                await future
            finally:
                del self._waiting[future]

    def enter(self) -> None:
        """One more reads the file."""
        self.readers += 1

    def leave(self) -> None:
        """One less does."""
        self.readers -= 1
        self._release()

    def land(self) -> None:
        """The download is over, or never began; the last reader closes the file."""
        self._landed = True
        if not self.verified and self.error is None:
            self._tell(_stopping())
        self._release()

    def _release(self) -> None:
        if self._landed and not self.readers and self.ingest is not None:
            self.ingest.release()

    def _wake(self) -> None:
        over = self.error is not None or self.verified
        for future, start in self._waiting.items():
            if not future.done() and (over or self.ready(start) > start):
                future.set_result(None)

    # The download.

    async def run(self, partials: Partials, space: Space, metrics: Metrics, budget: float) -> bool:
        """Fetch, check and commit; True where the blob is in the store now.

        `budget`: seconds without a new byte after which it fails. Never raises but for cancellation.
        """
        tasks = Tasks()
        try:
            self.ingest = ingest = await partials.open(self.digest)
            ingest.changed = self._wake
            self._reserved = self.size or ingest.total or ingest.spans.total
            self._room = await space.reserve(self._reserved)
            self._room.wrote(ingest.spans.total)
            tasks.start(_checkpoints(ingest), name=f"checkpoints of {self.digest.hex[:12]}")
            await self._fetch(ingest, metrics, budget)
            await tasks.aclose()
            self._room.commit(await ingest.commit())
        except MirrorproxyError as error:
            await tasks.aclose()
            await self._end(error)
            return False
        except asyncio.CancelledError:
            await tasks.aclose()
            await self._end(_stopping())
            raise
        finally:
            if self._room is not None:
                self._room.release()
        return True

    async def _end(self, error: MirrorproxyError) -> None:
        """End without the whole: what came is kept, unless it is known to be wrong, and readers get the error."""
        if self.ingest is not None:
            if isinstance(error, DigestMismatch):
                await self.ingest.discard()
            else:
                await self.ingest.close()
        self._tell(error)
        if not isinstance(error, NotFound | Overloaded):
            log.warning("%s@%s: %s", self.repository, self.digest, error)

    def _tell(self, error: MirrorproxyError) -> None:
        self.error = error
        if not self._opened.done():
            if isinstance(error, CacheFailed):
                self._opened.set_result(None)  # its readers are passed through
            else:
                self._opened.set_exception(error)
                self._opened.exception()  # whoever waited may be gone
        self._wake()

    async def _fetch(self, ingest: Ingest, metrics: Metrics, budget: float) -> None:
        """Return once all bytes are there and right. Raises an `UpstreamError`, `NotFound` or `CacheFailed`."""
        if self.size is not None:
            if ingest.total not in (None, self.size):
                await ingest.restart()
            ingest.total = self.size
        began, disputes, failures, seen = time.monotonic(), 0, 0, 0.0
        while True:
            try:
                await self._transfer(ingest, metrics)
                await ingest.verify()
            except (_Disputed, DigestMismatch) as error:
                disputes += 1
                if isinstance(error, DigestMismatch):
                    metrics.mismatches.labels(self.repository.registry).inc()
                    if self._last is not None:
                        self._last.blame(error)
                elif disputes == 1:
                    continue  # the answer that is new is the likelier liar: ask once more
                if self._handed or disputes > 2:
                    raise DigestMismatch(error.message) from error
                await ingest.restart()
                ingest.total = self.size
            except UpstreamError as error:
                if not self._progress and not self._promised:
                    raise  # nobody waits for more than an answer: this is it
                failures = 0 if self._progress > seen else failures + 1
                seen = self._progress
                left = max(self._progress, began) + budget - time.monotonic()
                if left <= 0:
                    raise TimedOut(f"no new byte of {self.digest} in {budget:.0f} s; last: {error}") from error
                await asyncio.sleep(min(left, _pause(failures, error.retry_after)))
            else:
                break
        self.size = ingest.total
        self.verified = True
        self._wake()

    async def _transfer(self, ingest: Ingest, metrics: Metrics) -> None:
        """Ask for the first missing byte and on, and write what comes, up to the end."""
        start = ingest.spans.front
        if start == ingest.total:
            self._admit()
            return  # a crash between the last byte and the commit
        async with aclosing(await self.source.blob(self.repository, self.digest, start)) as transfer:
            self._last = transfer
            try:
                await self._meet(transfer, ingest)
                if start:
                    metrics.resumes.labels(self.repository.registry).inc()
                position = transfer.first
                async for chunk in transfer.chunks(position, None):
                    if position < start:
                        # The whole came where a part was asked for: never append blindly.
                        await _compare(ingest, position, chunk[: start - position])
                        chunk, position = chunk[start - position :], min(start, position + len(chunk))
                    if ingest.total is not None and position + len(chunk) > ingest.total:
                        raise BadAnswer(f"upstream sends more than the {ingest.total} bytes of {self.digest}")
                    if chunk:
                        room = self._need(position + len(chunk))
                        await ingest.write(position, chunk)
                        room.wrote(len(chunk))
                        position += len(chunk)
                        self._progress = time.monotonic()
            except BadAnswer as error:
                transfer.blame(error)
                raise
            await ingest.settle()
            if ingest.total is None:
                ingest.total = position
            elif position < ingest.total:
                raise BadAnswer(f"upstream ended after {position} of {ingest.total} bytes")

    def _need(self, size: int) -> Room:
        """See that there is room for `size` bytes in all. Raises `CacheFailed`."""
        assert self._room is not None
        if size > self._reserved and not self._room.extend(size - self._reserved):
            raise CacheFailed("there is no room for it in the cache")
        self._reserved = max(self._reserved, size)
        return self._room

    async def _meet(self, transfer: Transfer, ingest: Ingest) -> None:
        """See whether an answer fits what is known of the blob, and let clients have their headers."""
        if transfer.size is not None and ingest.total not in (None, transfer.size):
            message = f"upstream speaks of {transfer.size} bytes, not {ingest.total}, for {self.digest}"
            raise BadAnswer(message) if self.size is not None else _Disputed(message)
        if transfer.size is not None:
            ingest.total = self.size = transfer.size
            self._need(transfer.size)
        self._admit()

    def _admit(self) -> None:
        """Let clients have their headers."""
        if not self._opened.done():
            self._opened.set_result(None)


class Reader:
    """A client's view of a flight: a `FileBlob`."""

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
    def size(self) -> int | None:
        """What is known of it now."""
        return self._flight.size

    @property
    def fd(self) -> int:
        """The partial file's."""
        return -1 if self._flight.ingest is None else self._flight.ingest.fd

    def ready(self, start: int) -> int:
        """See `FileBlob.ready`."""
        return self._flight.ready(start)

    async def wait(self, start: int) -> None:
        """See `FileBlob.wait`."""
        await self._flight.wait(start)

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`: from the file, and from upstream where the disk failed."""
        flight = self._flight
        try:
            while end is None or start < end:
                await flight.wait(start)
                ready = flight.ready(start)
                if ready <= start:
                    return
                size = min(_READ, ready - start, (end or ready) - start)
                data = await asyncio.to_thread(os.pread, self.fd, size, start)
                start += len(data)
                yield data
            return
        except CacheFailed:
            pass
        hasher, hashed = flight.ingest.hash_so_far() if flight.ingest is not None else (None, 0)
        passage = Passage(flight.source, flight.repository, flight.digest, flight.size, hasher=hasher, hashed=hashed)
        async with aclosing(passage):
            async for data in passage.chunks(start, end):
                yield data

    async def aclose(self) -> None:
        """Leave; the flight goes on."""
        if self._open:
            self._open = False
            self._flight.leave()


async def _checkpoints(ingest: Ingest) -> None:
    """Make what came survive a crash, now and then."""
    kept = ingest.spans.total
    with contextlib.suppress(CacheFailed):  # the writer meets the same disk, and tells
        while True:
            await asyncio.sleep(_CHECKPOINT_EVERY)
            if ingest.spans.total != kept:
                kept = ingest.spans.total
                await ingest.checkpoint()


async def _compare(ingest: Ingest, position: int, data: bytes) -> None:
    await ingest.settle()
    if await asyncio.to_thread(os.pread, ingest.fd, len(data), position) != data:
        raise _Disputed(f"upstream sends other bytes than before for {ingest.digest}")


def _stopping() -> Overloaded:
    return Overloaded("mirrorproxy is stopping")


def _pause(failures: int, retry_after: float | None) -> float:
    """Seconds until the next try: at once after progress, then longer and longer, never sooner than upstream asks."""
    backoff = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, 0.1 * 2.0**failures)  # noqa: S311  # jitter, no secret
    return max(backoff, retry_after or 0.0)


def again(error: MirrorproxyError) -> MirrorproxyError:
    """The same error for one more to raise: a raised exception collects the tracebacks of all who raise it."""
    return copy.copy(error).with_traceback(None)
