"""Content that is open: descriptors that readers share, and that are kept for the next ones. For the event loop."""

import os
from collections import Counter, OrderedDict
from concurrent.futures import Executor
from time import monotonic

from mirrorproxy.names import Digest

Identity = tuple[int, int, int, int]
"""Device, inode, size, and when the inode was last changed: a file that is another now has another."""

_TRUSTED_FOR = 1.0  # seconds: how late a file that was removed behind our back may be noticed


class OpenFile:
    """A descriptor. It is closed when it is no longer `kept` and its last reader is gone.

    `right` says whether the bytes are what the digest says, None as long as nobody had to ask.
    """

    __slots__ = ("checked", "digest", "fd", "identity", "kept", "readers", "right", "size")

    def __init__(self, digest: Digest, fd: int, found: os.stat_result) -> None:
        self.digest = digest
        self.fd = fd
        self.size = found.st_size
        self.identity = identity(found)
        self.checked = monotonic()
        self.kept = False
        self.readers = 0
        self.right: bool | None = None


class OpenBlob:
    """Committed content that can be read with `os.pread(fd, ...)` until `close`, even when it is removed meanwhile."""

    __slots__ = ("_file", "_files", "digest", "fd", "size")

    def __init__(self, files: "OpenFiles", file: OpenFile) -> None:
        files.enter(file)
        self._files = files
        self._file: OpenFile | None = file
        self.digest = file.digest
        self.size = file.size
        self.fd = file.fd

    def close(self) -> None:
        """Let go of it: `fd` is not this reader's any more. A second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            self._files.release(file)

    def __repr__(self) -> str:
        return f"<OpenBlob {self.digest.hex[:12]} {self.size}{' closed' if self._file is None else ''}>"


class OpenFiles:
    """The files kept open: the `limit` used last. Whoever reads one that is dropped may finish."""

    def __init__(self, limit: int, threads: Executor) -> None:
        self._limit = limit
        self._threads = threads
        self._files: OrderedDict[Digest, OpenFile] = OrderedDict()
        self._read: Counter[Digest] = Counter()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, digest: Digest) -> OpenFile | None:
        """The file, however long ago it was looked at."""
        return self._files.get(digest)

    def take(self, digest: Digest) -> OpenBlob | None:
        """The content, where its file is open and was looked at less than a second ago."""
        file = self._files.get(digest)
        if file is None or monotonic() - file.checked >= _TRUSTED_FOR:
            return None
        self._files.move_to_end(digest)
        return OpenBlob(self, file)

    def keep(self, file: OpenFile) -> None:
        """Keep a file for the next reader, in place of the one used longest ago."""
        self.drop(file.digest)
        file.kept = True
        self._files[file.digest] = file
        if len(self._files) > self._limit:
            self.drop(next(iter(self._files)))

    def drop(self, digest: Digest) -> None:
        """Keep it no longer."""
        file = self._files.pop(digest, None)
        if file is not None:
            file.kept = False
            if not file.readers:
                self.shut(file.fd)

    def drop_all(self) -> None:
        """Keep none."""
        for digest in list(self._files):
            self.drop(digest)

    def is_read(self, digest: Digest) -> bool:
        """Does anybody read it, kept open or not?"""
        return digest in self._read

    def enter(self, file: OpenFile) -> None:
        """One more reads it."""
        file.readers += 1
        self._read[file.digest] += 1

    def release(self, file: OpenFile) -> None:
        """A reader has finished."""
        file.readers -= 1
        self._read[file.digest] -= 1
        if not self._read[file.digest]:
            del self._read[file.digest]
        if not file.readers and not file.kept:
            self.shut(file.fd)

    def shut(self, descriptor: int) -> None:
        """Close it in a thread: the last close of a removed file of many GiB frees its blocks, which takes a while."""
        try:
            self._threads.submit(os.close, descriptor)
        except RuntimeError:  # the threads are gone, so is the service
            os.close(descriptor)


def identity(found: os.stat_result) -> Identity:
    """What tells this file from another one at the same place."""
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
