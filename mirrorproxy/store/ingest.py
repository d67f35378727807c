"""Content that is not complete yet: `partial/<algorithm>-<hex>/` with the bytes so far and what they are.

    data    the bytes, at their final offsets
    state   {"total": 1234 or null, "spans": [[0, 1000]]}: what of `data` had reached the disk when this was written

An `Ingest` has one writer and any number of readers, which read the file by its descriptor. Its lifecycle:

    open ──> write ... ──> verify ──> commit      the content is under its digest now, and this folder is gone
      │        └─ checkpoint, now and then        what is on the disk survives a crash
      ├─────> close                               keep what is here: the next `open` goes on from there
      └─────> discard                             throw it away

Bytes are written and hashed in a thread of the ingest's own, fed by a queue: a hop through a shared pool for every
chunk costs two thirds of the throughput (230 against 670 MB/s). The hash follows the front. What was written out of
order waits for it in memory (`early`), as far as that goes; the rest, and what was there when the ingest was opened, is
read back from the file when the front reaches it, since the state of a hash cannot be saved.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from mirrorproxy.errors import CacheFailed, DigestInvalid, DigestMismatch
from mirrorproxy.names import Digest
from mirrorproxy.spans import Spans
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.early import Allowance, Early
from mirrorproxy.store.files import disk_errors, write_whole
from mirrorproxy.store.partfile import load_state, open_part

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

_QUEUE_LIMIT = 8 << 20  # bytes that may wait for the disk, for each ingest
_EARLY_LIMIT = 32 << 20  # bytes that wait in memory for the hash, of all ingests together
_REREAD = 1 << 20  # bytes hashed from the file in one step


class Part(NamedTuple):
    """A part of some content: the bytes it takes on the disk, and when the last ones came (Unix seconds)."""

    digest: Digest
    blocks: int
    modified: float


class Partials:
    """The folder of what is not complete yet. One `Ingest` at a time for a digest: who calls sees to that."""

    def __init__(self, directory: Path, blobs: BlobStore) -> None:
        self._directory = directory
        self._blobs = blobs
        self._allowance = Allowance(_EARLY_LIMIT)

    async def open(self, digest: Digest) -> "Ingest":
        """Begin, or go on with, the content `digest`. Raises `CacheFailed`."""
        folder = self._folder(digest)
        opening = asyncio.get_running_loop().run_in_executor(None, open_part, folder)
        try:
            fd, spans, total = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unclaimed)
            raise
        return Ingest(digest, folder, fd, spans, total, self._blobs, Early(self._allowance))

    def scan(self) -> Iterator[Part]:
        """All that is here; what is no part hides none that is. Blocks. Raises `CacheFailed`."""
        with disk_errors("look for partial files"), os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(DigestInvalid, OSError):
                    digest = Digest(entry.name.replace("-", ":", 1))
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    try:
                        found = Path(entry.path, "data").stat()
                        yield Part(digest, found.st_blocks * 512, found.st_mtime)
                    except FileNotFoundError:  # a crash came before the first byte, or before the end of the folder
                        yield Part(digest, 0, entry.stat().st_mtime)

    def begun(self, digest: Digest) -> int:
        """The bytes of a part that are here by its last checkpoint, 0 where there is none. Blocks."""
        folder = self._folder(digest)
        try:
            return load_state(folder / "state", (folder / "data").stat().st_size)[0].total
        except OSError:
            return 0

    def remove(self, digest: Digest) -> None:
        """Throw a part away that nobody is filling. Blocks."""
        shutil.rmtree(self._folder(digest), ignore_errors=True)

    def _folder(self, digest: Digest) -> Path:
        return self._directory / f"{digest.algorithm}-{digest.hex}"


class Ingest:
    """One piece of content in the making; everything here is for the event loop's thread.

    `accepted` is what was given to `write`, of which `spans` may be read from `fd`; `hashed` bytes of the front went
    into the hash; `total` is the size where it is known; `failure` is set once the disk failed: nothing is written from
    then on. `changed` is called when any of these moved.
    """

    def __init__(
        self, digest: Digest, folder: Path, fd: int, spans: Spans, total: int | None, blobs: BlobStore, early: Early
    ) -> None:
        self.digest = digest
        self.fd = fd
        self.spans = spans
        self.accepted = Spans(spans)
        self.total = total
        self.hashed = 0
        self.failure: CacheFailed | None = None
        self.changed: Callable[[], None] = lambda: None
        self._folder = folder
        self._blobs = blobs
        self._loop = asyncio.get_running_loop()
        self._queued = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._thread = threading.Thread(target=self._work, name=f"ingest {digest.hex[:12]}", daemon=True)
        # The thread's own, from here on down; `_lock` guards what it hands to the loop.
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._written = Spans(spans)
        self._hash: _Hash = digest.hasher()
        self._position = 0
        self._early = early
        self._lock = threading.Lock()
        self._notes: list[tuple[int, int]] = []
        self._noted = False
        self._cleared = False
        self._ended = False
        self._released = False
        self._error: CacheFailed | None = None
        self._saving = threading.Lock()  # one checkpoint at a time: a cancelled one still runs in its thread
        if spans:
            self._queue.put(self._catch_up)
        # Not here: to start a thread waits until it runs, on busy cores 1.5 ms, which the first byte would come later.
        self._starting = self._loop.run_in_executor(None, self._begin)

    def __repr__(self) -> str:
        return f"<Ingest {self.digest.hex[:12]} {self.spans.total} of {self.total}, hashed {self.hashed}>"

    async def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`, soon; waits while too much is queued. Raises `CacheFailed` once the disk failed."""
        while self._queued > _QUEUE_LIMIT and self.failure is None:
            await self._change()
        if self.failure is not None:
            raise self.failure
        self._queued += len(data)
        self.accepted.add(offset, offset + len(data))
        self._queue.put(partial(self._put, offset, data))

    async def settle(self) -> None:
        """Wait until everything written so far is in the file. Raises `CacheFailed`."""
        while self._queued and self.failure is None:
            await self._change()
        if self.failure is not None:
            raise self.failure

    async def verify(self) -> None:
        """Wait for the hash over all `total` bytes. Raises `DigestMismatch`, or `CacheFailed` where the disk failed."""
        while (self.total is None or self.hashed < self.total) and self.failure is None:
            await self._change()
        if self.failure is not None:
            raise self.failure
        if self._hash.hexdigest() != self.digest.hex:
            raise DigestMismatch(f"the bytes that upstream sent are not {self.digest}")

    async def restart(self) -> None:
        """Forget all bytes and begin again at 0, in the same file. For bytes that nobody has read yet."""
        await self.settle()
        self._cleared = False
        self._queue.put(self._clear)
        while not self._cleared and self.failure is None:
            await self._change()
        if self.failure is not None:
            raise self.failure
        self.spans, self.accepted, self.total = Spans(), Spans(), None
        await self.checkpoint()

    def hash_so_far(self) -> "tuple[_Hash, int]":
        """The hash of the front and its length, once closed or failed: the rest can be checked with it elsewhere."""
        return self._hash.copy(), self.hashed

    async def checkpoint(self) -> None:
        """Make what is written so far survive a crash. Raises `CacheFailed`."""
        state = json.dumps({"total": self.total, "spans": list(self.spans)})
        await asyncio.to_thread(self._save, state.encode())

    async def commit(self) -> int:
        """Move the verified content under its digest, for good; the bytes it takes, 0 where it was there already.

        Raises `CacheFailed`.
        """
        await self._stop()
        blocks = await asyncio.to_thread(self._blobs.commit_file, self._folder / "data", self.digest)
        await asyncio.to_thread(self._remove)
        return blocks

    async def close(self) -> int:
        """Stop writing and keep what is here: the bytes it takes. Readers may go on until `release`."""
        await self._stop()
        if self.failure is None:
            with contextlib.suppress(CacheFailed):  # then the next open finds the checkpoint before this one
                await self.checkpoint()
        with contextlib.suppress(OSError):
            return os.fstat(self.fd).st_blocks * 512
        return 0

    async def discard(self) -> None:
        """Stop writing and throw away what is here. Readers may go on until `release`."""
        await self._stop()
        await asyncio.to_thread(self._remove)

    def release(self) -> None:
        """Close the descriptor: nobody reads any more. The thread does it where it writes still, since whoever ended
        this was cancelled: else it would write into the file that gets this number next.
        """
        self._queue.put(None)
        with self._lock:
            self._released = True
            ended = self._ended
        if ended:
            os.close(self.fd)

    async def _stop(self) -> None:
        self._queue.put(None)
        if await asyncio.shield(self._starting):
            await asyncio.to_thread(self._thread.join)
        self._take()

    async def _change(self) -> None:
        future = self._loop.create_future()
        self._waiting.append(future)
        await future

    def _take(self) -> None:
        """Learn what the thread did since the last time."""
        with self._lock:
            notes, self._notes, self._noted = self._notes, [], False
            self.hashed = self._position
            error = self._error
        for offset, size in notes:
            self.spans.add(offset, offset + size)
            self._queued -= size
        if error is not None and self.failure is None:
            self.failure = error
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self.changed()

    def _remove(self) -> None:
        with self._saving:  # not while a file comes into the folder
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, state: bytes) -> None:
        with self._saving, disk_errors("keep a partial file"):
            os.fdatasync(self.fd)  # first the data, then the word that it is there
            write_whole(self._folder / "state", [state], scratch=self._folder, mode=0o600)

    def _begin(self) -> bool:
        """Start the thread. False where the system has none left: nothing can be written then."""
        try:
            self._thread.start()
        except RuntimeError as error:
            with self._lock:
                self._error = CacheFailed(f"a partial file cannot be written: {error}")
                self._ended = True
            self._tell()
            return False
        return True

    # What follows runs in the thread.

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is None:
                try:
                    with disk_errors("write a partial file"):
                        job()
                except CacheFailed as error:
                    with self._lock:
                        self._error = error
                    self._tell()
        self._early.clear()
        with self._lock:
            self._ended = True
            released = self._released
        if released:
            os.close(self.fd)

    def _put(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        # What is here was read, and may have been hashed: it is not written over, whatever comes for it now.
        holes = list(self._written.gaps(end, offset))
        for hole in holes:
            view = memoryview(data)[hole.start - offset : hole.end - offset]
            while view:
                view = view[os.pwrite(self.fd, view, hole.end - len(view)) :]
        # Readers need the bytes, only the last of them needs the hash: told before it, and again after it.
        self._tell((offset, len(data)))
        if holes == [(offset, end)]:
            if offset == self._position:
                self._hash.update(data)
                self._position = end
            elif offset > self._position:
                self._early.keep(offset, data)
        self._written.add(offset, end)
        self._catch_up()

    def _catch_up(self) -> None:
        """Bring the hash to the front: one step at least, more while nothing waits to be written."""
        while (end := self._written.end_of(self._position)) > self._position:
            data = self._early.take(self._position)
            if data is None:
                end = min(end, self._position + _REREAD, self._early.next(self._position) or end)
                data = os.pread(self.fd, end - self._position, self._position)
            if not data:
                raise OSError(errno.EIO, "a partial file became shorter than it was")
            self._hash.update(data)
            self._position += len(data)
            if not self._queue.empty():
                break
        self._tell()

    def _clear(self) -> None:
        os.ftruncate(self.fd, 0)
        self._written, self._hash, self._position = Spans(), self.digest.hasher(), 0
        self._early.clear()
        self._cleared = True
        self._tell()

    def _tell(self, *written: tuple[int, int]) -> None:
        """Let the loop know; one call for a burst, since each costs a wake-up."""
        with self._lock:
            self._notes.extend(written)
            if self._noted:
                return
            self._noted = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to know
            self._loop.call_soon_threadsafe(self._take)


def _close_unclaimed(opening: "asyncio.Future[tuple[int, Spans, int | None]]") -> None:
    """Close what was opened for somebody who was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])
