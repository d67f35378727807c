"""Committed content on the disk: everything here blocks, and may be called in any thread. See `blobs`."""

import errno
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import nsmallest
from pathlib import Path
from typing import NamedTuple

from mirrorproxy.errors import CacheFailed, DigestInvalid, DigestMismatch
from mirrorproxy.names import Digest
from mirrorproxy.store.directory import ALGORITHMS, prepare
from mirrorproxy.store.files import disk_errors, sync_folder, temporary, write_whole
from mirrorproxy.store.openfiles import Identity, OpenFile, identity

log = logging.getLogger(__name__)

_HEX = {"sha256": re.compile("[0-9a-f]{64}").fullmatch, "sha512": re.compile("[0-9a-f]{128}").fullmatch}
_STEP = 1 << 20
_REFUSED = {
    errno.ELOOP: "a link",
    errno.ENXIO: "a socket",
    errno.EACCES: "a file that may not be read",
    errno.EPERM: "a file that may not be read",
}
# Not through a link, and without waiting for whoever may have put a named pipe there.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Stored(NamedTuple):
    """What a scan found: `blocks` is the bytes it takes on the disk, `modified` when it was written, `changed` when it
    was put here (Unix seconds).
    """

    digest: Digest
    blocks: int
    modified: float
    changed: float


class WrongError(Exception):
    """What is at a digest's place is not its content."""

    def __init__(self, reason: str, identity: Identity) -> None:
        super().__init__(reason)
        self.reason = reason
        self.identity = identity


class Content:
    """The files under `directory`. Methods without an underscore raise `CacheFailed`; the others `WrongError` too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._partial = directory / "partial"
        self._quarantine = directory / "quarantine"

    def path(self, digest: Digest) -> Path:
        """Where the content `digest` is when it is here."""
        return self._blobs / digest.algorithm / digest.hex

    def prepare(self) -> None:
        """Make the directory ready, see `directory.prepare`. Blocks. Raises `CacheFailed`."""
        prepare(self._directory)

    def commit_file(self, path: Path, digest: Digest) -> int:
        """Move a file, whose size and digest were checked, to its place; returns as `put`. The file at `path` is gone.

        Raises `CacheFailed`.
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

    def names(self, after: Digest | None, limit: int) -> list[Digest]:
        """The next content behind `after`, in the order of digests. Memory grows with `limit` alone.

        Raises `CacheFailed`.
        """
        found: list[Digest] = []
        for algorithm in ALGORITHMS:
            if after is None or after.algorithm <= algorithm:
                behind = after.hex if after is not None and after.algorithm == algorithm else ""
                with disk_errors("look through the cache"), os.scandir(self._blobs / algorithm) as entries:
                    names = (entry.name for entry in entries if entry.name > behind and _HEX[algorithm](entry.name))
                    found += [Digest(f"{algorithm}:{name}") for name in nsmallest(limit - len(found), names)]
        return found

    def scan(self) -> Iterator[Stored]:
        """All content, in no order.

        Names and things that are not ours are left alone, and their number is logged. Raises `CacheFailed`.
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
                        else:
                            yield Stored(digest, _blocks(found), found.st_mtime, found.st_ctime)
        if strangers:
            log.warning("left alone in %s: %d things that are not content", self._blobs, strangers)

    def digests(self) -> Iterator[Digest]:
        """The names of all content, in no order: a tenth of the work of a `scan`."""
        for algorithm in ALGORITHMS:
            with disk_errors("scan the cache"), os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    with suppress(DigestInvalid):
                        yield Digest(f"{algorithm}:{entry.name}")

    def stat(self, digests: Iterable[Digest]) -> Iterator[Stored]:
        """What a `scan` would say of these, as far as they are here."""
        for digest in digests:
            with disk_errors("look at the cache"), suppress(FileNotFoundError, NotADirectoryError):
                found = self.path(digest).lstat()
                if stat.S_ISREG(found.st_mode):
                    yield Stored(digest, _blocks(found), found.st_mtime, found.st_ctime)

    def now(self) -> float:
        """The time (Unix seconds) by the clock that says when content was put here: the file system's."""
        with disk_errors("ask the file system what time it is"):
            aside = temporary(self._partial)
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            try:
                return aside.stat().st_ctime
            finally:
                aside.unlink()

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of them that are not here."""
        folders = {algorithm: f"{self._blobs / algorithm}/" for algorithm in ALGORITHMS}
        return [digest for digest in digests if not os.path.lexists(folders[digest.algorithm] + digest.hex)]

    def _open(self, digest: Digest) -> OpenFile | None:
        path = self.path(digest)
        with disk_errors("open cached content"):
            try:
                descriptor = os.open(path, _READ)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                with suppress(FileNotFoundError):  # somebody else was faster to remove it
                    raise WrongError(_REFUSED[error.errno], identity(path.lstat())) from error
                return None
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise WrongError("no file", identity(found))
                if not found.st_size and digest.of_same_algorithm(b"") != digest:
                    raise WrongError("empty", identity(found))
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
            raise WrongError("something else", identity(found))
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
        """Whether content of this size is there, and can be opened: what cannot, a rename shall replace.

        A folder in its place, which no rename can replace, is moved away.
        """
        try:
            descriptor = os.open(final, _READ)
        except OSError:
            return False
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if stat.S_ISDIR(found.st_mode):
            with suppress(FileNotFoundError):
                final.rename(temporary(self._partial))
        return stat.S_ISREG(found.st_mode) and found.st_size == size

    def _unlink_all(self, digests: Iterable[Digest]) -> list[int]:
        """Remove these, up to where the disk fails: what each frees. Raises `CacheFailed` where that is the first."""
        freed: list[int] = []
        for digest in digests:
            try:
                freed.append(self._unlink(digest, None, aside=False))
            except CacheFailed:
                if not freed:
                    raise
                break
        return freed

    def _unlink(self, digest: Digest, only: Identity | None, *, aside: bool) -> int:
        """Remove it; with `only`, as long as it is still that file, and not what was fetched in its stead.

        `aside`: put a file that is not empty into quarantine.
        """
        path = self.path(digest)
        with disk_errors("remove cached content"):
            try:
                found = path.lstat()
                if only is not None and only != identity(found):
                    return 0
                if stat.S_ISDIR(found.st_mode):
                    path.rename(temporary(self._partial))
                elif aside and stat.S_ISREG(found.st_mode) and found.st_size:
                    _set_aside(path, self._quarantine / f"{digest.algorithm}-{digest.hex}")
                else:
                    path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return 0
        return _blocks(found)


def has_digest(descriptor: int, digest: Digest) -> bool:
    """Whether the bytes of the file are what the digest says. Raises `CacheFailed`."""
    hasher = digest.hasher()
    offset = 0
    with disk_errors("read cached content"):
        while data := os.pread(descriptor, _STEP, offset):
            hasher.update(data)
            offset += len(data)
    return hasher.hexdigest() == digest.hex


def _set_aside(path: Path, aside: Path) -> None:
    try:
        path.replace(aside)
        os.utime(aside)  # since when it is there
    except OSError:  # whatever became of the quarantine: wrong content must go
        path.unlink(missing_ok=True)


def _blocks(found: os.stat_result) -> int:
    """Bytes on the disk; never 0, also where the file system keeps a tiny file in its inode."""
    return max(found.st_blocks, 1) * 512
