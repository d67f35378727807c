"""A client that sees every byte: aiohttp's would tidy up what is to be looked at."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from multidict import CIMultiDict

LIMIT = 1 << 20


class Answer(NamedTuple):
    """A response. `complete`: it came to the end that its head promised."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    complete: bool

    @property
    def error(self) -> dict[str, Any]:
        """The one error of an OCI error body."""
        assert self.headers["Content-Type"] == "application/json"
        (error,) = json.loads(self.body)["errors"]
        assert set(error) == {"code", "message", "detail"}
        found: dict[str, Any] = error
        return found


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, *, version: str = "1.1"
    ) -> Answer:
        """Send a request, read its response."""
        self.send(target, method, headers, version=version)
        return await self.answer(method)

    def send(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, *, version: str = "1.1"
    ) -> None:
        """Send a request."""
        lines = [f"{method} {target} HTTP/{version}", "Host: mirror"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"))

    async def head(self) -> tuple[int, CIMultiDict[str]]:
        """Read a response's head."""
        block = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii")
        first, *lines = block.removesuffix("\r\n\r\n").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        return int(status), CIMultiDict([(name, value) for name, _, value in (line.partition(": ") for line in lines)])

    async def answer(self, method: str = "GET") -> Answer:
        """Read a response."""
        status, headers = await self.head()
        if method == "HEAD" or status == 304:
            return Answer(status, headers, b"", complete=True)
        body = bytearray()
        try:
            if headers.get("Transfer-Encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(size)
                    assert await self.reader.readexactly(2) == b"\r\n"
                await self.reader.readexactly(2)
            elif "Content-Length" in headers:
                left = int(headers["Content-Length"])
                while left:
                    piece = await self.reader.read(min(left, LIMIT))
                    if not piece:
                        return Answer(status, headers, bytes(body), complete=False)
                    body += piece
                    left -= len(piece)
            else:
                body += await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(status, headers, bytes(body), complete=False)
        return Answer(status, headers, bytes(body), complete=True)

    async def ended(self) -> bool:
        """The server closes the connection, and sends nothing more before it does."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def connect(port: int, tls: ssl.SSLContext | None = None, *, limit: int = LIMIT) -> AsyncIterator[Wire]:
    """A connection to the server on `port` of this machine."""
    name = None if tls is None else "localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name, limit=limit)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def take_nothing(port: int, tls: ssl.SSLContext | None, target: str) -> socket.socket:
    """A blocking client that asked, and read the first byte of the answer's head and no more."""
    client = small(port, tls)
    ask_for(client, target)
    return client


def small(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    """A blocking client that has asked nothing yet, with room for little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    client.connect(("127.0.0.1", port))
    return client if tls is None else tls.wrap_socket(client, server_hostname="localhost")


def ask_for(client: socket.socket, target: str) -> None:
    """Ask, and read the first byte of the answer's head and no more."""
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert client.recv(1) == b"H"


def reset(client: socket.socket) -> None:
    """Close a blocking client's connection so that the server's next write fails."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
