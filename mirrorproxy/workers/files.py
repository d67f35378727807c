"""Blobs as a worker reads them: from descriptors that the core gave it, and from the line where there are none."""

import asyncio
import copy
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count

from mirrorproxy import tracing
from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Outcome
from mirrorproxy.spans import Spans
from mirrorproxy.tasks import Tasks
from mirrorproxy.workers.line import Line, close
from mirrorproxy.workers.words import Opened, Progress

NUMBERS = count(1)
"""For the blobs that this worker has the core open."""


class Held:
    """A complete file, and the core's promise to keep it: for all who read it, and until `drop` for those to come."""

    __slots__ = ("_line", "_number", "_users", "fd", "size")

    def __init__(self, line: Line, number: int, fd: int, size: int) -> None:
        self._line = line
        self._number = number
        self._users = 1
        self.fd = fd
        self.size = size

    def take(self) -> "Held":
        """One more reads it."""
        self._users += 1
        return self

    def drop(self) -> None:
        """One less does."""
        self._users -= 1
        if not self._users:
            os.close(self.fd)
            self._line.tell("close", self._number)


class WholeFile:
    """A complete blob: a `FileBlob`."""

    first = 0

    def __init__(self, line: Line, repository: Repository, digest: Digest, held: Held, outcome: Outcome) -> None:
        self.digest = digest
        self.size: int | None = held.size
        self.outcome = outcome
        self.fd = held.fd
        self._line = line
        self._repository = repository
        self._held: Held | None = held.take()

    def ready(self, start: int) -> int:
        """All of it."""
        return max(start, self.size or 0)

    async def wait(self, start: int) -> None:
        """Nothing to wait for."""

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`. The core opens it once more, and knows what to do where the file cannot be read."""
        number = next(NUMBERS)
        try:
            call = self._line.call("blob", number, self._repository, self.digest, start, end, tracing.carried())
            close((await call).fd)
            async for data in chunks(self._line, number, start, end):
                yield data
        finally:
            self._line.tell("close", number)

    async def aclose(self) -> None:
        """Let go of it."""
        held, self._held = self._held, None
        if held is not None:
            held.drop()


class Download:
    """A download of the core, as all who read it in this worker see it: its file, and what of it may be read."""

    def __init__(self, line: Line, gone: Callable[[], None]) -> None:
        self.fd = -1
        self.size: int | None = None
        self.readers = 0
        self.spans = Spans()
        self._line = line
        self._gone = gone
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._waiting: Counter[int] = Counter()  # how many for each byte
        self._tasks = Tasks()

    async def wait(self, number: int, start: int) -> None:
        """Return when the bytes from `start` on may be read, or there are none. Raises as `FileBlob.wait`.

        The core is asked once for all who wait for the same byte, in the name of the blob `number`; and it hears when
        nobody waits for that any more, since it fetches first what is waited for.
        """
        task = self._asking.get(start)
        if task is None:
            task = self._asking[start] = self._tasks.start(self._ask(number, start), name=f"wait for byte {start}")
        self._waiting[start] += 1
        try:
            await asyncio.wait([task])
        finally:
            self._waiting[start] -= 1
            if not self._waiting[start]:
                task.cancel()
                del self._waiting[start], self._asking[start]
        try:
            task.result()
        except MirrorproxyError as error:
            raise copy.copy(error).with_traceback(None) from error  # each who raises it puts a traceback to it

    async def _ask(self, number: int, start: int) -> None:
        answer = await self._line.call("wait", number, start, self.fd >= 0, tracing.carried())
        progress: Progress = answer.value
        self.learn(start, progress.ready, progress.size, answer.fd)

    def learn(self, start: int, ready: int, size: int | None, fd: int | None) -> None:
        """The bytes from `start` to `ready` may be read. `fd` is the file's, where the core sent it."""
        if self.fd < 0 and fd is not None:
            self.fd = fd
        else:
            close(fd)
        self.size = size
        if self.fd >= 0:
            self.spans.add(start, ready)

    def leave(self) -> None:
        """One reader less; the last one closes the file."""
        self.readers -= 1
        if not self.readers:
            self._gone()
            if self.fd >= 0:
                os.close(self.fd)


class GrowingFile:
    """One reader of a download: a `FileBlob`."""

    first = 0

    def __init__(self, line: Line, number: int, digest: Digest, opened: Opened, download: Download) -> None:
        download.readers += 1
        self.digest = digest
        self.outcome = opened.outcome
        self._line = line
        self._number = number
        self._size = opened.size
        self._download: Download = download
        self._open = True

    @property
    def size(self) -> int | None:
        """What is known of it now."""
        return self._download.size if self._size is None else self._size

    @property
    def fd(self) -> int:
        """The file's; -1 as long as nothing is ready."""
        return self._download.fd

    def ready(self, start: int) -> int:
        """See `FileBlob.ready`."""
        return self._download.spans.end_of(start)

    async def wait(self, start: int) -> None:
        """See `FileBlob.wait`."""
        await self._download.wait(self._number, start)

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`."""
        async for data in chunks(self._line, self._number, start, end):
            yield data

    async def aclose(self) -> None:
        """Leave; the download goes on."""
        if self._open:
            self._open = False
            self._line.tell("close", self._number)
            self._download.leave()


class Streamed:
    """A blob whose bytes come by the line: a `Blob` that is no file."""

    def __init__(self, line: Line, number: int, digest: Digest, opened: Opened) -> None:
        self.digest = digest
        self.size = opened.size
        self.first = opened.first
        self.outcome = opened.outcome
        self._line = line
        self._number = number

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`."""
        async for data in chunks(self._line, self._number, start, end):
            yield data

    async def aclose(self) -> None:
        """Let go of it."""
        self._line.tell("close", self._number)


async def chunks(line: Line, number: int, start: int, end: int | None) -> AsyncIterator[bytes]:
    """The bytes of an open blob, each piece asked for when the one before was taken."""
    while data := (await line.call("chunk", number, start, end, tracing.carried())).value:
        yield data
