"""One directory, one service."""

import contextlib
import fcntl
import os
from pathlib import Path

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store.files import can_only_be_read, disk_errors


class InUse(CacheFailed):
    """Another process has the directory; the message says which. `command`: one that will end by itself."""

    def __init__(self, message: str, *, command: bool) -> None:
        super().__init__(message)
        self.command = command


COMMAND = "running the command "
"""How `who` begins for a command: a service waits for its end."""


class Owner:
    """The right to write to a cache directory: a locked file `owner`, which says who has it.

    The lock ends with the process, however that ends; the file stays. One on a file system that can only be read is
    locked too, and says who had it before, until `introduce`.
    """

    def __init__(self, directory: Path, who: str) -> None:
        """Take the directory, which is made where it is missing. Blocks. Raises `InUse`, `CacheFailed`."""
        with disk_errors(f"take the cache directory {directory}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path = directory / "owner"
            self._who = who
            frozen = can_only_be_read(directory)
            if frozen and not self._path.exists():
                raise CacheFailed(f"{directory} is on a read-only file system, and holds no cache")
            how = os.O_RDONLY if frozen else os.O_RDWR | os.O_CREAT
            self._fd = os.open(self._path, how | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = "" if frozen else os.pread(self._fd, 200, 0).decode(errors="replace").strip()
                os.close(self._fd)
                message = f"{directory} is in use by {other or 'another process'}"
                raise InUse(message, command=COMMAND in other) from None
            self.introduce()

    def introduce(self) -> None:
        """Write down who has it. Where that fails, on a full disk, the lock alone has to do. Blocks."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}, {self._who}\n".encode(), 0)
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Leave it to others."""
        os.close(self._fd)
