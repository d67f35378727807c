"""Committed content: `blobs/<algorithm>/<hex>`, read-only files, each of them whole and what its name says.

Nothing is seen here before its size and digest were checked, it was flushed, and renamed into place in one step
(containerd's content store works the same way). The hit test is opening the file. Files that were opened are kept open,
the least recently used of them are closed first; a hit on one of these costs neither a thread nor a system call.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import ParamSpec, TypeVar

from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Digest
from mirrorproxy.store.content import Content, WrongError, has_digest
from mirrorproxy.store.openfiles import Identity, OpenBlob, OpenFile, OpenFiles
from mirrorproxy.tasks import SingleFlight

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_THREADS = 8  # cold opens and small writes, which wait for the disk and for each other's flushes


class BlobStore(Content):
    """The content under `directory`. What waits belongs to the event loop, the rest is `Content`'s.

    `keep_open`: how many descriptors are kept beside those being read. `on_corrupt(digest, blocks)` is called on the
    loop when content was taken away because it was wrong, with the bytes on disk that it had. `verify`: hash what is
    opened before it is read for the first time, for as long as it stays open.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_open: int = 512,
        on_corrupt: Callable[[Digest, int], None] | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__(directory)
        self.verify = verify
        self._on_corrupt = on_corrupt
        self._removals = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")
        self._files = OpenFiles(keep_open, self._threads)
        self._proving = asyncio.Semaphore(2)  # long hashes at a time: other opens find a thread
        self._proofs: SingleFlight[Identity, bool] = SingleFlight()

    def __repr__(self) -> str:
        return f"<BlobStore {self._directory} [{len(self._files)} kept open]>"

    async def open(self, digest: Digest, size: int | None = None) -> OpenBlob | None:
        """The content `digest`, or None where it is not here. Close what you get. Raises `CacheFailed`.

        `size` is what a descriptor says. Where the file has another, its bytes are hashed: when they are wrong it is
        taken away and this is a miss, so that it heals; when they are right the descriptor lies, and the blob is given
        with its true size. (Were the file removed on a descriptor's word, anybody's manifest could empty the cache.)
        """
        blob = self._files.take(digest) or await self._open_cold(digest)
        if blob is None or ((size is None or size == blob.size) and not self.verify):
            return blob
        return await self._prove(blob, size)

    async def read(self, digest: Digest, limit: int) -> bytes | None:
        """The bytes of small content, checked against their digest, or None where it is not here.

        Wrong content is put into quarantine. Content of more than `limit` bytes is left alone, and is None too.
        Raises `CacheFailed`.
        """
        try:
            return await self._run(self._read, digest, limit)
        except WrongError as wrong:
            await self._heal(digest, wrong)
            return None

    async def put(self, digest: Digest, data: bytes) -> int:
        """Keep small content; returns the bytes newly taken on the disk, 0 where it was here.

        Raises `DigestMismatch` where `data` is something else, and `CacheFailed`.
        """
        return await self._run(self._put, digest, data)

    async def condemn(self, digest: Digest, reason: str, only: Identity) -> bool:
        """Put content that is wrong into quarantine, to be fetched again; False where it is another file by now.

        Raises `CacheFailed`.
        """
        return await self._heal(digest, WrongError(reason, only))

    def is_read(self, digest: Digest) -> bool:
        """Does anybody read it now?"""
        return self._files.is_read(digest)

    async def remove(self, digest: Digest) -> int:
        """Remove the content; returns the bytes on disk that this frees, 0 where it was not here.

        Who reads it may finish; the space is free after that. Raises `CacheFailed`.
        """
        return await self._remove(digest, None)

    async def remove_all(self, digests: Sequence[Digest]) -> list[int]:
        """Remove these, in one go of a thread; returns the bytes that each frees, as `remove` does.

        Where the disk fails on the way, those that went before. Raises `CacheFailed` where none did.
        """
        for digest in digests:
            self._files.drop(digest)
        try:
            return await self._run(self._unlink_all, digests)
        finally:
            self._removals += 1
            for digest in digests:
                self._files.drop(digest)

    async def aclose(self) -> None:
        """Close what nobody reads. What is being read is closed by its last reader."""
        await self._proofs.aclose()
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
        except WrongError as wrong:
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

    async def _prove(self, blob: OpenBlob, size: int | None) -> OpenBlob | None:
        """The blob, where its bytes are right, which is found out once; else it is taken away, and this is a miss."""
        file = blob._file  # noqa: SLF001 - the two are one thing
        assert file is not None
        try:
            if file.right is None:
                file.right, joined = await self._proofs.do(file.identity, lambda: self._hash(file))
                if file.right and not joined and size not in (None, file.size):
                    log.warning("%s has %d bytes; a descriptor says %d and is wrong", file.digest, file.size, size)
        except BaseException:
            blob.close()
            raise
        if file.right:
            return blob
        blob.close()
        return None

    async def _hash(self, file: OpenFile) -> bool:
        """Whether the bytes are right. It keeps the file open by itself: who waits for it may leave."""
        reader = OpenBlob(self._files, file)
        try:
            async with self._proving:
                right = await self._run(has_digest, file.fd, file.digest)
        finally:
            reader.close()
        if not right:
            await self._heal(file.digest, WrongError(f"{file.size} bytes of something else", file.identity))
        return right

    async def _heal(self, digest: Digest, wrong: WrongError) -> bool:
        freed = await self._remove(digest, wrong.identity, aside=True)
        if freed:  # else somebody else did it
            log.warning("put into quarantine, to be fetched again: %s is %s", digest, wrong.reason)
            if self._on_corrupt is not None:
                self._on_corrupt(digest, freed)
        return bool(freed)

    async def _remove(self, digest: Digest, only: Identity | None, *, aside: bool = False) -> int:
        self._files.drop(digest)
        try:
            return await self._run(self._unlink, digest, only, aside=aside)
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


def _close_unclaimed(opening: Future[OpenFile | None]) -> None:
    """Close what was opened for somebody who was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None and (file := opening.result()) is not None:
        os.close(file.fd)
