"""Content in the making: written, hashed, kept over a restart, committed, or thrown away."""

import asyncio
import json
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import CacheFailed, DigestMismatch
from mirrorproxy.names import Digest
from mirrorproxy.spans import Span
from mirrorproxy.store import ingest as ingest_module
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.ingest import Ingest, Partials
from mirrorproxy.tasks import Tasks

DATA = random.Random(11).randbytes(1_000_003)
DIGEST = Digest.of(DATA)


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    """Committed content in a temporary folder."""
    store = BlobStore(tmp_path)
    await asyncio.to_thread(store.prepare)
    yield store
    await store.aclose()


@pytest.fixture
def partials(blobs: BlobStore, tmp_path: Path) -> Partials:
    """Partial content beside it."""
    return Partials(tmp_path / "partial", blobs)


async def finish(ingest: Ingest) -> None:
    """Check and commit."""
    ingest.total = len(DATA)
    await ingest.verify()
    await ingest.commit()
    ingest.release()


def folder(tmp_path: Path) -> Path:
    """Where the partial content is."""
    return tmp_path / "partial" / f"sha256-{DIGEST.hex}"


async def test_what_is_written_in_order_is_hashed_and_committed(
    partials: Partials, blobs: BlobStore, tmp_path: Path
) -> None:
    """Afterwards the blob is there, read-only, and nothing else is left."""
    ingest = await partials.open(DIGEST)
    for offset in range(0, len(DATA), 70_000):
        await ingest.write(offset, DATA[offset : offset + 70_000])
    await finish(ingest)
    assert blobs.path(DIGEST).read_bytes() == DATA
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o444
    assert not folder(tmp_path).exists()


@pytest.mark.parametrize("seed", range(4))
async def test_the_order_of_writing_does_not_matter(partials: Partials, blobs: BlobStore, seed: int) -> None:
    """Out of order, overlapping: the hash follows the front all the same."""
    ingest = await partials.open(DIGEST)
    offsets = list(range(0, len(DATA), 50_000))
    random.Random(seed).shuffle(offsets)
    for offset in offsets:
        await ingest.write(offset, DATA[offset : offset + 60_000])
    await finish(ingest)
    assert blobs.path(DIGEST).read_bytes() == DATA


async def test_without_a_thread_nothing_is_kept(partials: Partials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left it is as if the disk failed, at once: clients are passed through."""
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name.startswith("ingest"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    ingest = await partials.open(DIGEST)
    with pytest.raises(CacheFailed, match="can't start new thread"):
        await ingest.verify()
    with pytest.raises(CacheFailed):
        await ingest.write(0, DATA)
    assert ingest.hash_so_far()[1] == 0
    await ingest.discard()
    ingest.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ingest.fd)


async def test_readers_see_bytes_as_they_come(partials: Partials) -> None:
    """What `spans` says is in the file."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA[:100_000])
    await ingest.write(500_000, DATA[500_000:600_000])
    await ingest.settle()
    assert list(ingest.spans) == [Span(0, 100_000), Span(500_000, 600_000)]
    assert os.pread(ingest.fd, 100_000, 500_000) == DATA[500_000:600_000]
    await ingest.discard()
    ingest.release()


async def test_closed_content_goes_on_where_it_was(partials: Partials, blobs: BlobStore) -> None:
    """The next one finds spans and total, and hashes what is there from the file."""
    ingest = await partials.open(DIGEST)
    ingest.total = len(DATA)
    await ingest.write(0, DATA[:400_000])
    await ingest.settle()
    await ingest.close()
    ingest.release()
    again = await partials.open(DIGEST)
    assert (list(again.spans), again.total) == ([Span(0, 400_000)], len(DATA))
    await again.write(400_000, DATA[400_000:])
    await finish(again)
    assert blobs.path(DIGEST).read_bytes() == DATA


async def test_what_was_not_checkpointed_is_not_believed(partials: Partials, tmp_path: Path) -> None:
    """A crash after more was written than the state says: the file's length says nothing, and is cut."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA[:300_000])
    await ingest.settle()
    await ingest.checkpoint()
    await ingest.write(300_000, DATA[300_000:600_000])
    await ingest.settle()
    state = (folder(tmp_path) / "state").read_bytes()
    await ingest.close()
    ingest.release()
    (folder(tmp_path) / "state").write_bytes(state)
    again = await partials.open(DIGEST)
    assert list(again.spans) == [Span(0, 300_000)]
    assert (folder(tmp_path) / "data").stat().st_size == 300_000
    await again.discard()
    again.release()


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"null",
        b"{",
        b'{"total": 5, "spans": [[0, 9]]}',
        b'{"total": null, "spans": [[0, 99999999]]}',
        b'{"total": null, "spans": [[5, 1]]}',
        b'{"total": null, "spans": [[-5, 1]]}',
        b'{"total": "x", "spans": []}',
        b'{"total": -5, "spans": []}',
        b'{"total": null, "spans": 7}',
        b"\xff\xfe",
    ],
)
async def test_a_state_that_makes_no_sense_begins_at_nothing(partials: Partials, tmp_path: Path, state: bytes) -> None:
    """Damaged, forged or of another time: no byte of it is believed."""
    folder(tmp_path).mkdir()
    (folder(tmp_path) / "data").write_bytes(DATA[:1000])
    (folder(tmp_path) / "state").write_bytes(state)
    ingest = await partials.open(DIGEST)
    assert (list(ingest.spans), ingest.total) == ([], None)
    await ingest.discard()
    ingest.release()


async def test_wrong_bytes_are_found(partials: Partials, blobs: BlobStore) -> None:
    """One bit is enough, and nothing is committed."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA[:-1] + bytes([DATA[-1] ^ 1]))
    ingest.total = len(DATA)
    with pytest.raises(DigestMismatch):
        await ingest.verify()
    await ingest.discard()
    ingest.release()
    assert not blobs.path(DIGEST).exists()


@pytest.mark.parametrize("first", [0, 200])
async def test_what_is_here_is_not_written_over(partials: Partials, blobs: BlobStore, first: int) -> None:
    """Two connections may bring the same bytes, and one of them may lie: what is committed is what was hashed."""
    ingest = await partials.open(DIGEST)
    await ingest.write(first, DATA[first:1000])
    await ingest.write(0, DATA[:first] + bytes(500 - first))
    await ingest.write(900, bytes(100) + DATA[1000:])
    await finish(ingest)
    assert blobs.path(DIGEST).read_bytes() == DATA


async def test_a_restart_forgets_everything(partials: Partials, blobs: BlobStore) -> None:
    """Wrong bytes, then the right ones, in the same file."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, bytes(len(DATA)))
    await ingest.restart()
    assert list(ingest.spans) == []
    await ingest.write(0, DATA)
    await finish(ingest)
    assert blobs.path(DIGEST).read_bytes() == DATA


async def test_a_failing_disk_is_told_once_and_for_all(partials: Partials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call after it raises, none hangs."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA[:1000])
    await ingest.settle()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    await ingest.write(1000, DATA[1000:])
    ingest.total = len(DATA)
    for call in (ingest.settle, ingest.verify, ingest.restart):
        with pytest.raises(CacheFailed):
            await asyncio.wait_for(call(), 2)
    with pytest.raises(CacheFailed):
        await ingest.write(0, b"x")
    hasher, hashed = ingest.hash_so_far()
    assert hashed == 1000
    hasher.update(DATA[1000:])
    assert hasher.hexdigest() == DIGEST.hex
    await ingest.close()
    ingest.release()


async def test_the_queue_is_bounded(partials: Partials, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk holds the writer back: no more than some MiB wait in memory."""
    import threading

    gate, real = threading.Event(), os.pwrite

    def slow(fd: int, data: bytes, offset: int) -> int:
        gate.wait(5)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    ingest = await partials.open(DIGEST)
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(64):
            await ingest.write(number << 20, bytes(1 << 20))
            written += 1

    writing = asyncio.get_running_loop().create_task(write())
    await asyncio.sleep(0.1)
    assert written <= 10
    gate.set()
    await writing
    await ingest.settle()
    await ingest.discard()
    ingest.release()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 50_000), max_size=4), seed=st.integers(0, 1000))
def test_any_number_of_restarts_of_the_process_ends_right(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], seed: int
) -> None:
    """However often it is closed, and wherever: the content is whole in the end, or was never committed."""
    data = random.Random(seed).randbytes(50_000)
    digest = Digest.of(data)

    async def run(directory: Path) -> None:
        blobs = BlobStore(directory)
        await asyncio.to_thread(blobs.prepare)
        partials = Partials(directory / "partial", blobs)
        for stop in [*stops, len(data)]:
            ingest = await partials.open(digest)
            start = ingest.spans.front
            if stop > start:
                await ingest.write(start, data[start:stop])
                await ingest.settle()
            ingest.total = len(data)
            if ingest.spans.front == len(data):
                await ingest.verify()
                await ingest.commit()
                ingest.release()
                break
            await ingest.close()
            ingest.release()
        assert blobs.path(digest).read_bytes() == data
        await blobs.aclose()

    asyncio.run(run(tmp_path_factory.mktemp("cache")))


async def test_the_state_is_what_it_says(partials: Partials, tmp_path: Path) -> None:
    """The format on disk, which other versions have to read."""
    ingest = await partials.open(DIGEST)
    ingest.total = len(DATA)
    await ingest.write(0, DATA[:10])
    await ingest.write(20, DATA[20:30])
    await ingest.settle()
    await ingest.close()
    ingest.release()
    assert json.loads((folder(tmp_path) / "state").read_bytes()) == {"total": len(DATA), "spans": [[0, 10], [20, 30]]}


async def test_what_is_no_part_hides_none_that_is(partials: Partials, tmp_path: Path) -> None:
    """A file of a part's name, a link to itself, what a crash left without bytes: the others are found all the same."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA)
    await ingest.close()
    ingest.release()
    stray, loop, empty = (tmp_path / "partial" / f"sha256-{name * 64}" for name in "abc")
    stray.write_bytes(b"x")
    loop.mkdir()
    (loop / "data").symlink_to(loop / "data")
    empty.mkdir()
    (empty / "state").write_bytes(b"{}")
    parts = await asyncio.to_thread(lambda: list(partials.scan()))
    found = {part.digest.hex: part.blocks for part in parts}
    assert found.keys() == {DIGEST.hex, "c" * 64}, "what is left without bytes goes when it is old, like any other"
    assert found["c" * 64] == 0


async def test_who_is_cancelled_while_it_opens_leaves_no_descriptor(partials: Partials) -> None:
    """It is opened in a thread, which does not end with whoever waits for it."""
    tasks, before = Tasks(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        opening = tasks.start(partials.open(DIGEST), name="open")
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with asyncio.timeout(2):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


async def test_a_descriptor_is_not_closed_under_its_writer(partials: Partials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is cancelled as it ends does not wait for the disk: its number might be another file's by then."""
    started, go_on = threading.Event(), threading.Event()
    write, written = os.pwrite, []

    def slow(fd: int, data: bytes, offset: int) -> int:
        started.set()
        go_on.wait(5)
        written.append(os.fstat(fd).st_ino == inode)
        return write(fd, data, offset)

    ingest = await partials.open(DIGEST)
    inode = os.fstat(ingest.fd).st_ino
    monkeypatch.setattr(os, "pwrite", slow)
    await ingest.write(0, DATA[:1000])
    await asyncio.to_thread(started.wait, 5)
    ending = Tasks().start(ingest.close(), name="close")
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending])
    ingest.release()
    go_on.set()
    await asyncio.to_thread(ingest._thread.join)
    assert written == [True]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ingest.fd)


async def test_a_checkpoint_that_comes_late_leaves_nothing(
    partials: Partials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose task was cancelled still runs in its thread while the content is committed."""
    ingest = await partials.open(DIGEST)
    await ingest.write(0, DATA)
    await ingest.settle()
    started, go_on = threading.Event(), threading.Event()
    rmtree, whole = shutil.rmtree, ingest_module.write_whole  # type: ignore[attr-defined]  # as it is used there

    def slow(*args: Any, **kwargs: Any) -> None:
        started.set()
        go_on.wait(0.3)
        whole(*args, **kwargs)

    def racing(path: Path, **kwargs: Any) -> None:
        names = list(path.iterdir())
        go_on.set()
        threading.Event().wait(0.1)  # the checkpoint is written between the look at the folder and its end
        for name in names:
            name.unlink(missing_ok=True)
        rmtree(path, **kwargs) if not list(path.iterdir()) else None

    monkeypatch.setattr(ingest_module, "write_whole", slow)
    saving = Tasks().start(ingest.checkpoint(), name="checkpoint")
    await asyncio.to_thread(started.wait, 5)
    saving.cancel()
    monkeypatch.setattr(shutil, "rmtree", racing)
    await finish(ingest)
    assert not folder(tmp_path).exists()
