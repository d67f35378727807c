"""Who comes in over TLS, and who is not waited for any longer."""

import asyncio
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import cast

import pytest
import trustme

from mirrorproxy.listening.door import Door
from mirrorproxy.web.server import Server

MOST = 10


class Greeting(asyncio.Protocol):
    """Says one word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """At once."""
        cast("asyncio.Transport", transport).write(b"welcome")


@pytest.fixture
async def door(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncIterator[Door]:
    """One that greets."""
    door = Door(cast("Server", type("Served", (), {"__call__": lambda _: Greeting()})()), contexts[0], most=MOST)
    yield door
    await door.close()


@pytest.fixture
def port(door: Door) -> int:
    """Where it is."""
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    door.open([listening])
    return port


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and that of clients who trust it."""
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    return ours, theirs


def come_in(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A client that was greeted."""
    client = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost")
    assert client.recv(7) == b"welcome"
    return client


async def test_a_client_that_begins_no_tls_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, port: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """It keeps nobody else out for longer than a handshake may take."""
    monkeypatch.setattr("mirrorproxy.listening.door._HANDSHAKE", 0.2)
    with ExitStack() as clients:
        for _ in range(MOST):
            clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        clients.enter_context(await asyncio.to_thread(come_in, port, contexts[1]))


async def test_a_client_that_trusts_nobody_leaves_its_place(
    port: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """A handshake that fails is the end of a connection, however many do."""
    for _ in range(2 * MOST):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(come_in, port, ssl.create_default_context())
    (await asyncio.to_thread(come_in, port, contexts[1])).close()


async def test_a_connection_over_tls_takes_little_memory(
    port: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """A thousand idle nodes are tens of megabytes, not hundreds."""
    with ExitStack() as clients:
        clients.enter_context(await asyncio.to_thread(come_in, port, contexts[1]))
        tracemalloc.start()
        try:
            for _ in range(MOST - 1):
                clients.enter_context(await asyncio.to_thread(come_in, port, contexts[1]))
            assert tracemalloc.get_traced_memory()[0] < (MOST - 1) * 64_000
        finally:
            tracemalloc.stop()


async def test_who_has_not_come_in_yet_is_let_go_when_the_door_closes(port: int, door: Door) -> None:
    """Not only when a handshake's time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.1)  # it is taken, and says nothing
    await door.close()
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
