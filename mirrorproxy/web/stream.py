"""The only place that writes a response.

What may not happen, and does with aiohttp's own classes: a second response in the middle of a body, a short body on a
connection that stays open, a short chunked body that looks whole. Here a response is begun once; whatever goes wrong
after that ends the connection.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple, cast

from aiohttp import HttpVersion11, web

from mirrorproxy.errors import BadAnswer, CacheFailed
from mirrorproxy.registry import Blob, FileBlob, Outcome
from mirrorproxy.spans import Span
from mirrorproxy.web.client import ClientGone, ClientStalled, Watch
from mirrorproxy.web.head import head
from mirrorproxy.web.pump import Pump, page_in, read_now

_PIECE = 64 << 10  # bytes handed to a transport at a time
_LARGE = 256 << 10  # and where few responses do so: a GiB over TLS takes 0.74 s of processor time then, not 0.84
FEW = 32
"""So many, since each holds its piece twice when its client is slow: 16 MiB in all."""
_BEGINNING = 16 << 10  # bytes that go with the head of a longer body: no more, since a slow client's wait in memory
_BODILESS = frozenset({204, 304})
_LINGER_NOT = struct.pack("ii", 1, 0)


class Delivery(NamedTuple):
    """What a response needs to go out: seconds a client may take nothing, threads that wait for the disk, and leave to
    hand `large` pieces to the transport.
    """

    write_timeout: float
    pages: Executor
    large: asyncio.Semaphore


class Whole(NamedTuple):
    """A response that left in one write: all its header fields, and the body."""

    fields: dict[str, str]
    body: bytes


class Sent(web.StreamResponse):
    """What aiohttp gets back from the handler: all is written already, keep the connection or close it.

    It is asked for `keep_alive`, `prepare` and `write_eof`, nothing else; so one object serves all requests.
    """

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""


KEPT, CLOSED = Sent(True), Sent(False)


class Reply:
    """The one response to a request.

    `common` are the fields of every response to it. Afterwards: `status` (0: nothing was sent), `sent` body bytes,
    `first_byte` (by the loop's clock), `complete`, and `whole` where it was a 200 that left in one write; `outcome` is
    set by whoever knows how the content came about.
    """

    def __init__(self, request: web.BaseRequest, request_id: str, delivery: Delivery) -> None:
        self.request = request
        self.request_id = request_id
        self.common = {"Docker-Distribution-API-Version": "registry/2.0", "X-Request-ID": request_id}
        self.keep_alive = request.keep_alive
        self.outcome: Outcome | None = None
        self.status = 0
        self.sent = 0
        self.first_byte: float | None = None
        self.complete = False
        self.whole: Whole | None = None
        self._delivery = delivery
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._chunked = False
        self._delimited = True  # by a length or by chunks; not by the connection's end

    async def send(
        self, status: int, fields: Mapping[str, str], body: bytes = b"", *, length: int | None = None
    ) -> None:
        """A response whose body is at hand. `length`: the Content-Length where a HEAD's answer has no `body` to count.

        Raises `ClientGone` when the client is gone or takes nothing.
        """
        if status in _BODILESS:
            body = b""
        else:
            fields = {**fields, "Content-Length": str(len(body) if length is None else length)}
        transport = self._begin(status)
        block = self._head(fields)
        data = b"" if self.request.method == "HEAD" else body[:_PIECE]
        self._count(len(data))
        await self._write(transport, block + data)
        if data:
            for offset in range(_PIECE, len(body), _PIECE):
                await self._piece(transport, body[offset : offset + _PIECE])
        self.complete = True
        if status == 200 and len(body) <= _PIECE:
            self.whole = Whole({**self.common, **fields}, data)

    async def stream(self, status: int, fields: Mapping[str, str], blob: Blob, span: Span | None) -> None:
        """A response with the bytes `span` of a blob, or with the whole of one whose size nobody knows (None).

        Raises `ClientGone` as `send`, and what the blob raises: `abort` then, whatever it was.
        """
        if span is not None:
            fields = {**fields, "Content-Length": str(span.size)}
        elif self.request.version >= HttpVersion11:
            fields = {**fields, "Transfer-Encoding": "chunked"}
            self._chunked = True
        else:
            self._delimited = self.keep_alive = False
        transport = self._begin(status)
        block = self._head(fields)
        start, end = (0, None) if span is None else span
        file = cast("FileBlob", blob) if hasattr(blob, "fd") else None
        data = b"" if file is None or end is None else _at_hand(file, start, end)
        self._count(len(data))
        await self._write(transport, block + data)
        if file is not None and end is not None and len(data) == end - start:
            if status == 200:
                self.whole = Whole({**self.common, **fields}, data)
        else:
            del block, data  # not kept for as long as the rest takes: 16 KiB of each client
            try:
                if file is not None:
                    await self._from_file(transport, file, start, end)
            except CacheFailed:
                file = None  # the rest comes another way
            if file is None:
                await self._from_chunks(transport, blob, start + self.sent, end)
            if self._chunked:
                await self._write(transport, b"0\r\n\r\n")
        self.complete = True

    def abort(self, *, reset: bool = False) -> None:
        """Break off a response that is not complete. `reset`: and discard what the kernel still holds of it.

        One that only the connection's end delimits is always reset: its client would take it for whole.
        """
        self.keep_alive = False
        transport = self._transport
        if transport is None or self.complete:
            return
        if not transport.is_closing():
            self.sent = max(0, self.sent - transport.get_write_buffer_size())
            if reset or not self._delimited:
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        transport.abort()

    def _begin(self, status: int) -> asyncio.Transport:
        if self._transport is not None:
            raise RuntimeError("a response was begun already")
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client is gone")
        self._transport, self.status = transport, status
        return transport

    def _head(self, fields: Mapping[str, str]) -> bytes:
        if not self.keep_alive:
            return head(self.status, {**self.common, **fields}, "close")
        connection = None if self.request.version >= HttpVersion11 else "keep-alive"
        return head(self.status, {**self.common, **fields}, connection)

    def _count(self, size: int) -> None:
        if self.first_byte is None and size:
            self.first_byte = self._loop.time()
        self.sent += size

    async def _from_file(self, transport: asyncio.Transport, file: FileBlob, start: int, end: int | None) -> None:
        """Send the file's bytes. Raises `CacheFailed` where it can serve no more; what went out is counted."""
        pump = None
        if end is not None and not self.request.protocol.ssl_context:
            pump = await self._pump(transport, file, start + self.sent, end)
        if pump is None:
            await self._by_pieces(transport, file, start + self.sent, end)
            return
        try:
            await pump.run()
        except ClientStalled:
            self.sent = pump.at - start
            self.abort(reset=True)
            raise
        finally:
            self.sent = pump.at - start
            self.first_byte = self.first_byte or pump.first_byte

    async def _by_pieces(self, transport: asyncio.Transport, file: FileBlob, start: int, end: int | None) -> None:
        async with AsyncExitStack() as stack:
            size = _PIECE
            if not self._delivery.large.locked():
                await stack.enter_async_context(self._delivery.large)
                size = _LARGE
            pieces = await stack.enter_async_context(aclosing(_pieces(file, start, end, size, self._delivery.pages)))
            async for piece in pieces:
                await self._piece(transport, piece)

    async def _pump(self, transport: asyncio.Transport, file: FileBlob, start: int, end: int) -> Pump | None:
        """What copies the file past the transport; None where the process has no descriptor left for it."""
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(0)  # the head has to be gone
            await self._drained(transport)
            transport.set_write_buffer_limits()
        if transport.is_closing():
            raise ClientGone("the client is gone")
        try:
            return Pump(transport, file, start, end, self._delivery.write_timeout, self._delivery.pages)
        except OSError:
            return None

    async def _from_chunks(self, transport: asyncio.Transport, blob: Blob, at: int, end: int | None) -> None:
        chunks = blob.chunks(at, end)
        try:
            async for chunk in chunks:
                at += len(chunk)
                if end is not None and at > end:
                    raise BadAnswer("a blob is longer than its size")
                for offset in range(0, len(chunk), _PIECE):
                    await self._piece(transport, chunk[offset : offset + _PIECE])
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        if end is not None and at < end:
            raise BadAnswer("a blob ends before its size")

    async def _piece(self, transport: asyncio.Transport, piece: bytes) -> None:
        """Send a part of a body, and let others have a turn.

        A transport that never pauses would keep the loop for the whole blob; and over TLS it never pauses when the
        client is gone, which it learns of when the loop runs.
        """
        self._count(len(piece))
        await self._write(transport, b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        await asyncio.sleep(0)

    async def _write(self, transport: asyncio.Transport, data: bytes) -> None:
        if transport.is_closing():
            raise ClientGone("the client is gone")
        transport.write(data)
        if self.request.protocol.writing_paused:
            await self._drained(transport)
        if transport.is_closing():
            raise ClientGone("the client is gone")

    async def _drained(self, transport: asyncio.Transport) -> None:
        """Wait until the transport takes more. A client that takes nothing for `write_timeout` is cut off."""
        descriptor = transport.get_extra_info("socket").fileno()
        seconds = self._delivery.write_timeout
        watch = Watch(descriptor, seconds, transport.get_write_buffer_size, lambda: self.abort(reset=True))
        try:
            await self.request.writer.drain()
        except ConnectionError as error:
            raise ClientGone("the client is gone") from error
        finally:
            watch.cancel()


def _at_hand(file: FileBlob, start: int, end: int) -> bytes:
    """The first bytes of a span, as far as they are in memory: head and body begin, or leave, in one write then."""
    most = _PIECE if end - start <= _PIECE else _BEGINNING
    size = min(file.ready(start), end, start + most) - start
    if size <= 0:
        return b""
    try:
        return read_now(file.fd, size, start) or b""
    except CacheFailed:
        return b""  # the ordinary way will find out, and go another


async def _pieces(file: FileBlob, at: int, end: int | None, most: int, pages: Executor) -> AsyncGenerator[bytes]:
    """The file's bytes as they become ready, `most` at a time; `end` None: until the blob says that that was all."""
    loop = asyncio.get_running_loop()
    while end is None or at < end:
        ready = file.ready(at) if end is None else min(file.ready(at), end)
        if ready <= at:
            await file.wait(at)
            if file.ready(at) > at:
                continue
            if end is None:
                return
            raise CacheFailed("a blob ends before its size")
        size = min(ready - at, most)
        piece = read_now(file.fd, size, at)
        if piece is None:
            piece = await loop.run_in_executor(pages, page_in, file.fd, size, at)
        at += len(piece)
        yield piece
