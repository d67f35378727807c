"""A worker's view of the registries keeps the contract, over the cache and over what is passed through."""

import asyncio
import os
from contextlib import aclosing
from typing import Literal, cast

import pytest

from mirrorproxy.errors import BlobUnknown, DigestMismatch, ServerFailed
from mirrorproxy.names import Digest
from mirrorproxy.policy import Guarded
from mirrorproxy.registry import FileBlob, Registry, Result
from mirrorproxy.unified import Unified
from mirrorproxy.workers.files import GrowingFile, WholeFile
from mirrorproxy.workers.remote import Remote
from tests.cache.conftest import World, world
from tests.contracts.registry_contract import SAMPLE, RegistryContract, read
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, serve
from tests.web.test_memory import serving_sample
from tests.workers.conftest import Reach, beside

__all__ = ["serve", "world"]

REPOSITORY = SAMPLE.repository
LARGE = max(SAMPLE.blobs, key=lambda digest: len(SAMPLE.blobs[digest]))
DATA = SAMPLE.blobs[LARGE]


class TestOverWhatIsPassedThrough(RegistryContract):
    """Blobs that come by the line."""

    @pytest.fixture(params=["file", "memory", "stream"])
    async def registry(self, request: pytest.FixtureRequest, reach: Reach) -> Registry:
        """The sample, at the other end of a line."""
        blobs_are: Literal["file", "memory", "stream"] = request.param
        return reach(serving_sample(MemoryRegistry(blobs_are))).remote


class TestOverTheCache(RegistryContract):
    """Blobs that are files: of downloads, and whole ones."""

    @pytest.fixture(params=["cold", "warm"])
    async def registry(self, request: pytest.FixtureRequest, world: World, reach: Reach) -> Registry:
        """The sample, cached or not yet."""
        serving_sample(world.origin)
        if request.param == "warm":
            await _keep_all(world)
        return reach(world.cached).remote


class TestTheOthers(RegistryContract):
    """The cache itself, and what stands before it."""

    @pytest.fixture(params=["cached", "unified", "guarded"])
    def registry(self, request: pytest.FixtureRequest, world: World) -> Registry:
        """The sample, through each of them."""
        serving_sample(world.origin)
        if request.param == "cached":
            return world.cached
        if request.param == "unified":
            return Unified({REPOSITORY.registry: world.cached})
        return Guarded(world.cached, ["library/*"])


async def _keep_all(world: World) -> None:
    for digest, data in SAMPLE.blobs.items():
        async with aclosing(await world.cached.blob(REPOSITORY, digest)) as blob:
            assert await read(blob) == data
    while len(world.fills):
        await asyncio.sleep(0)


async def test_one_transfer_for_all_who_read(world: World, reach: Reach) -> None:
    """Of two workers: each reader gets the bytes as they come, and the origin was asked once."""
    serving_sample(world.origin)
    workers = [reach(world.cached).remote for _ in range(2)]

    async def pull(worker: Remote) -> tuple[bytes, Result]:
        async with aclosing(await worker.blob(REPOSITORY, LARGE)) as blob:
            assert isinstance(blob, GrowingFile | WholeFile)
            return await _by_file(blob), blob.outcome.result

    pulled = await asyncio.gather(*(pull(workers[number % 2]) for number in range(20)))
    assert {data for data, _ in pulled} == {DATA}
    assert [result for _, result in pulled].count(Result.MISS) == 1
    assert world.asked().count("blob") == 1


async def _by_file(blob: FileBlob) -> bytes:
    data = b""
    while len(data) < len(DATA):
        if (ready := blob.ready(len(data))) <= len(data):
            await blob.wait(len(data))
            continue
        data += os.pread(blob.fd, ready - len(data), len(data))
    return data


async def test_bytes_go_past_the_core(world: World, reach: Reach, serve: Serve) -> None:
    """From the file to the client, of a download that has just begun and of what is cached: none come by the line."""
    serving_sample(world.origin)
    remote, _, asked = reach(world.cached)
    served = await serve(cast("MemoryRegistry", remote))
    for _ in range(2):
        answer = await served.ask(f"/v2/library/sample/blobs/{LARGE}?ns=docker.io")
        assert answer.body == DATA
    assert "wait" in asked
    assert "chunk" not in asked


async def test_the_first_bytes_come_with_the_answer(
    world: World, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a download: nobody asks for them, where they are a moment behind the headers."""
    monkeypatch.setattr("mirrorproxy.workers.hub._FIRST", 60.0)
    digest = Digest.of(DATA)
    growth = world.origin.put_growing(REPOSITORY, DATA, available=20_000, digest=digest)
    remote, _, asked = reach(world.cached)
    first, second = [cast("FileBlob", await remote.blob(REPOSITORY, digest)) for _ in range(2)]
    for blob in (first, second):
        assert 0 < blob.ready(0) <= 20_000
        assert os.pread(blob.fd, 100, 0) == DATA[:100]
    assert asked == ["blob", "blob"]
    growth.finish()
    assert await _by_file(first) == DATA
    await first.aclose()
    await second.aclose()


async def test_headers_do_not_wait_for_the_first_bytes(world: World, reach: Reach) -> None:
    """Where these are not a moment behind."""
    digest = Digest.of(DATA)
    growth = world.origin.put_growing(REPOSITORY, DATA, available=0, digest=digest)
    remote, _, asked = reach(world.cached)
    async with aclosing(await remote.blob(REPOSITORY, digest)) as blob:
        assert asked == ["blob"]
        growth.finish()
        assert await _by_file(cast("FileBlob", blob)) == DATA
    assert "wait" in asked


async def test_a_file_is_kept_for_a_moment(world: World, reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks next gets the same file, and the core is not asked; after a second it is, and when all is forgotten."""
    serving_sample(world.origin)
    await _keep_all(world)
    remote, hub, _ = reach(world.cached)
    world.uses.clear()
    for _ in range(3):
        async with aclosing(await remote.blob(REPOSITORY, LARGE)) as blob:
            assert isinstance(blob, WholeFile)
            assert blob.outcome.result is Result.HIT
    assert len(world.uses) == 1
    assert len(hub) == 1
    assert world.blobs.is_read(LARGE)  # and so is not evicted
    remote.let_go()
    assert len(hub) == 1
    remote.let_go(all_of_them=True)
    while len(hub):
        await asyncio.sleep(0)
    assert not world.blobs.is_read(LARGE)
    monkeypatch.setattr("mirrorproxy.workers.remote._FOR", 0.0)
    for _ in range(3):
        async with aclosing(await remote.blob(REPOSITORY, LARGE)):
            pass
    assert len(world.uses) == 4


async def test_a_reader_of_what_is_removed_finishes(world: World, reach: Reach) -> None:
    """The file is open here, whatever becomes of its name."""
    serving_sample(world.origin)
    await _keep_all(world)
    remote, *_ = reach(world.cached)
    async with aclosing(await remote.blob(REPOSITORY, LARGE)) as blob:
        remote.let_go(all_of_them=True)
        await world.blobs.remove(LARGE)
        assert await _by_file(cast("FileBlob", blob)) == DATA


async def test_a_file_that_cannot_be_read_comes_by_the_line(world: World, reach: Reach) -> None:
    """What became shorter than it was is fetched from the origin by the core."""
    serving_sample(world.origin)
    await _keep_all(world)
    remote, *_ = reach(world.cached)
    async with aclosing(await remote.blob(REPOSITORY, LARGE)) as blob:
        path = world.blobs.path(LARGE)
        path.chmod(0o600)
        os.truncate(path, 1000)
        assert await read(blob, 500) == DATA[500:]


async def test_nobody_waits_any_more(world: World, reach: Reach) -> None:
    """A reader that leaves takes its wish with it: the core does not fetch for it."""
    serving_sample(world.origin)
    gate = world.origin.hold("blob")
    remote, hub, _ = reach(world.cached)
    opening = beside(remote.blob(REPOSITORY, LARGE))
    while world.asked() != ["blob"]:
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    gate.set()
    while len(hub):
        await asyncio.sleep(0)
    async with aclosing(await remote.blob(REPOSITORY, LARGE)) as blob:
        assert await read(blob) == DATA


async def test_errors_are_those_of_the_registry(reach: Reach) -> None:
    """Before the first byte and in the middle."""
    registry = MemoryRegistry("stream")
    serving_sample(registry)
    remote, *_ = reach(registry)
    with pytest.raises(BlobUnknown):
        await remote.blob(REPOSITORY, Digest.of(b"absent"))
    registry.fail("stat", ServerFailed("out of order", retry_after=3.0))
    with pytest.raises(ServerFailed) as failed:
        await remote.stat(REPOSITORY, LARGE)
    assert failed.value.retry_after == 3.0


async def test_a_download_that_goes_wrong_fails_all_who_read_it(world: World, reach: Reach) -> None:
    """Each of them gets the error, in the middle of what it reads; and no wrong end of a blob."""
    serving_sample(world.origin)
    digest = Digest.of(b"not what comes")
    growth = world.origin.put_growing(REPOSITORY, os.urandom(300_000), available=200_000, digest=digest)
    remote, hub, _ = reach(world.cached)
    blobs = [cast("FileBlob", await remote.blob(REPOSITORY, digest)) for _ in range(3)]
    for blob in blobs:
        await blob.wait(0)
        assert 0 < blob.ready(0) <= 200_000

    async def read_on(blob: FileBlob) -> None:
        while True:
            await blob.wait(blob.ready(0))

    reading = [beside(read_on(blob)) for blob in blobs]
    growth.finish()
    for each in reading:
        with pytest.raises(DigestMismatch):
            await each
    for blob in blobs:
        assert blob.ready(0) < 300_000
        await blob.aclose()
    while len(hub):
        await asyncio.sleep(0)


async def test_the_pages_say_when_the_core_does_not_answer(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker alone is no service."""
    remote, hub, _ = reach(MemoryRegistry("file"))
    assert (await remote.live())[0] == 200
    assert (await remote.ready(verbose=False))[0] == 503  # it is starting
    assert b"mirrorproxy_" in (await remote.metrics(""))[2]
    assert await remote.catalog("docker.io", 3, None) == (["docker.io/3/None"], False)
    monkeypatch.setattr("mirrorproxy.workers.remote._ANSWER_WITHIN", 0.05)
    monkeypatch.setattr(hub, "_calls", {"live": asyncio.Event().wait})
    assert (await remote.live())[0] == 503
