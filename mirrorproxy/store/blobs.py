"""Committed content: `blobs/<algorithm>/<hex>`, read-only files, each of them whole and what its name says.

Nothing is seen here before its size and digest were checked, it was flushed, and renamed into place in one step
(containerd's content store works the same way). The hit test is opening the file. Files that were opened are kept open,
the least recently used of them are closed first; a hit on one of these costs neither a thread nor a system call.
"""

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple, ParamSpec, TypeVar

from mirrorproxy.errors import CacheFailed, DigestInvalid, DigestMismatch
from mirrorproxy.names import Digest
from mirrorproxy.store.directory import ALGORITHMS, prepare
from mirrorproxy.store.files import disk_errors, sync_folder, temporary, write_whole
from mirrorproxy.store.openfiles import Identity, OpenBlob, OpenFile, OpenFiles, identity

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_THREADS = 8  # cold opens and small writes, which wait for the disk and for each other's flushes
_STEP = 1 << 20
# Not through a link, and without waiting for whoever may have put a named pipe there.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Stored(NamedTuple):
    """What a scan found: `blocks` is the bytes it takes on the disk, `modified` when it was written (Unix seconds)."""

    digest: Digest
    blocks: int
    modified: float


class _WrongError(Exception):
    """What is at a digest's place is not its content."""

    def __init__(self, reason: str, identity: Identity) -> None:
        super().__init__(reason)
        self.reason = reason
        self.identity = identity


class BlobStore:
    """The content under `directory`. All but `prepare`, `scan`, `commit_file` and `path` belong to the event loop.

    `keep_open`: how many descriptors are kept beside those being read. `on_corrupt(digest, blocks)` is called on the
    loop when content was removed because it was wrong, with the bytes on disk that this freed.
    """

    def __init__(
        self, directory: Path, *, keep_open: int = 512, on_corrupt: Callable[[Digest, int], None] | None = None
    ) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._partial = directory / "partial"
        self._on_corrupt = on_corrupt
        self._removals = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")
        self._files = OpenFiles(keep_open, self._threads)
        self._proving = asyncio.Lock()  # one long hash at a time
        self._proved_wrong: Identity | None = None

    def __repr__(self) -> str:
        return f"<BlobStore {self._directory} [{len(self._files)} kept open]>"

    def path(self, digest: Digest) -> Path:
        """Where the content `digest` is when it is here."""
        return self._blobs / digest.algorithm / digest.hex

    def prepare(self) -> None:
        """Make the directory ready, see `directory.prepare`. Blocks. Raises `CacheFailed`."""
        prepare(self._directory)

    async def open(self, digest: Digest, size: int | None = None) -> OpenBlob | None:
        """The content `digest`, or None where it is not here. Close what you get. Raises `CacheFailed`.

        `size` is what a descriptor says. Where the file has another, its bytes are hashed: when they are wrong the file
        is removed and this is a miss, so that it heals; when they are right the descriptor lies, and the blob is given
        with its true size. (Were the file removed on a descriptor's word, anybody's manifest could empty the cache.)
        """
        blob = self._files.take(digest) or await self._open_cold(digest)
        if blob is None or size is None or size == blob.size:
            return blob
        return await self._prove(blob, size)

    async def read(self, digest: Digest, limit: int) -> bytes | None:
        """The bytes of small content, checked against their digest, or None where it is not here.

        Wrong content is removed. Content of more than `limit` bytes is left alone, and is None too.
        Raises `CacheFailed`.
        """
        try:
            return await self._run(self._read, digest, limit)
        except _WrongError as wrong:
            await self._heal(digest, wrong)
            return None

    async def put(self, digest: Digest, data: bytes) -> int:
        """Keep small content; returns the bytes newly taken on the disk, 0 where it was here.

        Raises `DigestMismatch` where `data` is something else, and `CacheFailed`.
        """
        return await self._run(self._put, digest, data)

    def commit_file(self, path: Path, digest: Digest) -> int:
        """Move a file, whose size and digest were checked, to its place; returns as `put`. The file at `path` is gone.

        Blocks; may be called in any thread. Raises `CacheFailed`.
        """
        final = self.path(digest)
        with disk_errors("commit content"):
            descriptor = os.open(path, _READ)
            try:
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
                found = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if self._holds(final, found.st_size):
                path.unlink()
                return 0
            path.replace(final)
        sync_folder(final.parent)
        sync_folder(path.parent)
        return _blocks(found)

    async def remove(self, digest: Digest) -> int:
        """Remove the content; returns the bytes on disk that this frees, 0 where it was not here.

        Who reads it may finish; the space is free after that. Raises `CacheFailed`.
        """
        return await self._remove(digest, None)

    def scan(self, before: float | None = None) -> Iterator[Stored]:
        """All content, in no order; with `before` (Unix seconds) without what was put here since.

        Names and things that are not ours are left alone, and their number is logged. Blocks. Raises `CacheFailed`.
        """
        strangers = 0
        for algorithm in ALGORITHMS:
            with disk_errors("scan the cache"), os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    try:
                        digest = Digest(f"{algorithm}:{entry.name}")
                        found = entry.stat(follow_symlinks=False)
                    except DigestInvalid:
                        strangers += 1
                    except FileNotFoundError:
                        continue
                    else:
                        if not stat.S_ISREG(found.st_mode):
                            strangers += 1
                        elif before is None or found.st_ctime < before:
                            yield Stored(digest, _blocks(found), found.st_mtime)
        if strangers:
            log.warning("left alone in %s: %d things that are not content", self._blobs, strangers)

    async def aclose(self) -> None:
        """Close what nobody reads. What is being read is closed by its last reader."""
        self._files.drop_all()
        self._threads.shutdown(wait=False)

    # On the loop.

    async def _open_cold(self, digest: Digest) -> OpenBlob | None:
        """Open the file anew, or find that the one kept is still it."""
        kept = self._files.get(digest)
        if kept is not None:
            kept.checked = monotonic()  # the others go on with it meanwhile
        removals = self._removals
        opening = self._submit(self._open, digest)
        try:
            file = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unclaimed)
            raise
        except _WrongError as wrong:
            await self._heal(digest, wrong)
            return None
        except CacheFailed:
            if (kept := self._files.get(digest)) is None:
                raise
            return OpenBlob(self._files, kept)  # what is open is right, whatever became of the disk
        kept = self._files.get(digest)
        if file is not None and kept is not None and kept.identity == file.identity:
            self._files.shut(file.fd)
            kept.checked = file.checked
            return OpenBlob(self._files, kept)
        self._files.drop(digest)
        if file is None:
            return None
        if self._removals == removals:  # else it may have been opened just before it was removed: for this reader only
            self._files.keep(file)
        return OpenBlob(self._files, file)

    async def _prove(self, blob: OpenBlob, size: int) -> OpenBlob | None:
        file = blob._file  # noqa: SLF001 - the two are one thing
        assert file is not None
        try:
            async with self._proving:
                if file.right is None and file.identity != self._proved_wrong:
                    file.right = await self._run(_has_digest, file.fd, file.digest)
                    if file.right:
                        log.warning("%s has %d bytes; a descriptor says %d and is wrong", file.digest, file.size, size)
                    else:
                        self._proved_wrong = file.identity  # for those who wait here with a descriptor of their own
                        await self._heal(file.digest, _WrongError(f"{file.size} bytes, not {size}", file.identity))
        except BaseException:
            blob.close()
            raise
        if file.right:
            return blob
        blob.close()
        return None

    async def _heal(self, digest: Digest, wrong: _WrongError) -> None:
        freed = await self._remove(digest, wrong.identity)
        if freed:  # else somebody else did it
            log.warning("removed from the cache, to be fetched again: %s is %s", digest, wrong.reason)
            if self._on_corrupt is not None:
                self._on_corrupt(digest, freed)

    async def _remove(self, digest: Digest, only: Identity | None) -> int:
        self._files.drop(digest)
        try:
            return await self._run(self._unlink, digest, only)
        finally:
            self._removals += 1
            self._files.drop(digest)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._submit(work, *args, **kwargs))

    def _submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return self._threads.submit(work, *args, **kwargs)
        except RuntimeError as error:
            raise CacheFailed("the cache is closed") from error

    # In a thread.

    def _open(self, digest: Digest) -> OpenFile | None:
        path = self.path(digest)
        with disk_errors("open cached content"):
            try:
                descriptor = os.open(path, _READ)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO):
                    raise
                with suppress(FileNotFoundError):  # somebody else was faster to remove it
                    raise _WrongError("a link or a socket", identity(path.lstat())) from error
                return None
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise _WrongError("no file", identity(found))
                if not found.st_size and digest.of_same_algorithm(b"") != digest:
                    raise _WrongError("empty", identity(found))
                os.set_blocking(descriptor, True)
            except BaseException:
                os.close(descriptor)
                raise
            return OpenFile(digest, descriptor, found)

    def _read(self, digest: Digest, limit: int) -> bytes | None:
        file = self._open(digest)
        if file is None:
            return None
        try:
            if file.size > limit:
                return None
            with disk_errors("read cached content"), os.fdopen(file.fd, "rb", 0, closefd=False) as reader:
                data = reader.readall()
                found = os.fstat(file.fd)
        finally:
            os.close(file.fd)
        if digest.of_same_algorithm(data) != digest:
            raise _WrongError("something else", identity(found))
        return data

    def _put(self, digest: Digest, data: bytes) -> int:
        if digest.of_same_algorithm(data) != digest:
            raise DigestMismatch(f"the {len(data)} bytes to keep are not {digest}")
        final = self.path(digest)
        with disk_errors("keep content"):
            if self._holds(final, len(data)):
                return 0
            return _blocks(write_whole(final, [data], scratch=self._partial, mode=0o444))

    def _holds(self, final: Path, size: int) -> bool:
        """Whether content of this size is there. A folder in its place, which no rename can replace, is moved away."""
        try:
            found = final.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(found.st_mode):
            with suppress(FileNotFoundError):
                final.rename(temporary(self._partial))
        return stat.S_ISREG(found.st_mode) and found.st_size == size

    def _unlink(self, digest: Digest, only: Identity | None) -> int:
        """Remove it; with `only`, as long as it is still that file, and not what was fetched in its stead."""
        path = self.path(digest)
        with disk_errors("remove cached content"):
            try:
                found = path.lstat()
                if only is not None and only != identity(found):
                    return 0
                if stat.S_ISDIR(found.st_mode):
                    path.rename(temporary(self._partial))
                else:
                    path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return 0
        return _blocks(found)


def _blocks(found: os.stat_result) -> int:
    """Bytes on the disk; never 0, also where the file system keeps a tiny file in its inode."""
    return max(found.st_blocks, 1) * 512


def _has_digest(descriptor: int, digest: Digest) -> bool:
    hasher = digest.hasher()
    offset = 0
    with disk_errors("read cached content"):
        while data := os.pread(descriptor, _STEP, offset):
            hasher.update(data)
            offset += len(data)
    return hasher.hexdigest() == digest.hex


def _close_unclaimed(opening: Future[OpenFile | None]) -> None:
    """Close what was opened for somebody who was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None and (file := opening.result()) is not None:
        os.close(file.fd)
