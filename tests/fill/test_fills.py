"""Fills on a scripted source: what the readers get, and what the source was asked."""

import asyncio
import json
import os
import random
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from mirrorproxy.errors import (
    BlobUnknown,
    CacheFailed,
    DigestMismatch,
    MirrorproxyError,
    Overloaded,
    ServerFailed,
    TimedOut,
    Unreachable,
)
from mirrorproxy.fill import HELD, Fills, Terms, patience
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, repository
from mirrorproxy.registry import Blob, Result
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.ingest import Partials
from tests.fill.conftest import Unlimited
from tests.fill.source import Answer, ScriptedSource

ALPINE = repository("docker.io", "alpine")
MIB = 1 << 20
DATA = random.Random(7).randbytes(3 * MIB + 12345)


async def read(blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    """All that `blob` gives."""
    async with aclosing(blob):
        return b"".join([chunk async for chunk in blob.chunks(start, end)])


async def read_until_it_breaks(blob: Blob) -> bytes:
    """What `blob` gives before it says that the digest is wrong."""
    got = b""

    async def collect() -> None:
        nonlocal got
        async with aclosing(blob):
            async for chunk in blob.chunks(0, None):
                got += chunk

    with pytest.raises(DigestMismatch):
        await collect()
    return got


async def pull(fills: Fills, source: ScriptedSource, size: int | None = None, digest: Digest | None = None) -> bytes:
    """One client that wants the whole."""
    return await read(await fills.join(source, ALPINE, digest or source.digest, size))


async def test_a_cold_blob_comes_whole_and_is_committed(fills: Fills, blobs: BlobStore) -> None:
    """One request from byte 0; afterwards the store has it."""
    source = ScriptedSource(DATA)
    assert await pull(fills, source, len(DATA)) == DATA
    await fills.drain(2)
    stored = await blobs.open(source.digest, len(DATA))
    assert stored is not None
    stored.close()
    assert source.asked == [0]
    assert source.closed == 1


async def test_fifty_clients_cost_one_request(fills: Fills) -> None:
    """All get all bytes from one transfer, wherever they begin and whenever they come."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate)])
    first = await fills.join(source, ALPINE, source.digest, len(DATA))
    others = [await fills.join(source, ALPINE, source.digest, len(DATA)) for _ in range(49)]
    assert {blob.outcome.result for blob in others} == {Result.COALESCED}
    gate.set()
    starts = [number * 50_000 for number in range(49)]
    bodies = await asyncio.gather(read(first), *(read(blob, at) for blob, at in zip(others, starts, strict=True)))
    assert bodies == [DATA, *(DATA[at:] for at in starts)]
    assert source.asked == [0]


async def test_bytes_come_before_the_download_is_over(fills: Fills) -> None:
    """A reader gets what is there while the rest is on its way, and not the held end."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate)], chunk=2 * MIB)
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    async with aclosing(blob):
        chunks = blob.chunks(0, None)
        got = b""
        while len(got) < 2 * MIB:
            got += await asyncio.wait_for(anext(chunks), 2)
        assert got == DATA[: 2 * MIB]
        gate.set()
        assert got + b"".join([chunk async for chunk in chunks]) == DATA


@pytest.mark.parametrize("size", [None, len(DATA)])
async def test_the_end_is_held_until_the_digest_is_right(fills: Fills, size: int | None) -> None:
    """Wrong bytes: the reader's transfer breaks before the last 64 KiB, and nothing is kept."""
    wrong = DATA[:-1] + b"?"
    source = ScriptedSource(DATA, [Answer(body=wrong)])
    got = await read_until_it_breaks(await fills.join(source, ALPINE, source.digest, size))
    assert got == wrong[: len(got)]
    assert len(got) <= len(DATA) - HELD
    await fills.drain(2)
    assert len(source.blamed) == 1
    assert await pull(fills, source, size) == DATA, "the next pull is right"
    assert source.asked == [0, 0]


async def test_a_small_wrong_blob_is_fetched_again_unseen(fills: Fills, metrics: Metrics) -> None:
    """While nobody has seen a byte, another try mends it."""
    source = ScriptedSource(b"right" * 1000, [Answer(body=b"wrong" * 1000)])
    assert await pull(fills, source, 5000) == b"right" * 1000
    assert source.asked == [0, 0]
    assert metrics.collectors.get_sample_value("mirrorproxy_digest_mismatches_total", {"registry": "docker.io"}) == 1


async def test_an_upstream_that_always_lies_fails_the_pull(fills: Fills, blobs: BlobStore) -> None:
    """A few tries, then an error before any byte; nothing is kept."""
    source = ScriptedSource(b"right" * 1000, otherwise=lambda: Answer(body=b"wrong" * 1000))
    with pytest.raises(DigestMismatch):
        await pull(fills, source, 5000)
    assert len(source.asked) <= 3
    assert await blobs.open(source.digest) is None


@pytest.mark.parametrize("cuts", [[1], [MIB], [MIB, MIB, 1], [len(DATA) - 1]])
async def test_a_broken_transfer_goes_on_where_it_stopped(fills: Fills, metrics: Metrics, cuts: list[int]) -> None:
    """The client sees one whole; each request begins at the first missing byte."""
    source = ScriptedSource(DATA, [Answer(cut=cut) for cut in cuts])
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == [0, *(sum(cuts[: number + 1]) for number in range(len(cuts)))]
    resumes = metrics.collectors.get_sample_value("mirrorproxy_fill_resumes_total", {"registry": "docker.io"})
    assert resumes == len(cuts)


async def test_errors_between_two_transfers_are_waited_out(fills: Fills) -> None:
    """Once bytes have come, 5xx and refused connections are a pause, not an end."""
    trouble = [Answer(error=error) for error in (ServerFailed("503"), Unreachable("refused"), TimedOut("late"))]
    source = ScriptedSource(DATA, [Answer(cut=MIB), *trouble])
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == [0, MIB, MIB, MIB, MIB]


async def test_a_no_in_mid_download_is_waited_out(fills: Fills) -> None:
    """A storage that was purged, or one of several that lags behind, has the rest in a moment."""
    trouble = [Answer(error=BlobUnknown("no such blob"))] * 3
    source = ScriptedSource(DATA, [Answer(cut=MIB), *trouble])
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == [0, MIB, MIB, MIB, MIB]


async def test_a_no_that_lasts_is_believed(
    partials: Partials, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob was deleted upstream: long before the budget is over. The next client hears it at once."""
    monkeypatch.setattr(patience, "_DENIED_FOR", 0.5)
    fills = Fills(partials, Unlimited(), metrics, Terms(600, 8))
    source = ScriptedSource(DATA, [Answer(cut=MIB)], otherwise=lambda: Answer(error=BlobUnknown("deleted")))
    async with asyncio.timeout(5):
        with pytest.raises(BlobUnknown):
            await pull(fills, source, len(DATA))
    assert len(source.asked) >= 4
    await fills.drain(2)
    asked = len(source.asked)
    with pytest.raises(BlobUnknown):
        await fills.join(source, ALPINE, source.digest, len(DATA))
    assert len(source.asked) == asked + 1
    await fills.aclose()


async def test_no_new_byte_for_the_budget_ends_it(partials: Partials, metrics: Metrics) -> None:
    """The budget is time without progress; what came is kept for the next pull."""
    fills = Fills(partials, Unlimited(), metrics, Terms(0.3, 8))
    source = ScriptedSource(DATA, [Answer(cut=MIB)], otherwise=lambda: Answer(error=Unreachable("gone")))
    with pytest.raises(TimedOut):
        await pull(fills, source, len(DATA))
    await fills.drain(2)
    source.otherwise = Answer
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked[-1] == MIB
    await fills.aclose()


async def test_an_honest_200_to_a_range_is_compared_and_used(fills: Fills) -> None:
    """The whole again instead of a part: read from the start, the part that is here compared, the rest taken."""
    source = ScriptedSource(DATA, [Answer(cut=MIB), Answer(whole=True)])
    assert await pull(fills, source, len(DATA)) == DATA


async def test_a_200_with_other_bytes_is_never_appended(fills: Fills) -> None:
    """The answer that differs is not believed; the next one is asked from the same byte."""
    other = bytes(len(DATA))
    source = ScriptedSource(DATA, [Answer(cut=MIB), Answer(whole=True, body=other)])
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == [0, MIB, MIB]
    assert len(source.blamed) == 1


@pytest.mark.parametrize("total", [len(DATA) + 1, len(DATA) - 1])
async def test_another_total_on_resume_is_not_believed(fills: Fills, total: int) -> None:
    """The manifest's size stands; the liar is blamed."""
    source = ScriptedSource(DATA, [Answer(cut=MIB), Answer(total=total)])
    assert await pull(fills, source, len(DATA)) == DATA
    assert len(source.blamed) == 1


async def test_more_bytes_than_the_manifest_says_are_refused(fills: Fills) -> None:
    """Without a Content-Length: what is longer than the manifest says is never passed on as complete."""
    source = ScriptedSource(DATA, otherwise=lambda: Answer(body=DATA + b"more", total=None))
    with pytest.raises(TimedOut, match="sends more than"):
        await asyncio.wait_for(pull(fills, source, len(DATA)), 10)


async def test_a_body_without_a_length_is_complete_when_its_digest_is_right(fills: Fills) -> None:
    """Neither upstream nor a manifest said the size: it is known at the end."""
    source = ScriptedSource(DATA, [Answer(total=None)])
    blob = await fills.join(source, ALPINE, source.digest, None)
    assert blob.size is None
    assert await read(blob) == DATA


async def test_an_upstreams_no_comes_before_any_byte(fills: Fills) -> None:
    """All who wait for headers get the error, each its own; nothing is tried again."""
    held = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(error=BlobUnknown("no such blob"), held=held)])
    waiting = [asyncio.gather(fills.join(source, ALPINE, source.digest, None)) for _ in range(5)]
    await asyncio.sleep(0.05)
    held.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [BlobUnknown] * 5
    assert len({id(error) for error in errors}) == 5
    assert source.asked == [0]
    assert len(fills) == 0


async def test_a_reader_that_leaves_takes_nothing_along(fills: Fills, blobs: BlobStore) -> None:
    """199 of 200 leave in mid-flight, then the last too: the download goes on to its end."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate)])
    readers = [await fills.join(source, ALPINE, source.digest, len(DATA)) for _ in range(200)]
    for blob in readers[1:]:
        await blob.aclose()
    staying = asyncio.gather(read(readers[0]))
    gate.set()
    assert (await staying)[0] == DATA

    other = ScriptedSource(DATA + b"2", [Answer(gate=asyncio.Event())])
    gate = other.script[0].gate or gate
    alone = await fills.join(other, ALPINE, other.digest, None)
    await alone.aclose()
    gate.set()
    await fills.drain(5)
    stored = await blobs.open(other.digest)
    assert stored is not None
    stored.close()


async def test_a_cancelled_reader_takes_nothing_along(fills: Fills) -> None:
    """A request that is cancelled while it waits for bytes only leaves."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate)])
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    leaving = asyncio.get_running_loop().create_task(pull(fills, source, len(DATA)))
    await asyncio.sleep(0.05)
    leaving.cancel()
    gate.set()
    assert await read(blob) == DATA


async def test_a_stop_keeps_what_came(partials: Partials, metrics: Metrics) -> None:
    """After a restart the source is asked for the rest alone, and the part that was here is hashed again."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate, cut=MIB)])
    fills = Fills(partials, Unlimited(), metrics, Terms(2, 8))
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    async with aclosing(blob):
        await anext(blob.chunks(0, None))
        await fills.aclose()
        with pytest.raises(Overloaded):
            await read(blob, 64 << 10)
    again = Fills(partials, Unlimited(), metrics, Terms(2, 8))
    assert await pull(again, source, len(DATA)) == DATA
    assert source.asked == [0, 64 << 10]
    await again.aclose()


async def test_a_crash_between_the_last_byte_and_the_commit_asks_nothing(
    partials: Partials, fills: Fills, blobs: BlobStore
) -> None:
    """All bytes are here: checked and committed without a request."""
    source = ScriptedSource(DATA)
    ingest = await partials.open(source.digest)
    await ingest.write(0, DATA)
    ingest.total = len(DATA)
    await ingest.settle()
    await ingest.close()
    ingest.release()
    assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == []


async def test_a_range_that_ends_early_does_not_wait_for_the_digest(fills: Fills) -> None:
    """Bytes before the held end go as soon as they are here."""
    gate = asyncio.Event()
    source = ScriptedSource(DATA, [Answer(gate=gate)])
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    assert await asyncio.wait_for(read(blob, 100, 5000), 2) == DATA[100:5000]
    gate.set()


async def test_waiting_flights_fly_in_turn(partials: Partials, metrics: Metrics) -> None:
    """More blobs than may be fetched at a time: all come, never more than the limit at once."""
    fills = Fills(partials, Unlimited(), metrics, Terms(2, 2))
    sources = [ScriptedSource(DATA[number:]) for number in range(6)]
    bodies = await asyncio.gather(*(pull(fills, source, len(source.blob_bytes)) for source in sources))
    assert bodies == [source.blob_bytes for source in sources]
    await fills.aclose()


async def test_too_many_waiting_flights_are_refused_with_a_word(partials: Partials, metrics: Metrics) -> None:
    """Nothing here grows without a limit: 503 with Retry-After is the answer beyond it."""
    fills = Fills(partials, Unlimited(), metrics, Terms(2, 1, max_waiting=16))
    held = asyncio.Event()
    waiting = []
    for number in range(17):
        source = ScriptedSource(DATA[number:], [Answer(held=held)])
        waiting.append(asyncio.gather(fills.join(source, ALPINE, source.digest, None), return_exceptions=True))
        await asyncio.sleep(0)
    refused = ScriptedSource(b"one more")
    with pytest.raises(Overloaded):
        await fills.join(refused, ALPINE, refused.digest, None)
    await fills.aclose()
    for outcome in await asyncio.gather(*waiting):
        assert isinstance(outcome[0], MirrorproxyError)


async def test_what_is_fetched_ahead_shuts_no_client_out(partials: Partials, metrics: Metrics) -> None:
    """Images of hundreds of layers may be read ahead at once: half of the places are for what clients ask for."""
    fills = Fills(partials, Unlimited(), metrics, Terms(2, 1, max_waiting=15))
    held = asyncio.Event()

    async def stored(_: int) -> None:
        """Nobody wants to know."""

    for number in range(20):
        source = ScriptedSource(DATA[number:], [Answer(held=held)])
        fills.fetch_ahead(source, ALPINE, source.digest, len(source.blob_bytes), stored)
    assert len(fills) == 8
    assert metrics.collectors.get_sample_value("mirrorproxy_fills_ahead_total", {"registry": "docker.io"}) == 8
    wanted = ScriptedSource(b"one more")
    reader = await fills.join(wanted, ALPINE, wanted.digest, 8)
    held.set()
    assert await read(reader) == b"one more"
    await fills.aclose()


class Full:
    """A disk without room."""

    async def reserve(self, size: int) -> Unlimited:
        """There is none."""
        raise CacheFailed("the disk is full")

    def resume(self, size: int) -> Unlimited:
        """What is there is there."""
        return Unlimited()


async def test_without_room_the_bytes_pass_through(partials: Partials, metrics: Metrics, blobs: BlobStore) -> None:
    """A full disk never fails a pull: each reader has its own transfer, checked, and nothing is kept."""
    fills = Fills(partials, Full(), metrics, Terms(2, 2))
    source = ScriptedSource(DATA, [Answer(cut=MIB)])
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    assert blob.outcome.result is Result.BYPASS
    assert await read(blob) == DATA
    assert source.asked == [0, MIB]
    assert await blobs.open(source.digest) is None
    await fills.aclose()


async def test_wrong_bytes_that_pass_through_never_come_whole(partials: Partials, metrics: Metrics) -> None:
    """The end is held there too."""
    fills = Fills(partials, Full(), metrics, Terms(2, 2))
    source = ScriptedSource(DATA, [Answer(body=b"?" + DATA[1:])])
    got = await read_until_it_breaks(await fills.join(source, ALPINE, source.digest, None))
    assert len(got) == len(DATA) - HELD
    await fills.aclose()


async def test_a_disk_that_fails_in_mid_flight_fails_no_reader(
    fills: Fills, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file comes from there, the rest from upstream, and the digest of the whole is checked."""
    real, written = os.pwrite, 0

    def failing(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2 * MIB:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    source = ScriptedSource(DATA)
    readers = [await fills.join(source, ALPINE, source.digest, len(DATA)) for _ in range(3)]
    assert await asyncio.gather(*(read(blob) for blob in readers)) == [DATA] * 3
    assert len(source.asked) == 4
    assert all(0 < start <= 2 * MIB for start in source.asked[1:]), "the rest alone is asked for again"
    assert await blobs.open(source.digest) is None


@pytest.mark.parametrize("trouble", ["EIO", "short"])
async def test_a_part_that_cannot_be_read_fails_no_reader(
    fills: Fills, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The rest comes from upstream, whether the disk fails or the file was cut off behind our back."""
    real = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if offset < MIB:
            return real(fd, min(size, MIB - offset), offset)
        if trouble == "EIO":
            raise OSError(5, "Input/output error")
        return b""

    monkeypatch.setattr(os, "pread", failing)
    source = ScriptedSource(DATA)
    async with asyncio.timeout(5):
        assert await pull(fills, source, len(DATA)) == DATA
    assert source.asked == [0, MIB]


async def test_a_fault_of_the_program_leaves_no_writer_behind(fills: Fills, tmp_path: Path) -> None:
    """What nobody thought of ends one download like a stop: its thread and its checkpoints end, what came is kept."""

    class Fault(Exception):
        """Nobody thought of it."""

    source = ScriptedSource(DATA, [Answer(cut=MIB)], otherwise=lambda: Answer(error=Fault()))
    with pytest.raises(Overloaded):
        await pull(fills, source, len(DATA))
    await fills.drain(2)
    assert not [task for task in asyncio.all_tasks() if "checkpoints" in task.get_name()]
    assert not [thread for thread in threading.enumerate() if thread.name == f"ingest {source.digest.hex[:12]}"]
    state = tmp_path / "cache" / "partial" / f"sha256-{source.digest.hex}" / "state"
    assert json.loads(state.read_bytes())["spans"] == [[0, MIB]]


async def test_partial_files_are_gone_after_the_commit(fills: Fills, tmp_path: Path) -> None:
    """Nothing is left of a download but the blob."""
    source = ScriptedSource(DATA)
    await pull(fills, source)
    await fills.drain(2)
    assert [path.name for path in (tmp_path / "cache" / "partial").iterdir()] == []
