"""Hashing content without being in anybody's way.

One file at a time, in a thread of its own whose reads are served when nobody else wants the disk (ioprio_set(2), idle
class; schedulers without priorities, NVMe's mostly, pay no heed to it), and no faster than a given rate. The thread
keeps its priority for the processor: one that has the interpreter's lock and does not run would stop all others.

The page cache stays as it was. Each step of a file is asked for with RWF_NOWAIT first: where that gives it, somebody
has used it and it stays; where not, it is read, and given back (POSIX_FADV_DONTNEED). POSIX_FADV_RANDOM keeps the
kernel from reading ahead, so that what was read for us is not taken for what others use.
"""

import asyncio
import contextlib
import ctypes
import enum
import errno
import os
import platform
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from mirrorproxy.names import Digest
from mirrorproxy.store.openfiles import Identity, identity

_STEP = 1 << 20
_LEAST = 64 << 10  # bytes that a file counts for: to open a small one costs the disk about as much
_AGAIN_AFTER = 1.0  # seconds before a second read: what was on the bus, or in the cache, is not any more
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_THIS_THREAD, _IDLE = 1, 3 << 13


class State(enum.StrEnum):
    """What a check found."""

    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "unreadable"
    GONE = "gone"


class Verdict(NamedTuple):
    """What is at a digest's place: the bytes read, which file it was, and in words what is wrong with it."""

    state: State
    size: int = 0
    identity: Identity | None = None
    reason: str = ""


class _StoppedError(Exception):
    pass


class Checker:
    """Checks files. `rate` gives the most bytes a second, 0 for no limit; it is asked again at each step."""

    def __init__(self, rate: Callable[[], int] = lambda: 0) -> None:
        self._rate = rate
        self._due = 0.0
        self._stop = threading.Event()
        self._buffer = bytearray(_STEP)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit", initializer=_become_idle)

    async def check(self, path: Path, digest: Digest) -> Verdict:
        """Whether the file at `path` is the content `digest`. What looks wrong, or fails, is read a second time.

        Raises `asyncio.CancelledError` where the checker was closed.
        """
        try:
            return await asyncio.wrap_future(self._thread.submit(self._check, path, digest))
        except (_StoppedError, RuntimeError):
            raise asyncio.CancelledError from None

    async def aclose(self) -> None:
        """Stop at once."""
        self._stop.set()
        await asyncio.to_thread(self._thread.shutdown)

    # In the thread.

    def _check(self, path: Path, digest: Digest) -> Verdict:
        verdict = self._look(path, digest)
        if verdict.state in (State.WRONG, State.UNREADABLE) and verdict.size:
            self._wait(_AGAIN_AFTER)
            verdict = self._look(path, digest, fresh=True)
        return verdict

    def _look(self, path: Path, digest: Digest, *, fresh: bool = False) -> Verdict:
        """`fresh`: from the disk, not from what memory has of it."""
        found: os.stat_result | None = None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    return Verdict(State.WRONG, 0, identity(found), "no file")
                if self._hash(descriptor, digest, fresh=fresh) == digest.hex:
                    return Verdict(State.RIGHT, found.st_size, identity(found))
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return Verdict(State.GONE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                with contextlib.suppress(OSError):
                    return Verdict(State.WRONG, 0, identity(path.lstat()), "a link or a socket")
            with contextlib.suppress(OSError):
                found = found or path.lstat()
            name = errno.errorcode.get(error.errno or 0, "unknown")
            reason = f"a file that cannot be read: {error.strerror} ({name})"
            if found is None:
                return Verdict(State.UNREADABLE, reason=reason)
            return Verdict(State.UNREADABLE, found.st_size, identity(found), reason)
        return Verdict(State.WRONG, found.st_size, identity(found), f"{found.st_size} bytes of something else")

    def _hash(self, descriptor: int, digest: Digest, *, fresh: bool) -> str:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if fresh:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        hasher, offset, view = digest.hasher(), 0, memoryview(self._buffer)
        while got := self._step(descriptor, offset):
            hasher.update(view[:got])
            offset += got
            self._pace(got)
        self._pace(max(0, _LEAST - offset))
        return hasher.hexdigest()

    def _step(self, descriptor: int, offset: int) -> int:
        """Read the next bytes into the buffer, and leave of them in memory what was there before."""
        view = memoryview(self._buffer)
        try:
            got = os.preadv(descriptor, [view], offset, os.RWF_NOWAIT)
            if got == len(view):
                return got
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            got = 0
        # A part was in memory, or it is the end of the file.
        while got < len(view) and (more := os.preadv(descriptor, [view[got:]], offset + got)):
            os.posix_fadvise(descriptor, offset + got, more, os.POSIX_FADV_DONTNEED)
            got += more
        return got

    def _pace(self, size: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        now = monotonic()
        if rate := self._rate():
            self._due = max(self._due, now) + size / rate
            self._wait(self._due - now)

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._stop.wait(seconds):
            raise _StoppedError


def _become_idle() -> None:
    """Have this thread's reads served last. Where that cannot be, they are served like all others."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _THIS_THREAD, 0, _IDLE)
