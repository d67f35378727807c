"""A part of some content as it is on the disk: the folder that `ingest` fills. Everything here blocks."""

import errno
import json
import logging
import os
import shutil
import stat
from pathlib import Path

from mirrorproxy.spans import Spans
from mirrorproxy.store.files import disk_errors

log = logging.getLogger(__name__)

BAD_STATE = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
_REPLACED = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENXIO, errno.EACCES, errno.EPERM)


def open_part(folder: Path) -> tuple[int, Spans, int | None]:
    """A descriptor of the data in `folder`, which is made where it is missing; the intervals that had reached the disk,
    and the total where it is known. Raises `CacheFailed`.
    """
    with disk_errors("open a partial file"):
        try:
            return _opened(folder)
        except OSError as error:
            if error.errno not in _REPLACED:
                raise
            log.warning("%s is no part of a blob, and is thrown away: %s", folder, error.strerror)
        # Somebody put a link, a folder or a file that may not be read where it should be.
        shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        return _opened(folder)


def _opened(folder: Path) -> tuple[int, Spans, int | None]:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENXIO, "it is no file")
        spans, total = load_state(folder / "state", found.st_size)
        # What lies beyond was written after the last checkpoint, or never: a length says nothing.
        os.ftruncate(fd, max((span.end for span in spans), default=0))
    except OSError:
        os.close(fd)
        raise
    return fd, spans, total


def parse_state(text: bytes) -> tuple[Spans, int | None]:
    """The intervals and the total that a state has. Raises one of `BAD_STATE`."""
    state = json.loads(text)
    spans = Spans((int(start), int(end)) for start, end in state["spans"])
    total = None if state["total"] is None else int(state["total"])
    if total is not None and total < 0:
        raise ValueError("a negative total")
    return spans, total


def load_state(path: Path, size: int) -> tuple[Spans, int | None]:
    """What `state` says, as far as a file of `size` bytes can hold it; nothing where it says nothing sensible."""
    try:
        spans, total = parse_state(path.read_bytes())
    except (FileNotFoundError, *BAD_STATE):
        return Spans(), None
    if any(span.end > (size if total is None else min(size, total)) for span in spans):
        return Spans(), None
    return spans, total
