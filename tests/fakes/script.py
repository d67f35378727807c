"""How a scripted server misbehaves: `Quirk` says what is wrong with an answer, `Script` when; `send` does it."""

import asyncio
import gzip
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

_PIECE = 64 << 10
_ESTABLISHED = 1  # <linux/tcp.h>
_PAGE = b"<html><body><h1>Welcome to the airport's network</h1>Please accept our terms.</body></html>"


@dataclass(frozen=True, slots=True)
class Quirk:
    """What is wrong with an answer. What is not set is as it should be; what is set goes together."""

    status: int | None = None
    """Answer with this status and an error of the registry API, or with `body`."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Headers to send instead; None leaves one out."""
    body: bytes | None = None
    """The body to send instead."""
    html: bool = False
    """A captive portal's page."""
    gzip: bool = False
    """The body compressed, with a Content-Encoding that nobody asked for."""
    corrupt: bool = False
    """One bit of the body's last byte is wrong."""
    chunked: bool = False
    """No Content-Length."""
    length: int = 0
    """This much is added to Content-Length; the connection ends after the body."""
    surplus: bytes = b""
    """Sent after the body that Content-Length announced."""
    delay: float = 0.0
    """Seconds before the headers."""
    hold: asyncio.Event | None = None
    """The headers wait for this."""
    reset: bool = False
    """The connection is reset: at once, or where `cut` says."""
    cut: int | None = None
    """The connection ends after this many bytes of the body."""
    stall: int | None = None
    """After this many bytes of the body nothing comes, until `release` if that is set."""
    release: asyncio.Event | None = None
    rate: int | None = None
    """Bytes a second."""
    ignore_range: bool = False
    """The whole, with 200, for a Range."""
    content_range: str | None = None
    """The Content-Range to send instead."""


GOOD = Quirk()


@dataclass(slots=True)
class Seen:
    """One request as it came, and what became of it."""

    kind: str
    method: str
    target: str
    """Path and query, byte for byte."""
    headers: CIMultiDict[str]
    connection: int = 0
    """The client's port: the same for requests that came over the same connection."""
    status: int = 0
    size: int = 0
    """Bytes of the body that are to be sent."""
    sent: int = 0
    """Bytes of the body that were given to the connection."""
    wire: socket.socket | None = None
    """The connection."""

    @property
    def is_under_way(self) -> bool:
        """Is more of its body to come, and is the client there: by what the kernel knows, which hears of its leaving
        before whoever sends does.
        """
        if self.sent >= self.size or self.wire is None:
            return False
        try:
            return self.wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
        except OSError:
            return False

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("Range")

    @property
    def authorization(self) -> str | None:
        """The Authorization header."""
        return self.headers.get("Authorization")

    def __str__(self) -> str:
        return f"{self.method} {self.kind}{f' {self.range}' if self.range else ''} {self.status}"


Choice = Callable[[Seen], Quirk | None]


class Script:
    """Which quirk an answer of a kind has: the first that a `when` chooses, else the `next` in line, else `always`."""

    def __init__(self) -> None:
        self._choices: list[tuple[str, Choice]] = []
        self._queues: dict[tuple[str, str | None], deque[Quirk]] = {}
        self._constant: dict[tuple[str, str | None], Quirk] = {}

    def next(self, kind: str, *quirks: Quirk, method: str | None = None) -> None:
        """The next answers of this kind (and method) have these quirks, one each."""
        self._queues.setdefault((kind, method), deque()).extend(quirks)

    def always(self, kind: str, quirk: Quirk, method: str | None = None) -> None:
        """All answers of this kind (and method) have this quirk."""
        self._constant[kind, method] = quirk

    def when(self, kind: str, choice: Choice) -> None:
        """`choice` says which quirk an answer of this kind has, None leaves it to the rest of the script."""
        self._choices.append((kind, choice))

    def clear(self) -> None:
        """From now on all is well."""
        self._choices.clear()
        self._queues.clear()
        self._constant.clear()

    def quirk(self, seen: Seen) -> Quirk:
        """The quirk for this request."""
        for kind, choice in self._choices:
            if kind == seen.kind and (quirk := choice(seen)) is not None:
                return quirk
        for method in (seen.method, None):
            if queue := self._queues.get((seen.kind, method)):
                return queue.popleft()
        for method in (seen.method, None):
            if (seen.kind, method) in self._constant:
                return self._constant[seen.kind, method]
        return GOOD


async def send(
    request: web.Request, seen: Seen, quirk: Quirk, status: int, headers: Mapping[str, str], body: bytes | memoryview
) -> web.StreamResponse:
    """Answer with `status`, `headers` and `body`, or what `quirk` makes of them."""
    if quirk.delay:
        await asyncio.sleep(quirk.delay)
    if quirk.hold is not None:
        await _wait(request, quirk.hold)
    if quirk.reset and quirk.cut is None:
        await _end(request, reset=True)
        return web.StreamResponse()
    seen.status, sent, body = _spoilt(quirk, status, headers, body)
    response = web.StreamResponse(status=seen.status, headers=sent)
    if quirk.chunked and request.method != "HEAD":
        response.enable_chunked_encoding()
    elif "Content-Length" not in quirk.headers:
        response.content_length = len(body) + quirk.length
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    await _write(request, response, seen, quirk, body)
    if quirk.cut is not None or quirk.length > 0:
        await _end(request, reset=quirk.reset)
    elif quirk.surplus:
        await response.write_eof()
        assert request.transport is not None
        request.transport.write(quirk.surplus)
    return response


def _spoilt(
    quirk: Quirk, status: int, headers: Mapping[str, str], body: bytes | memoryview
) -> tuple[int, CIMultiDict[str], bytes | memoryview]:
    """Status, headers and body with what is wrong with them."""
    sent = CIMultiDict(headers)
    if quirk.status is not None:
        status, body = quirk.status, error_body("UNKNOWN", f"scripted {quirk.status}")
        sent = CIMultiDict({"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"})
    if quirk.html:
        body, sent = _PAGE, CIMultiDict({"Content-Type": "text/html; charset=utf-8"})
    if quirk.body is not None:
        body = quirk.body
    if quirk.corrupt:
        body = bytes(body[:-1]) + bytes([body[-1] ^ 1])
    if quirk.gzip:
        body = gzip.compress(body)
        sent["Content-Encoding"] = "gzip"
    for name, value in quirk.headers.items():
        sent.popall(name, None)
        if value is not None:
            sent[name] = value
    return status, sent, body


async def _write(
    request: web.Request, response: web.StreamResponse, seen: Seen, quirk: Quirk, body: bytes | memoryview
) -> None:
    end = seen.size = len(body) if quirk.cut is None else min(quirk.cut, len(body))
    step = _PIECE if quirk.rate is None else max(1, min(_PIECE, quirk.rate // 50))
    began, at = time.monotonic(), 0
    while True:
        if quirk.stall is not None and at == min(quirk.stall, end):
            await _wait(request, quirk.release)
        if at == end:
            return
        bound = quirk.stall if quirk.stall is not None and quirk.stall > at else end
        piece = body[at : min(at + step, bound, end)]
        await response.write(piece)
        at += len(piece)
        seen.sent += len(piece)
        if quirk.rate is not None:
            await asyncio.sleep(max(0.0, began + at / quirk.rate - time.monotonic()))


async def _wait(request: web.Request, event: asyncio.Event | None) -> None:
    """Wait for the event, or for ever, as long as the client is there: nobody else would end this handler."""
    while event is None or not event.is_set():
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client left")
        await asyncio.sleep(0.01)


async def _end(request: web.Request, *, reset: bool) -> None:
    """End the connection after all that was written: with FIN, or with RST."""
    transport = request.transport
    if transport is None:
        return
    assert isinstance(transport, asyncio.Transport)
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(0.001)
    if not reset:
        transport.close()
        return
    # With SO_LINGER at 0 the kernel sends a reset in place of an orderly end.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def error_body(code: str, message: str) -> bytes:
    """The JSON of an error of the registry API."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
