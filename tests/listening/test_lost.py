"""asyncio loses some connections twice."""

import asyncio
import logging
import socket

import pytest

from mirrorproxy.listening.lost import forgive


class Leaving(asyncio.Protocol):
    """Ends its connection when there is room to write again."""

    def __init__(self) -> None:
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def resume_writing(self) -> None:
        """End."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count."""
        self.lost += 1


async def test_a_second_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """The connection is lost once, for those who use it, and nothing is logged."""
    loop = asyncio.get_running_loop()
    forgive(loop)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        transport, protocol = await loop.create_connection(Leaving, sock=ours)
        transport.set_write_buffer_limits(0)
        transport.write(bytes(4 << 20))
        async with asyncio.timeout(10):
            while await loop.sock_recv(theirs, 1 << 20):
                pass
        await asyncio.sleep(0)
    assert protocol.lost == 1
    assert caplog.records == []


async def test_other_errors_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """As asyncio tells them."""
    loop = asyncio.get_running_loop()
    forgive(loop)

    def fail() -> None:
        raise AttributeError("something else")

    loop.call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncio", logging.ERROR)
