"""Connections, and what comes over them that is not even HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.http import RawRequestMessage

from mirrorproxy.web import errors
from mirrorproxy.web.head import head
from mirrorproxy.web.stream import CLOSED

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Malformed = Callable[[web.BaseRequest], str]
Again = Callable[[RawRequestMessage, asyncio.Transport, str | None], bool]

_OPTIONS: dict[str, Any] = {
    "access_log": None,  # aiohttp's own takes 43 us a line
    "auto_decompress": False,
    "keepalive_timeout": 120.0,  # seconds; also what a client has to send its first request
    "lingering_time": 5.0,  # seconds that a refused body is read and thrown away before the connection is closed
    "max_field_size": 16 << 10,  # bytes; Docker sends tokens of some KiB to its mirrors
    "max_line_size": 8 << 10,
}

_WRITE_BUFFER = 64 << 10  # bytes


class Connection(web.RequestHandler):
    """A client's connection. What does not parse is answered in the words of the protocol, and ends it."""

    def __init__(
        self, manager: web.Server, malformed: Malformed, again: Again | None, *, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(manager, loop=loop, **_OPTIONS)
        self._malformed = malformed
        self._again = again
        self._client: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let no more wait for a slow client than over cleartext: over TLS asyncio would keep 512 KiB for each."""
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0]) if isinstance(peer, tuple) else peer
        if self.ssl_context is not None and self.transport is not None:
            self.transport.set_write_buffer_limits(_WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        """Give an answer again where nothing else is asked for; all the rest is for the task that waits for requests.

        That task is woken by its future, `_waiter`, which aiohttp must not see before it is known who answers.
        """
        waiter, self._waiter = self._waiter, None
        super().data_received(data)
        if waiter is None:
            return  # it is busy, and looks for messages itself when it is not
        self._waiter = waiter
        if not self._messages or waiter.done():
            return
        if len(self._messages) == 1 and self._parser is not None and self._answered(*self._messages[0]):
            self._messages.clear()
            self._parser.message_consumed()
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        else:
            waiter.set_result(None)

    def _answered(self, message: object, payload: object) -> bool:
        transport = self.transport
        return (
            self._again is not None
            and transport is not None
            and not transport.get_write_buffer_size()
            and payload is EMPTY_PAYLOAD
            and isinstance(message, RawRequestMessage)
            and self._again(message, transport, self._client)
        )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002  # aiohttp's signature
        message: str | None = None,  # noqa: ARG002  # quotes what the client sent, which may be a secret
    ) -> web.StreamResponse:
        """Called for what does not parse (our handler lets no exception through)."""
        request_id = self._malformed(request)
        transport = request.transport
        if transport is not None and not transport.is_closing():
            body = errors.body("UNSUPPORTED", "this is not a request that HTTP/1.1 knows, or it is too long")
            fields = {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "X-Request-ID": request_id,
            }
            transport.write(head(status, fields, "close") + body)
        return CLOSED


class Server(web.Server):
    """Makes connections whose requests `handler` answers, with a response that is sent already.

    `malformed` is told of each request that does not parse, and gives it a name. `again` answers what it can at once,
    and says whether it did. `left` is called when a connection is over.
    """

    def __init__(
        self, handler: Handler, malformed: Malformed, again: Again | None, *, handler_cancellation: bool
    ) -> None:
        super().__init__(handler, handler_cancellation=handler_cancellation)
        self._malformed = malformed
        self._again = again
        self.left: Callable[[], None] = lambda: None

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """A connection is over."""
        super().connection_lost(handler, exc)
        self.left()

    def __call__(self) -> web.RequestHandler:
        """A new connection's protocol."""
        return Connection(self, self._malformed, self._again, loop=self._loop)
