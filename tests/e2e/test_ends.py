"""The service ends in mid-transfer, in order or not, and is started again."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorproxy.names import Digest
from mirrorproxy.spans import Spans
from tests.e2e.client import begin, connect, rest
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e ends")]

MIB = 1 << 20
SIZE = 32 * MIB
NAME = "team/large"

Serve = Callable[..., Proxy]


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service in front of the hub: `serve(server={...}, **upstream)`."""
    hub.script.clear()
    hub.log.clear()

    def make(server: dict[str, Any] | None = None, **changes: Any) -> Proxy:
        return Proxy(tmp_path, settings({"docker.io": upstream(hub, **changes)}, server=server or {}))

    return make


@pytest.fixture
def data() -> bytes:
    """A blob that takes its time."""
    return os.urandom(SIZE)


def target(digest: Digest) -> str:
    """The path of a blob."""
    return f"/v2/{NAME}/blobs/{digest}"


def flushed(proxy: Proxy) -> Spans:
    """What of the one unfinished download is known to have reached the disk."""
    states = proxy.partials()
    return Spans((start, end) for state in states for start, end in state["spans"])


def asked(hub: Hub) -> list[tuple[int, int]]:
    """The ranges asked for: start, and end (the blob's where none was said)."""
    ranges = []
    for seen in hub.seen("cdn"):
        start, _, end = (seen.range or "bytes=0-").removeprefix("bytes=").partition("-")
        ranges.append((int(start), int(end) + 1 if end else SIZE))
    return ranges


async def killed(proxy: Proxy, digest: Digest, least: int) -> Spans:
    """Kill the service with -9 while a client pulls, as soon as `least` bytes are known to be on the disk."""
    async with connect(proxy.address) as wire:
        wire.send(target(digest))
        await until(lambda: flushed(proxy).total >= least)
        await proxy.kill()
        assert len(await rest(wire)) < SIZE
    return flushed(proxy)


@pytest.mark.parametrize("named", [False, True], ids=["size unknown", "size known"])
async def test_killed_in_mid_fill(serve: Serve, hub: Hub, data: bytes, named: bool) -> None:
    """After -9 and a restart the pull completes; the Range asked for begins where the flushed part ended."""
    image = hub.add_image(NAME, "1", data)
    digest = image.layers[0].digest
    hub.script.always("cdn", Quirk(rate=16 * MIB))
    proxy = serve(connections=1)
    await proxy.start()
    if named:
        await proxy.ask(f"/v2/{NAME}/manifests/1")
    kept = await killed(proxy, digest, 4 * MIB)
    assert kept.front == kept.total < SIZE
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await proxy.ask(target(digest))
        assert (answer.complete, answer.body == data) == (True, True)
        assert [seen.range for seen in hub.seen("cdn")] == [f"bytes={kept.front}-"]
        assert hub.sent("cdn") == SIZE - kept.front
        assert await proxy.total("fill_resumes_total", registry="docker.io") == 1
        await proxy.idle()
        assert (await proxy.ask(target(digest))).headers["Cache-Status"] == "mirrorproxy; hit"


async def test_killed_with_several_connections(serve: Serve, hub: Hub, data: bytes) -> None:
    """What was flushed in several parts is not asked for again, but for nothing more than a segment's rounding."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(rate=5 * MIB))
    proxy = serve(connections=4)
    await proxy.start()
    kept = await killed(proxy, digest, 8 * MIB)
    assert kept.total < SIZE
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await proxy.ask(target(digest))
        assert (answer.complete, answer.body == data) == (True, True)
        for start, _ in asked(hub):
            assert kept.end_of(start) == start, f"{start} was here already: {list(kept)}"
        assert hub.sent("cdn") < SIZE - kept.total // 2


async def test_killed_twice(serve: Serve, hub: Hub, data: bytes) -> None:
    """Progress adds up: each start goes on from where the one before came to."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(rate=10 * MIB))
    proxy = serve(connections=1)
    await proxy.start()
    first = await killed(proxy, digest, 4 * MIB)
    await proxy.start()
    second = await killed(proxy, digest, first.total + 4 * MIB)
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await proxy.ask(target(digest))
        assert (answer.complete, answer.body == data) == (True, True)
        assert asked(hub) == [(second.front, SIZE)]


async def test_what_was_flushed_is_not_believed_blindly(serve: Serve, hub: Hub, data: bytes) -> None:
    """A part that was spoilt while the service was down is found out, and the client has no wrong blob."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(rate=16 * MIB))
    proxy = serve(connections=1)
    await proxy.start()
    await killed(proxy, digest, 4 * MIB)
    (part,) = (proxy.cache / "partial").glob("*/data")
    with part.open("r+b") as file:
        file.seek(MIB)
        file.write(b"rotten")
    hub.script.clear()
    async with proxy:
        answer = await proxy.ask(target(digest))
        assert not (answer.complete and answer.body != data)
        answer = await proxy.ask(target(digest))
        assert (answer.complete, answer.body == data) == (True, True)


async def test_sigterm_lets_a_transfer_end(serve: Serve, hub: Hub, data: bytes) -> None:
    """Within the grace time: the client has all of it, while nobody new is let in; the exit status is 0."""
    digest = hub.add_blob(NAME, data)
    go_on = asyncio.Event()
    hub.script.always("cdn", Quirk(stall=MIB, release=go_on))
    proxy = serve(server={"grace": "20s"})
    async with proxy, connect(proxy.address) as probe, connect(proxy.address) as wire:
        assert (await probe.ask("/readyz")).status == 200
        _, first = await begin(wire, target(digest), MIB)
        proxy.send(signal.SIGTERM)
        await until(lambda: proxy.said("stopping"))
        ready = await probe.ask("/readyz")
        assert (ready.status, ready.body) == (503, b"draining\n")
        assert ready.headers["Connection"] == "close"
        with pytest.raises(ConnectionRefusedError):
            await proxy.ask("/readyz")
        go_on.set()
        assert first + await wire.reader.readexactly(SIZE - MIB) == data
        assert await proxy.ended() == 0
    assert (proxy.cache / "blobs" / "sha256" / digest.hex).read_bytes() == data


async def test_sigterm_beyond_the_grace_time(serve: Serve, hub: Hub, data: bytes) -> None:
    """The client's transfer breaks, what came is kept to the last byte, and is continued after a restart."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(stall=8 * MIB))
    proxy = serve(server={"grace": "200ms"}, connections=1)
    await proxy.start()
    async with connect(proxy.address) as wire:
        _, first = await begin(wire, target(digest), 8 * MIB)
        assert await proxy.stop() == 0
        assert len(first + await rest(wire)) == 8 * MIB
    (line,) = proxy.requests()
    assert (line["status"], line["bytes"], line["aborted"]) == (200, 8 * MIB, True)
    assert flushed(proxy).front == 8 * MIB
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        answer = await proxy.ask(target(digest))
        assert (answer.complete, answer.body == data) == (True, True)
        assert asked(hub) == [(8 * MIB, SIZE)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_grace_time(serve: Serve, hub: Hub, data: bytes, number: signal.Signals) -> None:
    """For whoever is in a hurry: at once, in order, with what came kept."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(stall=4 * MIB))
    proxy = serve(server={"grace": "1h"}, connections=1)
    await proxy.start()
    async with connect(proxy.address) as wire:
        await begin(wire, target(digest), 4 * MIB)
        proxy.send(number)
        await until(lambda: proxy.said("stopping"))
        assert await proxy.stop(number) == 0
    assert flushed(proxy).front == 4 * MIB
    assert proxy.complaints() == []


async def test_a_fill_without_clients_is_not_lost(serve: Serve, hub: Hub, data: bytes) -> None:
    """A download whose client left is kept as far as it came when the service stops, and is continued."""
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(stall=4 * MIB))
    proxy = serve(server={"grace": "300ms"}, connections=1)
    await proxy.start()
    async with connect(proxy.address) as wire:
        await begin(wire, target(digest), 4 * MIB)
    assert await proxy.stop() == 0
    assert flushed(proxy).front == 4 * MIB
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        assert (await proxy.ask(target(digest))).body == data
        assert asked(hub) == [(4 * MIB, SIZE)]


async def test_killed_in_mid_commit(serve: Serve, hub: Hub) -> None:
    """Many small blobs at the moment of -9: each is there whole and right afterwards, or is fetched again."""
    blobs = {hub.add_blob(NAME, content): content for content in (os.urandom(200_000) for _ in range(60))}
    proxy = serve(max_connections=32, max_fills=32)
    await proxy.start()

    async def pull(digest: Digest) -> None:
        try:
            await proxy.ask(target(digest))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it was killed

    async with asyncio.TaskGroup() as group:
        for digest in blobs:
            group.create_task(pull(digest))
        await until(lambda: hub.count("cdn") >= 20)
        await proxy.kill()
    for path in (proxy.cache / "blobs" / "sha256").iterdir():
        assert Digest.of(path.read_bytes()).hex == path.name
    async with proxy:
        for digest, content in blobs.items():
            assert (await proxy.ask(target(digest))).body == content


async def test_killed_at_its_start(serve: Serve, hub: Hub) -> None:
    """At any moment of it: the next start finds a directory that it can use."""
    image = hub.add_image(NAME, "1", os.urandom(1000))
    proxy = serve()
    for delay in (0.05, 0.15, 0.3, 0.4):
        await proxy.launch()
        await asyncio.sleep(delay)
        await proxy.kill()
    async with proxy:
        assert (await proxy.ask(f"/v2/{NAME}/manifests/1")).body == image.body
