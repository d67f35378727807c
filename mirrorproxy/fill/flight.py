"""A running download as its readers see it."""

import asyncio
import copy
from collections.abc import Callable, Collection
from itertools import count

from mirrorproxy.errors import CacheFailed, MirrorproxyError, Overloaded
from mirrorproxy.fill.passage import HELD
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Source
from mirrorproxy.store.ingest import Ingest

_NUMBERS = count(1)
_PATIENCE = 15.0  # seconds: half of what containerd waits for headers


class Flight:
    """One download and its readers. It ends `verified`, or with `error`.

    `size` is what clients were told, or will be: a manifest's word, else the first answer's. `start` is where the first
    reader will begin. `left` is called when the last reader leaves. No two have the same `number`.
    """

    def __init__(
        self,
        source: Source,
        repository: Repository,
        digest: Digest,
        size: int | None,
        *,
        start: int = 0,
        left: Callable[["Flight"], None] = lambda _: None,
    ) -> None:
        self.number = next(_NUMBERS)
        self.digest = digest
        self.repository = repository
        self.source = source
        self.size = size
        self.readers = 0
        self.entered = 0  # readers, ever
        self.verified = False
        self.error: MirrorproxyError | None = None
        self.ingest: Ingest | None = None
        self.handed = 0  # up to where readers were told that they may read
        self.waits = False  # for its turn
        self.promised = False  # some client has headers, though no byte came yet
        self.landed = asyncio.Event()
        self._start = start
        self._left = left
        self._admitted = False
        self._arriving: set[asyncio.Future[None]] = set()
        self._waiting: dict[asyncio.Future[None], int] = {}

    def __repr__(self) -> str:
        state = "verified" if self.verified else type(self.error).__name__ if self.error else "flying"
        return f"<Flight {self.digest.hex[:12]} {state}, {self.readers} readers, {self.ingest!r}>"

    # For readers.

    async def opened(self) -> None:
        """Return when headers may go to a client: upstream has the blob. Raises what upstream said instead.

        Where the size is known, and with it that the repository has the blob, a download that waits for its turn keeps
        nobody waiting for headers; upstream gets `_PATIENCE` seconds for its answer. containerd gives up after 30 s
        without headers, and a clean error is better for as long as one may come.
        """
        if not self._admitted and self.error is None:
            # One for each: what all wait for together, and is shielded, would come two rounds of the loop later.
            future = asyncio.get_running_loop().create_future()
            self._arriving.add(future)
            try:
                async with asyncio.timeout(None if self.size is None else 0 if self.waits else _PATIENCE):
                    await future
            except TimeoutError:
                self.promised = True
            finally:
                self._arriving.discard(future)
        if not self._admitted and self.error is not None:
            raise _again(self.error)

    def ready(self, start: int) -> int:
        """See `FileBlob.ready`."""
        if self.ingest is None:
            return start
        end = self.ingest.spans.end_of(start)
        if not self.verified:
            whole = self.ingest.spans.front if self.size is None else self.size
            end = max(start, min(end, whole - HELD))
        if end > start:
            self.handed = max(self.handed, end)
        return end

    async def wait(self, start: int) -> None:
        """See `FileBlob.wait`."""
        while not (self.verified and start == self.size) and self.ready(start) <= start:
            if self.error is not None:
                raise _again(self.error)
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = start
            try:
                await future
            finally:
                del self._waiting[future]

    def enter(self) -> None:
        """One more reads the file."""
        self.readers += 1
        self.entered += 1

    def leave(self) -> None:
        """One less does; the last one after the end closes the file."""
        self.readers -= 1
        if not self.readers:
            self._left(self)
        self._release()

    # For the download.

    @property
    def wanted(self) -> Collection[int]:
        """Where readers wait for bytes; before the first one waits, where it will."""
        return self._waiting.values() or (self._start,)

    def wake(self) -> None:
        """Something changed: let readers go on for whom it did."""
        over = self.error is not None or self.verified
        for future, start in self._waiting.items():
            if not future.done() and (over or self.ready(start) > start):
                future.set_result(None)

    def admit(self) -> None:
        """Upstream has the blob: clients may have their headers."""
        self._admitted = True
        self._let_in()

    def tell(self, error: MirrorproxyError) -> None:
        """It ends without the whole. With `CacheFailed`, readers are passed through."""
        self.error = error
        if isinstance(error, CacheFailed):
            self._admitted = True
        self._let_in()
        self.wake()

    def _let_in(self) -> None:
        for future in self._arriving:
            if not future.done():
                future.set_result(None)

    def land(self) -> None:
        """The download is over, or never began."""
        if not self.verified and self.error is None:
            self.tell(stopping())
        self.landed.set()
        self._release()

    def _release(self) -> None:
        if self.landed.is_set() and not self.readers and self.ingest is not None:
            self.ingest.release()


def stopping() -> Overloaded:
    """Why a download ends before its end, when nothing is wrong."""
    return Overloaded("mirrorproxy is stopping")


def _again(error: MirrorproxyError) -> MirrorproxyError:
    """The same error for one more to raise: a raised exception collects the tracebacks of all who raise it."""
    return copy.copy(error).with_traceback(None)
