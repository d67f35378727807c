"""An HTTP proxy: forwards plain requests, tunnels TLS (`CONNECT`), and notes what it was asked.

async with Proxy({"registry.test": "127.0.0.1"}) as proxy:
    ... proxy.url ... proxy.asked
"""

import asyncio
import base64
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from mirrorproxy.tasks import Tasks


class Proxy:
    """`names` are resolved here alone: clients leave that to their proxy. `login`: `user:password` that it wants."""

    def __init__(self, names: Mapping[str, str] | None = None, *, login: str | None = None) -> None:
        self.asked: list[str] = []
        """Method and target of each request, as `CONNECT 127.0.0.1:443` or `GET http://127.0.0.1/v2/`."""
        self.url = ""
        self._names = dict(names or {})
        self._login = login
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._tasks.aclose()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), name="proxy connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, _, headers = head.partition("\r\n")
            method, target, _ = line.split(" ")
            self.asked.append(f"{method} {target}")
            if self._login is not None:
                wanted = "proxy-authorization: basic " + base64.b64encode(self._login.encode()).decode()
                if wanted.lower() not in headers.lower():
                    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                    return
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            host = url.hostname or ""
            there, to_there = await asyncio.open_connection(self._names.get(host, host), url.port or 80)
            with contextlib.closing(to_there):
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = target.partition("//")[2].partition("/")[2]
                    to_there.write(f"{method} /{path} HTTP/1.1\r\nConnection: close\r\n{headers}".encode("latin-1"))
                up = self._tasks.start(_copy(reader, to_there), name="proxy upwards")
                await _copy(there, writer)
                up.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
