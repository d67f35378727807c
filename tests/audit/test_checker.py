"""Hashing content: what is found, what a second read is for, and what it leaves as it was."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from mirrorproxy.audit import Checker, State
from mirrorproxy.audit import checker as module
from mirrorproxy.names import Digest
from mirrorproxy.store.openfiles import identity
from mirrorproxy.tasks import Tasks

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 12345)
DIGEST = Digest.of(DATA)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second read comes soon."""
    monkeypatch.setattr(module, "_AGAIN_AFTER", 0.01)


@pytest_asyncio.fixture
async def checker() -> AsyncIterator[Checker]:
    """One in no hurry, without a limit."""
    checker = Checker()
    yield checker
    await checker.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Content that is right, and on the disk."""
    path = tmp_path / "content"
    with path.open("wb") as file:
        file.write(DATA)
        os.fsync(file.fileno())
    return path


def in_memory(path: Path) -> int:
    """How many bytes of it the page cache has (fincore(1))."""
    found = subprocess.run(["fincore", "--bytes", "--json", path], check=True, capture_output=True)
    return int(json.loads(found.stdout)["fincore"][0]["res"])


def forget(path: Path) -> None:
    """Have the page cache drop it."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


async def test_what_is_right(checker: Checker, path: Path) -> None:
    """With its size."""
    assert await checker.check(path, DIGEST) == (State.RIGHT, len(DATA), identity(path.stat()), "")
    assert (await checker.check(path, Digest("sha512:" + "0" * 128))).state is State.WRONG


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1])
async def test_of_every_size(checker: Checker, tmp_path: Path, size: int) -> None:
    """At the edges of what is read in one step, from memory and from the disk."""
    path = tmp_path / "content"
    path.write_bytes(DATA[:size])
    os.sync()
    for _ in range(2):
        assert (await checker.check(path, Digest.of(DATA[:size]))).state is State.RIGHT
        forget(path)


async def test_what_is_wrong(checker: Checker, path: Path) -> None:
    """One flipped bit, and its identity is told, so that nothing else is taken away for it."""
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        byte = file.read(1)[0]
        file.seek(2 * MIB)
        file.write(bytes([byte ^ 1]))
    verdict = await checker.check(path, DIGEST)
    assert verdict == (State.WRONG, len(DATA), identity(path.stat()), f"{len(DATA)} bytes of something else")


@pytest.mark.parametrize("there", ["nothing", "link", "folder", "pipe"])
async def test_what_is_no_file(checker: Checker, path: Path, there: str) -> None:
    """Gone is not wrong; what was put in its stead is, and nobody waits for a pipe."""
    other = path.rename(path.with_name("other"))
    match there:
        case "link":
            path.symlink_to(other)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    async with asyncio.timeout(5):
        verdict = await checker.check(path, DIGEST)
    expected = {"nothing": State.GONE, "link": State.WRONG, "folder": State.WRONG, "pipe": State.WRONG}
    assert verdict.state is expected[there]
    assert (verdict.identity is None) == (there == "nothing")


async def test_a_failed_read_is_tried_again(checker: Checker, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails once proves nothing about the content."""
    preadv, failures = os.preadv, [OSError(5, "Input/output error")]

    def fails(*args: object) -> int:
        if failures:
            raise failures.pop()
        return preadv(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", fails)
    assert (await checker.check(path, DIGEST)).state is State.RIGHT
    failures += [OSError(5, "Input/output error")] * 2
    verdict = await checker.check(path, DIGEST)
    assert (verdict.state, verdict.reason) == (
        State.UNREADABLE,
        "a file that cannot be read: Input/output error (EIO)",
    )


async def test_wrong_bytes_in_memory_are_read_again_from_the_disk(
    checker: Checker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have gone wrong on their way: what is wrong once is not wrong yet."""
    hashed: list[bool] = []
    hash_file = Checker._hash

    def first_wrong(self: Checker, descriptor: int, digest: Digest, *, fresh: bool) -> str:
        hashed.append(fresh)
        return hash_file(self, descriptor, digest, fresh=fresh) if fresh else "0" * 64

    monkeypatch.setattr(Checker, "_hash", first_wrong)
    assert (await checker.check(path, DIGEST)).state is State.RIGHT
    assert hashed == [False, True]


async def test_keeps_to_the_rate(path: Path) -> None:
    """Over many files, small ones included, which count for 64 KiB each."""
    checker = Checker(lambda: 10 * MIB)
    started = monotonic()
    await checker.check(path, DIGEST)
    assert monotonic() - started >= 0.3
    small = path.with_name("small")
    small.write_bytes(b"1")
    started = monotonic()
    for _ in range(32):
        await checker.check(small, Digest.of(b"1"))
    assert 0.15 <= monotonic() - started < 2
    await checker.aclose()


async def test_stops_at_once(path: Path) -> None:
    """However slow it is, and in the middle of a file."""
    checker, tasks = Checker(lambda: 1000), Tasks()
    check = tasks.start(checker.check(path, DIGEST), name="check")
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await checker.aclose()
        with pytest.raises(asyncio.CancelledError):
            await check
        with pytest.raises(asyncio.CancelledError):
            await checker.check(path, DIGEST)


async def test_the_page_cache_stays_as_it_was(checker: Checker, path: Path) -> None:
    """What others use stays in memory, and what nobody used does not fill it."""
    path.read_bytes()
    assert in_memory(path) >= len(DATA)
    await checker.check(path, DIGEST)
    assert in_memory(path) >= len(DATA)
    forget(path)
    assert in_memory(path) == 0
    await checker.check(path, DIGEST)
    assert in_memory(path) <= MIB // 4
    forget(path)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(MIB)
    await checker.check(path, DIGEST)
    assert MIB <= in_memory(path) <= MIB + MIB // 4


async def test_reads_behind_all_others(checker: Checker, path: Path) -> None:
    """The kernel serves this thread's reads when nobody else wants the disk; the processor it gets like any other."""
    await checker.check(path, DIGEST)
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("audit"))
    found = subprocess.run(["ionice", "-p", str(thread.native_id)], check=True, capture_output=True, text=True)
    assert found.stdout.strip().startswith("idle")
    assert thread.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == os.getpriority(os.PRIO_PROCESS, 0)
