"""A TCP relay: a line between anybody and a server that is far, slow or full, or that breaks. Counts what it carries.

async with Relay("127.0.0.1", 5000, Line(delay=0.1)) as relay:
    ... relay.url ... relay.carried
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mirrorproxy.tasks import Tasks

_PIECE = 16 << 10
_ON_THE_WAY = 256  # pieces of a connection, in each direction: 4 MiB
_CREDIT = 0.02  # seconds that a late wake-up may be made good for


@dataclass(frozen=True, slots=True)
class Line:
    """What a connection is like. Bytes are counted from the server to the client, heads included."""

    delay: float = 0.0
    """Seconds that everything is on its way, in each direction; to connect takes two of these more."""
    rate: float | None = None
    """Bytes a second."""
    cut: int | None = None
    """The connection ends after so many bytes."""
    reset: bool = False
    """It ends with a reset."""
    stall: int | None = None
    """After so many bytes nothing comes any more, and nobody says so."""


Choice = Callable[[int], Line]


def breaking(chance: random.Random, mean: int, delay: float = 0.0) -> Choice:
    """Lines that break at random, after `mean` bytes on average: one third each end, are reset, and fall silent."""

    def line(number: int) -> Line:
        after = int(chance.expovariate(1 / mean))
        how = chance.randrange(3)
        return Line(delay, stall=after) if how == 2 else Line(delay, cut=after, reset=how == 1)

    return line


class Relay:
    """Listens, and connects to `host` and `port` for each connection that it accepts.

    `line` is what connections are like, all of them or each by its number; `rate` what all together may have, in bytes
    a second. `listener` is a socket to listen on; without one it is any port of 127.0.0.1.
    """

    def __init__(
        self,
        host: str,
        port: int,
        line: Line | Choice = Line(),
        *,
        rate: float | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.carried: list[int] = []
        """Bytes to the client, of each connection so far."""
        self._there = host, port
        self._line = line
        self._shared = _Clock(rate)
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        else:
            self._server = await asyncio.start_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._tasks.aclose()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), name="relay")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.carried)
        self.carried.append(0)
        line = self._line if isinstance(self._line, Line) else self._line(number)
        own = Tasks()
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await asyncio.sleep(2 * line.delay)
            there, to_there = await asyncio.open_connection(*self._there)
            with contextlib.closing(to_there):
                up = own.start(_up(reader, to_there, line.delay), name="relay up")
                down = own.start(self._down(there, writer, line, number), name="relay down")
                try:
                    await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await own.aclose()
                if line.reset:
                    _reset(writer)

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line, number: int) -> None:
        own = _Clock(line.rate)
        end = min(bound for bound in (line.cut, line.stall, 1 << 62) if bound is not None)
        async with _Delayed(reader, line.delay) as delayed:
            while self.carried[number] < end and (data := await delayed.next()):
                data = data[: end - self.carried[number]]
                await asyncio.sleep(max(own.reserve(len(data)), self._shared.reserve(len(data))))
                writer.write(data)
                self.carried[number] += len(data)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        if self.carried[number] == line.stall:
            await asyncio.Event().wait()  # until the client ends it
        while writer.transport.get_write_buffer_size() and not writer.transport.is_closing():
            await asyncio.sleep(0.001)


async def _up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    async with _Delayed(reader, delay) as delayed:
        with contextlib.suppress(ConnectionError):
            while data := await delayed.next():
                writer.write(data)
                await writer.drain()


class _Delayed:
    """What a reader gives, some time later."""

    def __init__(self, reader: asyncio.StreamReader, delay: float) -> None:
        self._reader = reader
        self._delay = delay
        self._on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_THE_WAY)
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        self._tasks.start(self._take(), name="relay reads")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def next(self) -> bytes:
        """The next bytes; none at the end."""
        due, data = await self._on_the_way.get()
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        return data

    async def _take(self) -> None:
        data = b"?"
        while data:
            try:
                data = await self._reader.read(_PIECE)
            except ConnectionError:
                data = b""
            await self._on_the_way.put((asyncio.get_running_loop().time() + self._delay, data))


class _Clock:
    """A rate, as a clock: each piece takes the next stretch of it, and leaves when that is over."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0

    def reserve(self, size: int) -> float:
        """Seconds to wait before `size` bytes may leave."""
        if self._rate is None:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now - _CREDIT) + size / self._rate
        return max(0.0, self._free - now)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset in place of an orderly end."""
    if not writer.transport.is_closing():
        # With SO_LINGER at 0 the kernel sends one at the close.
        own: socket.socket = writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
