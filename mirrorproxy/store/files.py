"""Files that are whole or not there: write aside, flush, rename, flush the folder. Everything here blocks."""

import errno
import itertools
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mirrorproxy.errors import CacheFailed

log = logging.getLogger(__name__)

TEMPORARY = "tmp-"
"""How the names of temporary files begin, all of them in `partial/`: what is there at a start is left from a crash."""

_BUFFER = 1 << 18

_run = secrets.token_hex(4)
_count = itertools.count()


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an `OSError` into `CacheFailed`, with what was being done and the errno's name."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise CacheFailed(f"cannot {doing}: {error.strerror or error}", detail={"errno": name}) from error


def can_only_be_read(path: Path) -> bool:
    """Is it on a file system that is mounted read-only, here or as a whole? False where that cannot be told."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def temporary(scratch: Path) -> Path:
    """A name in `scratch` that nobody else has."""
    return scratch / f"{TEMPORARY}{_run}-{next(_count)}"


def write_whole(final: Path, chunks: Iterable[bytes], *, scratch: Path, mode: int) -> os.stat_result:
    """Put `chunks` at `final` in one step, replacing what is there; flushed before it can be seen.

    `scratch` is a folder on the same file system. Raises `OSError`, and whatever `chunks` raises; then nothing changed.
    """
    aside = temporary(scratch)
    try:
        with os.fdopen(
            os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", _BUFFER
        ) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            written = os.fstat(file.fileno())
        aside.replace(final)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    sync_folder(final.parent)
    return written


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder`, so that a rename survives a crash.

    A failure is logged only: the rename is done and cannot be taken back (containerd's content store does the same).
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("cannot flush the folder %s: %s", folder, error)
