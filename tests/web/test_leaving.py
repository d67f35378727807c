"""Clients that leave, where the server cancels the handler and where it does not; and where aiohttp's own does."""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncGenerator

import pytest
from aiohttp import test_utils, web

from mirrorproxy.names import Digest, Repository, repository
from mirrorproxy.registry import Blob
from tests.fakes.memory import HIT, MemoryRegistry, StreamBlob
from tests.web.conftest import Serve, Served
from tests.web.wire import connect, reset, take_nothing

REPOSITORY = repository("docker.io", "library/a")
DATA = random.Random(5).randbytes(20_000_000)
TARGET = f"/v2/a/blobs/{Digest.of(DATA)}"


WAYS = [(kind, cancels, tls) for kind in ("file", "stream") for cancels in (True, False) for tls in (True, False)]


@pytest.fixture(params=WAYS, ids=str)
async def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A server that cancels handlers at a disconnect, or does not; in clear and over TLS."""
    kind, cancels, tls = request.param
    return await serve(MemoryRegistry(kind), handler_cancellation=cancels, tls=tls)


async def test_leaving_while_bytes_flow(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The blob is let go of; the log has a line, and no traceback; the server goes on."""
    served.registry.put_blob(REPOSITORY, DATA)
    async with connect(served.port, served.tls, limit=1000) as wire:
        wire.send(TARGET)
        await wire.reader.readexactly(1000)
    await served.idle()
    assert (await served.ask("/v2/")).status == 200
    line, _ = await served.logged()
    assert (line["status"], line["aborted"], line["cache"]) == (200, True, "hit")
    assert 0 < line["bytes"] < len(DATA)
    assert "error" not in line
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert served.value("cache_requests_total", registry="docker.io", kind="blob", result="hit") == 1


async def test_leaving_while_nothing_comes(served: Served) -> None:
    """At once where handlers are cancelled, else with the next bytes."""
    growth = served.registry.put_growing(REPOSITORY, DATA, available=1000)
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET)
        await wire.head()
        await wire.reader.readexactly(1000)
    await asyncio.sleep(0.05)
    if served.app.inflight:
        for to in range(1_000_000, 20_000_001, 1_000_000):
            growth.extend(to)
            await asyncio.sleep(0.01)
    await served.idle()
    (line,) = await served.logged()
    assert line["aborted"]


async def test_leaving_before_there_is_an_answer(served: Served) -> None:
    """No status was sent: 499 in the log, and no result is counted."""
    served.registry.put_blob(REPOSITORY, DATA)
    gate = served.registry.hold("blob")
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET)
        while not served.registry.asked:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    gate.set()
    await served.idle()
    (line,) = await served.logged()
    assert (line["status"], line["bytes"], line["aborted"], line["cache"]) in [
        (499, 0, True, None),
        (499, 0, True, "hit"),
    ]
    assert served.value("http_request_duration_seconds_count", method="GET", endpoint="blob", code="499") == 1


async def test_leaving_in_the_middle_of_a_pipeline(served: Served) -> None:
    """Ten requests sent, none read: nothing of it stays."""
    served.registry.put_blob(REPOSITORY, DATA)
    async with connect(served.port, served.tls, limit=1000) as wire:
        for _ in range(10):
            wire.send(TARGET)
        await wire.reader.readexactly(10)
    await served.idle()


class Leaving(StreamBlob):
    """A blob whose client resets its connection when the first piece has been sent; then all is there at once."""

    client: "asyncio.Future[socket.socket]"
    pieces = 0

    async def chunks(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Pieces without a pause between."""
        yield DATA[:10]
        reset(await self.client)
        for at in range(10, len(DATA), 10_000):
            self.pieces += 1
            yield DATA[at : at + 10_000]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_a_reset_is_noticed_before_the_next_bytes(
    serve: Serve, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also over TLS, where the transport learns of it only when the loop runs: the rest is not sent into the void."""

    class OneBlob(MemoryRegistry):
        async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
            opened.append(Leaving(self._blob(repository, digest), HIT, self.opened))
            opened[0].client = client
            return opened[0]

    opened: list[Leaving] = []
    client: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    served = await serve(OneBlob("stream"), tls=tls)
    served.registry.put_blob(REPOSITORY, DATA)
    client.set_result(await asyncio.to_thread(take_nothing, served.port, served.tls, TARGET))
    await served.idle()
    assert opened[0].pieces < 10
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_before_the_servers_of_aiohttps_tests(serve: Serve) -> None:
    """`TestServer` brings its own server, which cancels handlers: the handler is right there, too."""
    served = await serve(MemoryRegistry("file"))
    served.registry.put_blob(REPOSITORY, DATA)
    client: test_utils.TestClient[web.BaseRequest, None]
    async with test_utils.RawTestServer(served.app.handle) as server, test_utils.TestClient(server) as client:
        async with client.get(TARGET) as response:
            assert (response.status, await response.read()) == (200, DATA)
        async with client.get(TARGET) as response:
            await response.content.readexactly(1000)
            response.close()
        await served.idle()
        async with client.head("/v2/a/manifests/none") as response:
            assert response.status == 404
