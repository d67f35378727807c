"""Who comes in over TLS, and who is not waited for any longer."""

import asyncio
import socket
import ssl
from typing import cast

import pytest
import trustme

from mirrorproxy.listening.door import Door
from mirrorproxy.web.server import Server


class Greeting(asyncio.Protocol):
    """Says one word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """At once."""
        cast("asyncio.Transport", transport).write(b"welcome")


async def test_a_client_that_begins_no_tls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nobody else out for longer than a handshake may take."""
    monkeypatch.setattr("mirrorproxy.listening.door._HANDSHAKE", 0.2)
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    listening = socket.create_server(("127.0.0.1", 0))
    door = Door(cast("Server", type("Served", (), {"__call__": lambda _: Greeting()})()), ours, most=1)
    door.open([listening])
    port = listening.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="localhost")
        assert await reader.readexactly(7) == b"welcome"
        writer.transport.abort()
    await door.close()
