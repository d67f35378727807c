"""The client at the other end of a response: gone, or not taking anything."""

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable


class ClientGone(Exception):
    """The client closed its connection; nothing that needs to be told to anybody."""


class ClientStalled(ClientGone):
    """The client took nothing for too long."""


class Watch:
    """Calls `stalled` when the client took not a byte for `seconds`; `cancel` it when it is no longer waited for.

    `waiting` says how many bytes wait for the client on our side. What waits in the kernel counts too: a socket has
    room again only when a third of its queue, up to megabytes, has gone, which takes a slow client minutes.
    It looks once in `seconds`, so a client may get twice as long.
    """

    def __init__(self, socket: int, seconds: float, waiting: Callable[[], int], stalled: Callable[[], None]) -> None:
        self._socket = socket
        self._seconds = seconds
        self._waiting = waiting
        self._stalled = stalled
        self._loop = asyncio.get_running_loop()
        self._left = self._count()
        self._timer = self._loop.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._count()
        if left >= self._left:
            self._stalled()
        else:
            self._left = left
            self._timer = self._loop.call_later(self._seconds, self._look)

    def _count(self) -> int:
        queued = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, queued)  # not acknowledged yet: tcp(7), SIOCOUTQ
        return self._waiting() + queued[0]
