"""Transfers that go well, slowly, wrong, or away."""

import asyncio
import hashlib
import json
import random
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import pytest

from mirrorproxy.errors import DigestMismatch, MirrorproxyError, TimedOut, Unreachable
from mirrorproxy.names import Digest, repository
from mirrorproxy.web.pump import read_now
from mirrorproxy.web.stream import FEW
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, Served
from tests.web.wire import ask_for, connect, small, take_nothing

REPOSITORY = repository("docker.io", "library/a")
DATA = random.Random(3).randbytes(3_000_000)
SIZE = len(DATA)
DIGEST = Digest.of(DATA)
TARGET = f"/v2/a/blobs/{DIGEST}"

EVERY_WAY: list[tuple[Literal["file", "memory", "stream"], bool]] = [
    ("file", False),
    ("memory", False),
    ("stream", False),
    ("file", True),
    ("memory", True),
    ("stream", True),
]


@pytest.fixture(params=EVERY_WAY, ids=lambda way: f"{way[0]}-{'tls' if way[1] else 'clear'}")
async def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A server without content: files and streams, in clear and over TLS."""
    kind, tls = request.param
    return await serve(MemoryRegistry(kind), tls=tls, write_timeout=0.3)


async def test_a_large_blob(served: Served) -> None:
    """Byte for byte, again and again on one connection, and counted exactly."""
    served.registry.put_blob(REPOSITORY, DATA)
    async with connect(served.port, served.tls) as wire:
        for _ in range(3):
            answer = await wire.ask(TARGET)
            assert (answer.status, answer.complete) == (200, True)
            assert answer.body == DATA
    assert served.value("response_bytes_total", registry="docker.io", kind="blob", result="hit") == 3 * SIZE
    lines = await served.logged()
    assert [(line["bytes"], line["aborted"], line["cache"]) for line in lines] == [(SIZE, False, "hit")] * 3
    assert all(0 < line["ttfb_ms"] <= line["duration_ms"] for line in lines)


async def test_pipelined_requests(served: Served) -> None:
    """Answered in order, though all were sent at once."""
    served.registry.put_blob(REPOSITORY, DATA)
    async with connect(served.port, served.tls) as wire:
        for start in (0, 1_000_000, 2_900_000):
            wire.send(TARGET, headers={"Range": f"bytes={start}-"})
        wire.send("/v2/")
        for start in (0, 1_000_000, 2_900_000):
            assert (await wire.answer()).body == DATA[start:]
        assert (await wire.answer()).body == b"{}"


async def test_what_is_buffered_goes_out_before_a_file(served: Served) -> None:
    """A client that reads late: lists wait in the transport when a blob begins, which goes round the transport."""
    served.registry.put_blob(REPOSITORY, DATA)
    for number in range(550):
        served.registry.tag(REPOSITORY, f"{number:0100}", DIGEST)
    for shift in range(8):  # the kernel's queue is full in the middle of a list, or of a blob, as it happens
        async with connect(served.port, served.tls, limit=1000) as wire:
            wire.send(TARGET, headers={"Range": f"bytes=0-{10_000 * shift}"})
            for _ in range(60):
                wire.send("/v2/a/tags/list")
                wire.send(TARGET, headers={"Range": "bytes=0-69999"})
            await asyncio.sleep(0.05)
            assert (await wire.answer()).body == DATA[: 10_000 * shift + 1]
            for _ in range(60):
                assert len(json.loads((await wire.answer()).body)["tags"]) == 550
                assert (await wire.answer()).body == DATA[:70_000]


async def test_the_head_goes_out_before_the_first_byte_is_there(served: Served) -> None:
    """Some clients (containerd) give up after 30 s without one. The bytes follow as they come."""
    growth = served.registry.put_growing(REPOSITORY, DATA)
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET)
        status, headers = await wire.head()
        assert (status, headers["Content-Length"]) == (200, str(SIZE))
        got = 0
        for to in (1, 65_536, 65_537, 1_000_000, SIZE):
            growth.extend(to)
            assert await wire.reader.readexactly(to - got) == DATA[got:to]
            got = to
        assert (await wire.ask("/v2/")).status == 200


async def test_a_blob_without_a_known_size(served: Served) -> None:
    """Comes in chunks, and the connection goes on."""
    growth = served.registry.put_growing(REPOSITORY, DATA, available=10, size_known=False)
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET)
        asyncio.get_running_loop().call_later(0.01, growth.finish)
        answer = await wire.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body == DATA
        assert (await wire.ask("/v2/")).status == 200


@pytest.mark.parametrize(
    "error", [DigestMismatch("wrong bytes"), TimedOut("no byte"), Unreachable("reset"), ZeroDivisionError()]
)
@pytest.mark.parametrize("size_known", [True, False])
async def test_a_transfer_that_breaks_is_never_complete(
    served: Served, error: MirrorproxyError, size_known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What came is sent, then the connection ends: no second response, no end of the body, no proper close."""
    growth = served.registry.put_growing(REPOSITORY, DATA, available=100_000, size_known=size_known)
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET)
        asyncio.get_running_loop().call_later(0.02, growth.fail, error)
        answer = await wire.answer()
        assert (answer.status, answer.complete) == (200, False)
        assert answer.body == DATA[:100_000]
        assert await wire.ended()
    (line,) = await served.logged()
    assert (line["status"], line["bytes"], line["aborted"]) == (200, 100_000, True)
    assert line["error"]
    assert served.value("cache_requests_total", registry="docker.io", kind="blob", result="error") == 1


async def test_a_wrong_last_byte_is_a_broken_transfer(served: Served) -> None:
    """The digest is right or wrong at the very end: the blob holds its last bytes back until it knows."""
    growth = served.registry.put_growing(REPOSITORY, DATA, available=SIZE - 65_536, digest=Digest.of(b"other"))
    growth.fail(DigestMismatch("the bytes are not what their digest says"))
    answer = await served.ask(f"/v2/a/blobs/{Digest.of(b'other')}")
    assert answer.status == 200
    assert not answer.complete
    assert len(answer.body) <= SIZE - 65_536


async def test_nothing_is_read_to_its_end_too(serve: Serve) -> None:
    """An empty blob that is passed through: only its stream knows whether it was to be empty."""
    served = await serve(MemoryRegistry("stream"))
    digest = served.registry.put_blob(REPOSITORY, b"")
    answer = await served.ask(f"/v2/a/blobs/{digest}")
    assert (answer.status, answer.body, answer.complete) == (200, b"", True)
    assert served.registry.opened["chunks"] == 1


async def test_a_broken_transfer_without_any_framing_is_reset(served: Served) -> None:
    """HTTP/1.0 and no size: the connection's end is the body's, so only a reset tells that it broke."""
    growth = served.registry.put_growing(REPOSITORY, DATA, available=1000, size_known=False)
    async with connect(served.port, served.tls) as wire:
        wire.send(TARGET, version="1.0")
        status, headers = await wire.head()
        assert status == 200
        assert headers["Connection"] == "close"
        assert not {"Content-Length", "Transfer-Encoding"} & set(headers)
        await wire.reader.readexactly(1000)
        growth.fail(TimedOut("no byte"))
        with pytest.raises(ConnectionError):
            await wire.reader.read()


async def test_http_1_0(served: Served) -> None:
    """With a size it works like any other, and goes on where the client asks for that."""
    served.registry.put_blob(REPOSITORY, DATA)
    async with connect(served.port, served.tls) as wire:
        answer = await wire.ask(TARGET, headers={"Connection": "keep-alive"}, version="1.0")
        assert (answer.headers["Connection"], answer.body == DATA) == ("keep-alive", True)
        answer = await wire.ask("/v2/", version="1.0")
        assert answer.headers["Connection"] == "close"
        assert await wire.ended()


async def test_a_client_that_takes_nothing_is_cut(served: Served) -> None:
    """After `write_timeout`, and the blob is let go of."""
    digest = served.registry.put_blob(REPOSITORY, DATA * 10)
    with await asyncio.to_thread(take_nothing, served.port, served.tls, f"/v2/a/blobs/{digest}"):
        assert served.registry.opened["open"] == 1
        await served.idle()
    (line,) = await served.logged()
    assert line["aborted"]
    assert 0 < line["bytes"] < SIZE * 10
    assert 300 <= line["duration_ms"] < 3000
    assert "error" not in line


async def test_a_very_slow_client_is_not_cut(served: Served) -> None:
    """Though it takes so little that the kernel never says there is room for more."""
    digest = served.registry.put_blob(REPOSITORY, DATA * 10)
    with await asyncio.to_thread(take_nothing, served.port, served.tls, f"/v2/a/blobs/{digest}") as client:

        def sip() -> int:
            taken = 0
            while taken < 40_000 and (piece := client.recv(40_000 - taken)):
                taken += len(piece)
            return taken

        taken = 0
        for _ in range(12):  # 4 times as long as a client may take nothing
            await asyncio.sleep(0.1)
            taken += await asyncio.to_thread(sip)
        assert taken == 12 * 40_000
        assert served.app.inflight == 1
    await served.idle()


@pytest.mark.parametrize(("kind", "tls"), EVERY_WAY)
async def test_memory_does_not_grow_with_clients_that_take_nothing(
    serve: Serve, kind: Literal["file", "memory", "stream"], tls: bool
) -> None:
    """A hundred of them, with 30 MB each to send: what waits for them is the file, and a little in the kernel."""
    served = await serve(MemoryRegistry(kind), tls=tls, write_timeout=60)
    target = f"/v2/a/blobs/{served.registry.put_blob(REPOSITORY, DATA * 10)}"
    with ExitStack() as clients:
        for _ in range(FEW):  # these may hold more over TLS, 16 MiB in all
            clients.enter_context(await asyncio.to_thread(take_nothing, served.port, served.tls, target))
        waiting = [clients.enter_context(await asyncio.to_thread(small, served.port, served.tls)) for _ in range(100)]
        before = _resident()
        for client in waiting:
            await asyncio.to_thread(ask_for, client, target)
        assert served.app.inflight == FEW + 100
        most = 500_000 if kind == "stream" else 400_000  # a chunk of the fake's own is among that
        assert _resident() - before < 100 * most
    await served.idle()


async def test_what_was_sent_is_not_kept(serve: Serve) -> None:
    """The first bytes of a body go with its head; no client has them in memory for the rest of it."""
    served = await serve(MemoryRegistry("file"), tls=False, write_timeout=60)
    target = f"/v2/a/blobs/{served.registry.put_blob(REPOSITORY, DATA * 10)}"
    with ExitStack() as clients, traced() as taken:
        clients.enter_context(await asyncio.to_thread(take_nothing, served.port, served.tls, target))
        before = taken()
        for _ in range(50):
            clients.enter_context(await asyncio.to_thread(take_nothing, served.port, served.tls, target))
        assert served.app.inflight == 51
        assert taken() - before < 50 * 20_000  # it is 14 KB, and 31 where the first bytes are kept
    await served.idle()


async def test_large_pieces_are_for_few(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS, where each response holds its piece: whoever comes when there are many has small ones."""
    sizes: list[int] = []

    def reading(fd: int, size: int, offset: int) -> bytes | None:
        if offset == 16 << 10:  # the bytes before that went with the head
            sizes.append(size)
        return read_now(fd, size, offset)

    monkeypatch.setattr("mirrorproxy.web.stream.read_now", reading)
    served = await serve(MemoryRegistry("file"), tls=True, write_timeout=60)
    target = f"/v2/a/blobs/{served.registry.put_blob(REPOSITORY, DATA * 10)}"
    with ExitStack() as clients:
        for _ in range(FEW + 8):
            clients.enter_context(await asyncio.to_thread(take_nothing, served.port, served.tls, target))
    assert sizes == [256 << 10] * FEW + [64 << 10] * 8
    await served.idle()
    assert (await served.ask(target)).body == DATA * 10
    assert sizes[-1] == 256 << 10


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Bytes that objects of this process take which were made since, asked for when it is wanted."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def _resident() -> int:
    """Bytes of memory that the process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def test_a_slow_client_is_not_cut(served: Served) -> None:
    """One that takes a little now and then gets it all, however long it takes in all."""
    data = DATA * 5  # more than the sockets' buffers hold
    served.registry.put_blob(REPOSITORY, data)
    async with connect(served.port, served.tls, limit=16_384) as wire:
        wire.send(f"/v2/a/blobs/{Digest.of(data)}")
        await wire.head()
        checksum, left, step = hashlib.sha256(), len(data), len(data) // 8
        while left:
            await asyncio.sleep(0.15)  # half the time after which it would be cut; 8 times
            piece = await wire.reader.readexactly(min(step, left))
            checksum.update(piece)
            left -= len(piece)
        assert f"sha256:{checksum.hexdigest()}" == Digest.of(data)


async def test_two_hundred_readers_of_a_growing_blob(served: Served) -> None:
    """All get it, while it grows."""
    data = DATA[:500_000]
    growth = served.registry.put_growing(REPOSITORY, data, available=10)

    async def pull() -> str:
        checksum = hashlib.sha256()
        async with connect(served.port, served.tls, limit=65_536) as wire:
            wire.send(f"/v2/a/blobs/{growth.digest}")
            await wire.head()
            left = len(data)
            while left:
                piece = await wire.reader.read(left)
                assert piece
                checksum.update(piece)
                left -= len(piece)
        return checksum.hexdigest()

    async with asyncio.TaskGroup() as group:
        pulls = [group.create_task(pull()) for _ in range(200)]
        while served.registry.opened["open"] < 200:
            await asyncio.sleep(0.01)
        for to in range(0, 500_000, 100_000):
            growth.extend(max(10, to))
            await asyncio.sleep(0.01)
        growth.finish()
    assert {f"sha256:{done.result()}" for done in pulls} == {growth.digest}
