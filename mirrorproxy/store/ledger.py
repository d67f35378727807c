"""What the cache may still write: bytes used, bytes promised to running downloads, bytes that the file system has.

Space is reserved before the first byte is written (bazel-remote does the same), so that many downloads at once keep
the limit together. All figures are bytes on the disk. Pure arithmetic, but for `refresh`.
"""

import asyncio
import os
from pathlib import Path
from time import monotonic

from mirrorproxy.store.files import disk_errors

_REFRESH = 1.0  # seconds
_AMPLE = 16 << 30  # bytes: more than others write to a disk between two looks at it
_AMPLE_FOR = 6.0  # seconds: the service looks every five
_SPARE_INODES = 256  # for 64 downloads at once, of three files each, and the index


class Ledger:
    """The account of one cache directory. Belongs to the event loop.

    `idle`: bytes of partial files that nobody is filling. Their owner counts them now and then; what a download leaves
    behind, or goes on with, counts at once.

    `aside`: bytes in quarantine. `inodes_short`: files of which there should be less, as the file system is running out
    of inodes.

    `limit`: the most that committed content and reservations may take together; `min_free`: what the file system shall
    keep free. `used` and `objects` are None until `set_used` was told what a scan found, `free` until the first
    `refresh`; what is not known does not limit.
    """

    def __init__(self, limit: int, min_free: int, directory: Path) -> None:
        self.limit = limit
        self.min_free = min_free
        self.reserved = 0
        self.idle = 0
        self.aside = 0
        self.free: int | None = None
        self.inodes_short = 0
        self._directory = directory
        self._scanned: tuple[int, int] | None = None
        self._bytes = 0
        self._objects = 0
        self._unwritten = 0
        self._refreshed = -_REFRESH

    def __repr__(self) -> str:
        return f"<Ledger {self.used} used, {self.reserved} reserved of {self.limit}; {self.free} free>"

    @property
    def used(self) -> int | None:
        """Bytes of committed content; None until they were counted."""
        return None if self._scanned is None else max(0, self._scanned[0] + self._bytes)

    @property
    def objects(self) -> int | None:
        """How many pieces of committed content; None until they were counted."""
        return None if self._scanned is None else max(0, self._scanned[1] + self._objects)

    @property
    def room(self) -> int:
        """How many bytes more could be reserved now; below 0 where so many have to go first."""
        room = self.limit - (self.used or 0) - self.reserved - self.idle - self.aside
        if self.inodes_short and self.objects:  # as many objects have to go, whatever bytes there are
            room = min(room, -self.inodes_short * ((self.used or 0) // self.objects))
        return room if self.free is None else min(room, self.free - self._unwritten - self.min_free)

    @property
    def taken(self) -> int:
        """Bytes of content, of reservations and of parts that nobody fills."""
        return (self.used or 0) + self.reserved + self.idle

    @property
    def capacity(self) -> int:
        """The most that `taken` may be now: the limit, or what the file system leaves of it."""
        return self.taken + self.room

    def reserve(self, size: int) -> "Reservation | None":
        """Promise `size` bytes to a download, or None where they do not fit. Call `refresh` before."""
        if size > self.room:
            return None
        reservation = Reservation(self)
        reservation.take(size)
        return reservation

    def resume(self, size: int) -> "Reservation":
        """The room that a part of `size` bytes has, which was idle until now: a download goes on with it."""
        reservation = Reservation(self)
        reservation.take(size)
        reservation.found(size)
        return reservation

    def set_used(self, size: int, objects: int) -> None:
        """Say what there was of content when this ledger was made: what came and went since is counted here."""
        self._scanned = size, objects

    def correct(self, size: int, objects: int) -> None:
        """More, or less, was there than was said: nothing came or went."""
        if self._scanned is not None:
            self._scanned = self._scanned[0] + size, self._scanned[1] + objects

    def added(self, size: int) -> None:
        """Count content of `size` bytes that was committed without a reservation; 0: it was there already."""
        self._count(size)
        self._spend(size)

    def removed(self, size: int) -> None:
        """Count content of `size` bytes that was removed; 0: there was none."""
        if size:
            self._bytes -= size
            self._objects -= 1
            self._spend(-size)

    def is_ample(self, size: int) -> bool:
        """Is so much free that `size` bytes fit, whoever wrote to the disk since it was looked at?"""
        if self.free is None or self.inodes_short or monotonic() - self._refreshed > _AMPLE_FOR:
            return False
        return self.free - self._unwritten - self.min_free > size + _AMPLE

    async def refresh(self) -> None:
        """Ask the file system what is free, at most once a second. Raises `CacheFailed`."""
        now = monotonic()
        if now - self._refreshed >= _REFRESH:
            self._refreshed = now
            self.free, self.inodes_short = await asyncio.to_thread(_free, self._directory)

    def _count(self, size: int) -> None:
        if size:
            self._bytes += size
            self._objects += 1

    def _spend(self, size: int) -> None:
        """Between two looks at the file system our own writes and removals are counted."""
        if self.free is not None:
            self.free = max(0, self.free - size)


class Reservation:
    """Bytes promised to one download. It ends with `commit` or `release`; what follows is without effect."""

    __slots__ = ("_ledger", "_open", "size", "written")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = True
        self.size = 0
        self.written = 0

    def __repr__(self) -> str:
        return f"<Reservation {self.written} of {self.size}{'' if self._open else ' ended'}>"

    def extend(self, size: int) -> bool:
        """Ask for `size` bytes more, where a download turns out to be larger; False where they do not fit."""
        if not self._open or size > self._ledger.room:
            return False
        self.take(size)
        return True

    def take(self, size: int) -> None:
        """Add `size` bytes whether they fit or not: for what is on the disk already, a partial file at the start."""
        if size < 0:
            raise ValueError(f"{size} bytes cannot be reserved")
        self.size += size
        self._ledger.reserved += size
        self._ledger._unwritten += size  # noqa: SLF001 - the two are one thing

    def wrote(self, size: int) -> None:
        """Say that `size` more bytes are on the disk: the file system has counted them, they are not to come."""
        size = min(size, self.size - self.written)
        if self._open and size > 0:
            self.written += size
            self._ledger._unwritten -= size  # noqa: SLF001 - the two are one thing
            self._ledger._spend(size)  # noqa: SLF001 - the two are one thing

    def found(self, size: int) -> None:
        """Say that `size` bytes of it were on the disk before: a part that was idle until now."""
        size = min(size, self.size - self.written)
        if self._open and size > 0:
            self.written += size
            self._ledger._unwritten -= size  # noqa: SLF001 - the two are one thing
            self._ledger.idle = max(0, self._ledger.idle - size)

    def leave(self, size: int) -> None:
        """End without the whole: `size` bytes on the disk stay as a part, idle from now on."""
        if self._open:
            self.release()
            self._ledger.idle += size

    def commit(self, size: int) -> None:
        """Turn it into used bytes: `size` is what the content takes on the disk, 0 where it was there already."""
        if self._open:
            self.release()
            self._ledger._count(size)  # noqa: SLF001 - the two are one thing
            self._ledger._spend(size - self.written)  # noqa: SLF001 - the others were, when they were written

    def release(self) -> None:
        """Give it back. What was written and is kept or removed shows in what the file system says is free."""
        if self._open:
            self._open = False
            self._ledger.reserved -= self.size
            self._ledger._unwritten -= self.size - self.written  # noqa: SLF001 - the two are one thing


def _free(directory: Path) -> tuple[int, int]:
    """Bytes that are free, and the files that are too many for so many to be made anew as downloads need."""
    with disk_errors("ask how much of the file system is free"):
        found = os.statvfs(directory)
    spare = min(_SPARE_INODES, found.f_files // 20)  # 0 where inodes are made as they are needed (btrfs)
    return found.f_bavail * found.f_frsize, max(0, spare - found.f_favail)
