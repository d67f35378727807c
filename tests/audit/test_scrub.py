"""The scrub: when it runs, where it goes on, and what it does with what it finds."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mirrorproxy.audit import Checker, Fate, Quarantine, Scrub
from mirrorproxy.audit import checker as checker_module
from mirrorproxy.audit import scrub as module
from mirrorproxy.errors import CacheFailed
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.tasks import Tasks

DAY = 86_400.0
NOW = float(int(time.time()))


class Bench:
    """A scrub over a cache directory, with a clock that is set by hand."""

    def __init__(self, directory: Path) -> None:
        self.now = NOW
        self.directory = directory
        self.corrupt: list[Digest] = []
        self.refetched: list[Digest] = []
        self.aside: list[int] = []
        self.metrics = Metrics(["docker.io"])
        self.blobs = BlobStore(directory, on_corrupt=lambda digest, _: self.corrupt.append(digest))
        self.checked: list[Digest] = []
        self.rate = 0
        self.checker = Checker(lambda: self.rate)
        self.scrub = self.make()

    def make(self) -> Scrub:
        """Another one, as after a restart."""
        quarantine = Quarantine(self.directory / "quarantine", lambda: 100 << 20, lambda: self.now)
        return Scrub(
            self.directory,
            self.blobs,
            self.checker,
            quarantine,
            self.metrics,
            self.refetch,
            every=7 * DAY,
            tidied=self.aside.append,
            clock=lambda: self.now,
            look_every=0.005,
        )

    async def refetch(self, digest: Digest) -> Fate:
        """The upstream has it."""
        self.refetched.append(digest)
        return Fate.REFETCHED

    async def put(self, count: int) -> list[Digest]:
        """Content, in the order of digests."""
        datas = [os.urandom(5000) for _ in range(count)]
        for data in datas:
            await self.blobs.put(Digest.of(data), data)
        return sorted(Digest.of(data) for data in datas)

    def damage(self, digest: Digest) -> None:
        """Flip a byte of it."""
        path = self.blobs.path(digest)
        data = bytearray(path.read_bytes())
        data[100] ^= 0xFF
        path.chmod(0o600)
        path.write_bytes(data)
        path.chmod(0o444)

    def state(self) -> dict[str, Any]:
        """What a restart would know."""
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.directory / "scrub.json").read_text())
        return found

    def due(self, after: Digest | None = None) -> None:
        """A pass was begun, and came up to `after`."""
        state = {"begun": NOW - 60, "after": after, "ended": None}
        (self.directory / "scrub.json").write_text(json.dumps(state))

    def count(self, result: str) -> float:
        """The metric."""
        return float(self.metrics.scrubbed.labels(result)._value.get())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run it until that is so."""
        tasks = Tasks()
        running = tasks.start(self.scrub.run(), name="scrub")
        try:
            async with asyncio.timeout(10):
                while not condition():
                    await asyncio.sleep(0.002)
                    if running.done():
                        running.result()
        finally:
            await tasks.aclose()

    async def passed(self) -> None:
        """Run it until a pass has ended."""
        await self.until(lambda: self.state().get("ended") is not None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty cache."""
    BlobStore(tmp_path / "cache").prepare()
    return tmp_path / "cache"


@pytest_asyncio.fixture
async def bench(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A scrub over it."""
    monkeypatch.setattr(checker_module, "_AGAIN_AFTER", 0.01)
    bench = Bench(directory)
    check = bench.checker.check

    def noted(path: Path, digest: Digest) -> Awaitable[object]:
        bench.checked.append(digest)
        return check(path, digest)

    monkeypatch.setattr(bench.checker, "check", noted)
    yield bench
    await bench.checker.aclose()
    await bench.blobs.aclose()


class TestSuspects:
    """What a reader could not read is looked at soon."""

    async def test_a_disk_that_takes_nothing_does_not_end_the_scrub(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It cannot be put into quarantine where the file system has become read-only; another time it can."""
        monkeypatch.setattr(module, "_REST", 0.01)
        (digest,) = await bench.put(1)
        bench.damage(digest)
        condemn = bench.blobs.condemn

        async def failing(*_: object) -> bool:
            monkeypatch.setattr(bench.blobs, "condemn", condemn)
            raise CacheFailed("cannot remove cached content: Read-only file system")

        monkeypatch.setattr(bench.blobs, "condemn", failing)
        bench.scrub.suspect(digest)
        await bench.until(lambda: "rests" in caplog.text)
        bench.scrub.suspect(digest)
        await bench.until(lambda: bench.refetched == [digest])


class TestWhen:
    """Passes, and what is between them."""

    async def test_a_new_cache_is_left_alone_for_a_whole_interval(self, bench: Bench) -> None:
        """What was just fetched was just hashed. The first start counts, and not each of them."""
        digests = await bench.put(3)
        await bench.passed()
        assert (bench.checked, bench.scrub.last_ended) == ([], None)
        bench.now += 7 * DAY - 1
        bench.scrub = bench.make()
        looked = len(bench.aside)
        await bench.until(lambda: len(bench.aside) > looked + 3)
        assert bench.checked == []
        bench.now += 1
        await bench.until(lambda: bench.scrub.last_ended == bench.now)
        assert bench.checked == digests
        assert bench.count("right") == 3

    async def test_never(self, bench: Bench) -> None:
        """`every: 0s`, also where a pass was under way; set to something it goes on."""
        (digest,) = await bench.put(1)
        bench.due()
        bench.scrub.every = 0
        looked = len(bench.aside)
        await bench.until(lambda: len(bench.aside) > looked + 3)
        assert bench.checked == []
        bench.scrub.every = DAY
        await bench.passed()
        assert bench.checked == [digest]

    @pytest.mark.parametrize("years", [-30, 30])
    async def test_a_clock_that_jumps(self, bench: Bench, years: int) -> None:
        """By years, in either direction: a pass comes sooner than it should, and the next one after an interval."""
        await bench.put(1)
        await bench.passed()
        bench.now += years * 365 * DAY
        await bench.until(lambda: bench.state() == {"begun": bench.now, "after": None, "ended": bench.now})
        assert len(bench.checked) == 1
        looked = len(bench.aside)
        await bench.until(lambda: len(bench.aside) > looked + 3)
        assert len(bench.checked) == 1

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"begun": 1}', '{"begun": 1e999, "after": null, "ended": null}'])
    async def test_a_damaged_state_is_begun_anew(self, bench: Bench, text: str) -> None:
        """As a new cache is."""
        await bench.put(1)
        (bench.directory / "scrub.json").write_text(text)
        await bench.until(lambda: bench.state() == {"begun": NOW, "after": None, "ended": 0})

    async def test_goes_on_where_it_was(self, bench: Bench) -> None:
        """After a restart: behind the last one that was looked at, whatever came or went meanwhile."""
        digests = await bench.put(6)
        bench.due(after=digests[2])
        bench.blobs.path(digests[2]).unlink()
        await bench.passed()
        assert bench.checked == digests[3:]

    async def test_a_stop_keeps_where_it_is(self, bench: Bench) -> None:
        """To the file."""
        digests = await bench.put(6)
        bench.due()
        bench.rate = 20 * 65_536
        await bench.until(lambda: len(bench.checked) == 4)
        assert bench.state()["after"] in digests[2:5]

    async def test_memory_does_not_grow_with_the_content(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Digests are known in batches, all are looked at, of both algorithms, and nothing else is."""
        monkeypatch.setattr(module, "_BATCH", 4)
        digests = await bench.put(10)
        data = b"of another algorithm"
        other = Digest(f"sha512:{Digest('sha512:' + '0' * 128).of_same_algorithm(data).hex}")
        await bench.blobs.put(other, data)
        for name in ("0" * 63, "A" * 64, "0" * 64 + ".tmp"):
            (bench.directory / "blobs/sha256" / name).touch()
        bench.due()
        await bench.passed()
        assert bench.checked == [*digests, other]


class TestFindings:
    """What is wrong."""

    async def test_is_put_into_quarantine_and_fetched_again(self, bench: Bench) -> None:
        """Counted, told to the accounting, and kept for somebody to look at."""
        digests = await bench.put(4)
        bench.damage(digests[1])
        bench.due()
        await bench.passed()
        assert bench.corrupt == bench.refetched == [digests[1]]
        assert not bench.blobs.path(digests[1]).exists()
        aside = bench.directory / "quarantine" / f"sha256-{digests[1].hex}"
        assert aside.stat().st_size == 5000
        assert bench.aside[-1] == aside.stat().st_blocks * 512
        counts = {result: bench.count(result) for result in ("right", "wrong", "unreadable", "refetched")}
        assert counts == {"right": 3, "wrong": 1, "unreadable": 0, "refetched": 1}

    async def test_a_file_that_cannot_be_read_is_wrong(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a second read; so are two of them in a row, once a third is read."""
        digests = await bench.put(5)
        self.break_disk(monkeypatch, bench, digests[1:3])
        bench.due()
        await bench.passed()
        assert bench.corrupt == digests[1:3]
        assert (bench.count("unreadable"), bench.count("right")) == (2, 3)

    async def test_at_the_end_of_all_too(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """With nothing behind it that could be read."""
        digests = await bench.put(3)
        self.break_disk(monkeypatch, bench, digests[2:])
        bench.due()
        await bench.passed()
        assert bench.corrupt == digests[2:]

    async def test_a_broken_disk_empties_no_cache(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Three in a row that cannot be read: nothing is moved, it rests, and goes on before the first of them."""
        digests = await bench.put(6)
        broken = digests[2:5]
        self.break_disk(monkeypatch, bench, broken)
        bench.due()
        await bench.until(lambda: "the scrub rests" in caplog.text)
        assert (bench.corrupt, bench.state()["after"]) == ([], digests[1])
        broken.clear()
        bench.checked.clear()
        bench.scrub = bench.make()
        await bench.passed()
        assert (bench.corrupt, bench.checked) == ([], digests[2:])

    def break_disk(self, monkeypatch: pytest.MonkeyPatch, bench: Bench, broken: list[Digest]) -> None:
        """Reads of these fail."""
        preadv = os.preadv

        def fails(descriptor: int, *rest: object) -> int:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if any(path == str(bench.blobs.path(digest)) for digest in broken):
                raise OSError(5, "Input/output error")
            return preadv(descriptor, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "preadv", fails)


class TestQuarantine:
    """Bounded, in time and room."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """With three files of 1 MiB, found a day after each other."""
        folder = tmp_path / "quarantine"
        folder.mkdir()
        for number in range(3):
            (folder / str(number)).write_bytes(bytes(1 << 20))
            os.utime(folder / str(number), (NOW + number * DAY, NOW + number * DAY))
        return folder

    def left(self, folder: Path) -> set[str]:
        """What is there still."""
        return {path.name for path in folder.iterdir()}

    async def test_goes_after_a_week(self, folder: Path) -> None:
        """Each by its own age."""
        quarantine = Quarantine(folder, lambda: 1 << 40, lambda: NOW + 7 * DAY + 1)
        assert await quarantine.tidy() == 2 << 20
        assert self.left(folder) == {"1", "2"}

    @pytest.mark.parametrize(("limit", "left"), [(300 << 20, {"0", "1", "2"}), (299 << 20, {"1", "2"}), (1, set())])
    async def test_takes_a_hundredth_of_the_cache(self, folder: Path, limit: int, left: set[str]) -> None:
        """The oldest go first."""
        await Quarantine(folder, lambda: limit, lambda: NOW).tidy()
        assert self.left(folder) == left

    async def test_that_is_not_there(self, tmp_path: Path) -> None:
        """Somebody removed it: nothing is in it."""
        assert await Quarantine(tmp_path / "missing", lambda: 1 << 40).tidy() == 0
