"""Where connections come in: no more of them than there are file descriptors for.

asyncio's own servers take whatever comes. At the limit of the process (`ulimit -n`) each connection taken costs a file
that cannot be opened, which breaks a transfer; and beyond it they try again at once, with a line in the log each: with
128 descriptors and 150 clients 13,000 lines in 3 s, and one transfer in four broken off.
"""

import asyncio
import logging
import socket
import ssl
from asyncio.sslproto import SSLProtocol

from mirrorproxy.tasks import Tasks
from mirrorproxy.web.server import Server

log = logging.getLogger(__name__)

_BURST = 64  # connections taken before others have a turn
_HANDSHAKE = 60  # seconds for TLS to be agreed on; a lossy line takes some
_GOODBYE = 30  # seconds for the other side to agree to its end
_REST = 1.0  # seconds, where the system has no descriptor for one more


class _Encrypted(SSLProtocol):
    """TLS with a client, which sends little: asyncio's own holds 256 KiB for it, as long as it is connected."""

    max_size = 32 << 10  # bytes


class Door:
    """Takes the connections that come to listening sockets, `most` at a time; the others wait in the kernel's queue."""

    def __init__(self, server: Server, context: ssl.SSLContext | None, most: int) -> None:
        self._server = server
        self._context = context
        self._most = most
        self._inside = 0
        self._sockets: list[socket.socket] = []
        self._open = False
        self._said = False
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        server.left = self._left

    def open(self, listening: list[socket.socket]) -> None:
        """Take what comes to these from now on; they are closed by `close`."""
        self._sockets += listening
        for each in listening:
            each.setblocking(False)
        self._take()

    async def close(self) -> None:
        """Take no more. Those that are inside stay."""
        self._rest()
        while self._sockets:
            self._sockets.pop().close()
        await self._tasks.aclose()

    def _take(self) -> None:
        if not self._open:
            self._open = True
            for each in self._sockets:
                self._loop.add_reader(each, self._accept, each)

    def _rest(self) -> None:
        if self._open:
            self._open = False
            for each in self._sockets:
                self._loop.remove_reader(each)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_BURST):
            if self._inside >= self._most:
                self._rest()
                if not self._said:
                    self._said = True
                    log.warning("%d clients are connected: others wait until some leave (ulimit -n)", self._inside)
                return
            try:
                connection, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection can be taken for a moment: %s", error.strerror)
                self._rest()
                self._loop.call_later(_REST, self._take)
                return
            self._inside += 1
            connection.setblocking(False)
            self._tasks.start(self._welcome(connection), name="a new connection")

    async def _welcome(self, connection: socket.socket) -> None:
        """Make it one of the server's, which tells when it is over."""
        try:
            if self._context is None:
                await self._loop.connect_accepted_socket(self._server, connection)
            else:
                await self._agree(connection, self._context)
        except (OSError, asyncio.CancelledError):  # mostly a TLS handshake that failed
            self._left()

    async def _agree(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        agreed = self._loop.create_future()

        def encrypted() -> SSLProtocol:
            return _Encrypted(
                self._loop,
                self._server(),
                context,
                agreed,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE,
                ssl_shutdown_timeout=_GOODBYE,
            )

        transport, _ = await self._loop.connect_accepted_socket(encrypted, connection)
        try:
            await agreed
        except BaseException:
            transport.abort()
            raise

    def _left(self) -> None:
        self._inside -= 1
        if self._sockets and self._inside < self._most:
            self._take()
