"""Blobs whose file fails: the rest comes another way, or the transfer breaks; a lie about the size breaks it too."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Callable

import pytest

from mirrorproxy.errors import CacheFailed, Unreachable
from mirrorproxy.names import Digest, Repository, repository
from mirrorproxy.registry import Blob
from tests.fakes.memory import HIT, Growth, MemoryFileBlob, MemoryRegistry, StreamBlob
from tests.web.conftest import Serve, Served
from tests.web.wire import connect

REPOSITORY = repository("docker.io", "library/a")
DATA = random.Random(4).randbytes(1_000_000)
SIZE = len(DATA)
DIGEST = Digest.of(DATA)
TARGET = f"/v2/a/blobs/{DIGEST}"

Opened = Callable[[Growth, MemoryRegistry], Blob]


class OneBlob(MemoryRegistry):
    """A registry whose blobs are opened by a function of the test."""

    opening: Opened

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """Whatever the test says."""
        return self.opening(self._blob(repository, digest), self)


@pytest.fixture(params=[False, True], ids=["clear", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    """In clear and over TLS: two ways of sending a file."""
    found: bool = request.param
    return found


async def serving(serve: Serve, opening: Opened, *, tls: bool, size_known: bool = True) -> tuple[Served, Growth]:
    """A server whose blob is opened so."""
    registry = OneBlob("file")
    registry.opening = opening
    growth = registry.put_growing(REPOSITORY, DATA, size_known=size_known)
    return await serve(registry, tls=tls), growth


class WaitFails(MemoryFileBlob):
    """A file that can serve no more after 300,000 bytes, as that of a fill whose disk is full."""

    def ready(self, start: int) -> int:
        """Nothing after that."""
        return max(start, min(super().ready(start), 300_000))

    async def wait(self, start: int) -> None:
        """No more will come."""
        raise CacheFailed("the disk is full")


@pytest.mark.parametrize("size_known", [True, False])
async def test_the_rest_comes_by_chunks(serve: Serve, tls: bool, size_known: bool) -> None:
    """Cache trouble never fails a pull that the upstream can serve: one whole body, nothing twice."""
    served, growth = await serving(
        serve, lambda growth, registry: WaitFails(growth, HIT, registry.opened), tls=tls, size_known=size_known
    )
    growth.finish()
    answer = await served.ask(TARGET)
    assert answer.complete
    assert answer.body == DATA
    (line,) = await served.logged()
    assert (line["bytes"], line["aborted"]) == (SIZE, False)


async def test_a_range_goes_on_by_chunks_too(serve: Serve, tls: bool) -> None:
    """From where the file ended, to where the range does."""
    served, growth = await serving(serve, lambda growth, registry: WaitFails(growth, HIT, registry.opened), tls=tls)
    growth.finish()
    answer = await served.ask(TARGET, headers={"Range": "bytes=100000-500000"})
    assert (answer.status, answer.complete) == (206, True)
    assert answer.body == DATA[100_000:500_001]


async def test_the_other_way_may_fail_as_well(serve: Serve, tls: bool) -> None:
    """The transfer breaks."""
    served, growth = await serving(serve, lambda growth, registry: WaitFails(growth, HIT, registry.opened), tls=tls)
    growth.extend(400_000)
    growth.fail(Unreachable("gone"))
    answer = await served.ask(TARGET)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body == DATA[:400_000]


@pytest.mark.parametrize("left", [0, 1000, 999_999])
async def test_a_file_cut_short_behind_our_back(serve: Serve, tls: bool, left: int) -> None:
    """It claims to be whole; reading says otherwise, before the first byte or after."""

    def opening(growth: Growth, registry: MemoryRegistry) -> Blob:
        os.ftruncate(growth.fd, left)
        return MemoryFileBlob(growth, HIT, registry.opened)

    served, growth = await serving(serve, opening, tls=tls)
    growth.finish()
    answer = await served.ask(TARGET)
    assert answer.complete
    assert answer.body == DATA


async def test_a_disk_that_cannot_be_read(serve: Serve, tls: bool) -> None:
    """Reading a folder is an error as that of a broken disk is one."""

    class Broken(MemoryFileBlob):
        def __init__(self, growth: Growth, registry: MemoryRegistry) -> None:
            super().__init__(growth, HIT, registry.opened)
            os.close(self.fd)
            self.fd = os.open("/", os.O_RDONLY)

    served, growth = await serving(serve, Broken, tls=tls)
    growth.finish()
    assert (await served.ask(TARGET)).body == DATA
    small = await served.ask(TARGET, headers={"Range": "bytes=1-5"})
    assert small.body == DATA[1:6]


async def test_a_wait_that_returns_for_nothing(serve: Serve, tls: bool) -> None:
    """A file that says it has ended before its size does not hang, nor spin: the rest comes another way."""

    class Idle(MemoryFileBlob):
        async def wait(self, start: int) -> None:
            """Return, though nothing came."""

    def opening(growth: Growth, registry: MemoryRegistry) -> Blob:
        return Idle(growth, HIT, registry.opened)

    served, growth = await serving(serve, opening, tls=tls)
    growth.extend(500_000)
    asyncio.get_running_loop().call_later(0.02, growth.finish)
    answer = await served.ask(TARGET)
    assert answer.complete
    assert answer.body == DATA


@pytest.mark.parametrize("excess", [-1, 1, -SIZE])
async def test_a_stream_of_another_length_than_told(serve: Serve, tls: bool, excess: int) -> None:
    """Never more than Content-Length is sent, and less is a broken transfer."""

    class Liar(StreamBlob):
        async def chunks(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
            yield (DATA + b"x")[: SIZE + excess]

    served, _ = await serving(serve, lambda growth, registry: Liar(growth, HIT, registry.opened), tls=tls)
    async with connect(served.port, served.tls) as wire:
        answer = await wire.ask(TARGET)
        assert (answer.status, answer.complete) == (200, False)
        assert DATA.startswith(answer.body)
        assert await wire.ended()
    (line,) = await served.logged()
    assert line["aborted"]
    assert "size" in line["error"]


async def test_empty_chunks_end_nothing(serve: Serve, tls: bool) -> None:
    """An empty chunk would be the end of a chunked body."""

    class Gaps(StreamBlob):
        async def chunks(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
            for piece in (b"", DATA[:10], b"", DATA[10:], b""):
                yield piece

    served, _ = await serving(
        serve, lambda growth, registry: Gaps(growth, HIT, registry.opened), tls=tls, size_known=False
    )
    answer = await served.ask(TARGET)
    assert answer.complete
    assert answer.body == DATA


async def test_a_growing_file_of_unknown_size(serve: Serve, tls: bool) -> None:
    """Chunked from the file, until the blob says that there is no more."""
    served, growth = await serving(
        serve, lambda growth, registry: MemoryFileBlob(growth, HIT, registry.opened), tls=tls, size_known=False
    )
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, growth.extend, 123_456)
    loop.call_later(0.03, growth.finish)
    answer = await served.ask(TARGET)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.complete
    assert answer.body == DATA
    assert served.registry.opened["chunks"] == 0


async def test_a_file_that_is_made_after_the_headers_went(serve: Serve, tls: bool) -> None:
    """A download that waits for its turn has no file yet: it is sent from the file all the same, once there is one."""

    class Later(MemoryFileBlob):
        def __init__(self, growth: Growth, registry: MemoryRegistry) -> None:
            super().__init__(growth, HIT, registry.opened)
            self._made, self.fd = self.fd, -1

        def ready(self, start: int) -> int:
            if self._growth.available:
                self.fd = self._made
            return super().ready(start)

    served, growth = await serving(serve, Later, tls=tls)
    asyncio.get_running_loop().call_later(0.05, growth.finish)
    answer = await served.ask(TARGET)
    assert answer.body == DATA
    assert served.registry.opened["chunks"] == 0
