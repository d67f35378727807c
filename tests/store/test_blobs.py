"""Committed content: whole, read-only, found by opening it, healed where it is wrong."""

import asyncio
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorproxy.errors import CacheFailed, DigestMismatch
from mirrorproxy.names import Digest
from mirrorproxy.store import blobs as blobs_module
from mirrorproxy.store import content, openfiles
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.openfiles import OpenBlob

DATA = b"what is kept\n" * 100
DIGEST = Digest.of(DATA)
OTHER = b"something else"
SHA512 = Digest(f"sha512:{hashlib.sha512(DATA).hexdigest()}")


def read(blob: OpenBlob | None) -> bytes:
    """All bytes of a hit, which is closed."""
    assert blob is not None
    data = os.pread(blob.fd, blob.size + 1, 0)
    blob.close()
    return data


def opened(path: Path) -> list[str]:
    """The descriptors of this process to what is, or was, at `path`."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.removesuffix(" (deleted)") == str(path):
            found.append(target)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in a thread."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def damage(path: Path, data: bytes) -> None:
    """Write to a committed file in place, as nobody should."""
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


@pytest.fixture
def distrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every open looks at the disk, as it does after a second."""
    monkeypatch.setattr(openfiles, "_TRUSTED_FOR", 0.0)


class TestPrepare:
    """The folders of an empty cache."""

    def test_makes_an_empty_oci_layout_for_its_owner_alone(self, tmp_path: Path) -> None:
        """Any OCI tool can read the directory from the start, no other user can."""
        directory = tmp_path / "a" / "cache"
        BlobStore(directory).prepare()
        assert json.loads((directory / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        assert json.loads((directory / "index.json").read_text()) == {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        }
        for name in ("", "blobs", "blobs/sha256", "blobs/sha512", "partial"):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o700, name

    def test_clears_what_a_crash_left_and_nothing_else(self, directory: Path) -> None:
        """Temporary files and folders go; partial content, index.json and committed content stay."""
        (directory / "partial/tmp-1-0").write_bytes(b"half a manifest")
        (directory / "partial/tmp-1-1").mkdir()
        (directory / "partial/tmp-1-1/file").touch()
        kept = [directory / "partial" / f"sha256-{DIGEST.hex}", directory / "blobs/sha256" / DIGEST.hex]
        for path in kept:
            path.mkdir()
        (directory / "index.json").write_text("{}")
        BlobStore(directory).prepare()
        assert sorted((directory / "partial").iterdir()) == [kept[0]]
        assert kept[1].exists()
        assert (directory / "index.json").read_text() == "{}"

    @pytest.mark.parametrize("there", [[], ["lost+found"], ["owner"], ["owner", "oci-layout", "blobs", "index.json"]])
    def test_makes_a_folder_of_ours_private(self, tmp_path: Path, there: list[str]) -> None:
        """A volume is mounted as its driver likes; a cache may have been copied with another mode."""
        for name in there:
            (tmp_path / name).mkdir()
        tmp_path.chmod(0o755)
        BlobStore(tmp_path).prepare()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700

    def test_leaves_the_mode_of_a_folder_with_other_things(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`--cache-dir /tmp` is a mistake that must not lock everybody out; what is kept is private all the same."""
        (tmp_path / "somebody's").touch()
        tmp_path.chmod(0o777)
        BlobStore(tmp_path).prepare()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777
        assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "index.json").stat().st_mode) == 0o600
        assert "can be entered by others" in caplog.text

    def test_fails_in_our_words(self, tmp_path: Path) -> None:
        """A cache that cannot be there is a `CacheFailed` with the errno's name."""
        (tmp_path / "file").touch()
        with pytest.raises(CacheFailed) as failed:
            BlobStore(tmp_path / "file" / "cache").prepare()
        assert failed.value.detail == {"errno": "ENOTDIR"}


class TestPut:
    """Small content."""

    @pytest.mark.parametrize("digest", [DIGEST, SHA512])
    async def test_keeps_it_read_only_under_its_digest(self, blobs: BlobStore, directory: Path, digest: Digest) -> None:
        """What was put is found by its digest."""
        taken = await blobs.put(digest, DATA)
        path = directory / "blobs" / digest.algorithm / digest.hex
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert taken == path.stat().st_blocks * 512 > 0
        assert read(await blobs.open(digest, len(DATA))) == DATA
        assert await blobs.read(digest, 1 << 20) == DATA
        assert list((directory / "partial").iterdir()) == []

    async def test_again_changes_nothing(self, blobs: BlobStore) -> None:
        """The same content takes no room twice."""
        await blobs.put(DIGEST, DATA)
        before = blobs.path(DIGEST).stat()
        assert await blobs.put(DIGEST, DATA) == 0
        assert blobs.path(DIGEST).stat().st_ino == before.st_ino

    async def test_by_many_at_once(self, blobs: BlobStore) -> None:
        """All succeed, and one file is there."""
        await asyncio.gather(*(blobs.put(DIGEST, DATA) for _ in range(20)))
        assert await blobs.read(DIGEST, 1 << 20) == DATA

    async def test_refuses_what_it_is_not(self, blobs: BlobStore, directory: Path) -> None:
        """Content is never seen under another's digest."""
        with pytest.raises(DigestMismatch):
            await blobs.put(DIGEST, OTHER)
        assert await blobs.open(DIGEST) is None
        assert list((directory / "partial").iterdir()) == []

    async def test_fails_in_our_words(self, blobs: BlobStore, directory: Path) -> None:
        """The disk's failure is a `CacheFailed`, and nothing is half there."""
        (directory / "partial").rmdir()
        with pytest.raises(CacheFailed) as failed:
            await blobs.put(DIGEST, DATA)
        assert failed.value.detail == {"errno": "ENOENT"}
        assert not blobs.path(DIGEST).exists()

    async def test_flushes_before_it_renames_and_the_folder_after(
        self, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash at any moment leaves nothing or the whole."""
        steps: list[str] = []
        fsync, fchmod, replace = os.fsync, os.fchmod, os.replace

        def flush(descriptor: int) -> None:
            steps.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
            fsync(descriptor)

        def chmod(descriptor: int, mode: int) -> None:
            steps.append("read-only")
            fchmod(descriptor, mode)

        def rename(old: Path, new: Path) -> None:
            steps.append("rename")
            replace(old, new)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "fchmod", chmod)
        monkeypatch.setattr(os, "replace", rename)
        await blobs.put(DIGEST, DATA)
        assert steps == ["read-only", "flush file", "rename", "flush folder"]
        steps.clear()
        (blobs.path(DIGEST).parent / "new").write_bytes(OTHER)
        await asyncio.to_thread(blobs.commit_file, blobs.path(DIGEST).parent / "new", Digest.of(OTHER))
        assert steps == ["read-only", "flush file", "rename", "flush folder", "flush folder"]

    async def test_a_folder_that_cannot_be_flushed_is_logged(
        self, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After the rename the content is there: saying that it failed would be wrong."""
        fsync = os.fsync

        def flush(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(5, "Input/output error")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", flush)
        assert await blobs.put(DIGEST, DATA) > 0
        assert "cannot flush the folder" in caplog.text


class TestCommitFile:
    """Large content, from elsewhere in the cache directory."""

    def make(self, directory: Path, data: bytes = DATA) -> Path:
        """A complete partial file."""
        path = directory / "partial" / f"sha256-{DIGEST.hex}" / "data"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    async def test_moves_it_to_its_place(self, blobs: BlobStore, directory: Path) -> None:
        """It is read-only there, and gone where it was."""
        path = self.make(directory)
        taken = await asyncio.to_thread(blobs.commit_file, path, DIGEST)
        assert taken == blobs.path(DIGEST).stat().st_blocks * 512
        assert stat.S_IMODE(blobs.path(DIGEST).stat().st_mode) == 0o444
        assert not path.exists()
        assert read(await blobs.open(DIGEST, len(DATA))) == DATA

    async def test_drops_ours_where_it_is_there(self, blobs: BlobStore, directory: Path) -> None:
        """Who opened what was there reads on, and nothing is counted twice."""
        await blobs.put(DIGEST, DATA)
        before = blobs.path(DIGEST).stat().st_ino
        path = self.make(directory)
        assert await asyncio.to_thread(blobs.commit_file, path, DIGEST) == 0
        assert blobs.path(DIGEST).stat().st_ino == before
        assert not path.exists()

    async def test_replaces_what_is_short(self, blobs: BlobStore, directory: Path) -> None:
        """A damaged file does not win over the whole one."""
        blobs.path(DIGEST).write_bytes(DATA[:10])
        await asyncio.to_thread(blobs.commit_file, self.make(directory), DIGEST)
        assert await blobs.read(DIGEST, 1 << 20) == DATA

    async def test_fails_in_our_words(self, blobs: BlobStore, directory: Path) -> None:
        """The disk's failure is a `CacheFailed`."""
        with pytest.raises(CacheFailed):
            await asyncio.to_thread(blobs.commit_file, directory / "partial" / "missing", DIGEST)


class TestOpen:
    """The hit test."""

    async def test_what_is_not_there_is_none(self, blobs: BlobStore) -> None:
        """A miss is no error."""
        assert await blobs.open(DIGEST) is None
        assert await blobs.read(DIGEST, 100) is None

    async def test_a_hot_hit_does_not_wait(self, blobs: BlobStore) -> None:
        """Neither for a thread nor for the disk: the coroutine ends at its first step, on the same descriptor."""
        await blobs.put(DIGEST, DATA)
        first = await blobs.open(DIGEST, len(DATA))
        assert first is not None
        blobs.path(DIGEST).unlink()  # whoever looked would see it
        with pytest.raises(StopIteration) as done:
            blobs.open(DIGEST, len(DATA)).send(None)
        assert done.value.value.fd == first.fd
        assert read(done.value.value) == read(first) == DATA

    async def test_50_at_once_leave_one_descriptor(self, blobs: BlobStore) -> None:
        """Who opened it too late gives his back."""
        await blobs.put(DIGEST, DATA)
        found = await asyncio.gather(*(blobs.open(DIGEST) for _ in range(50)))
        assert [read(blob) for blob in found] == [DATA] * 50
        await until(lambda: len(opened(blobs.path(DIGEST))) == 1)

    async def test_it_is_known_who_is_read_however_many(self, directory: Path) -> None:
        """Beyond those that are kept open too: none of what is being read is evicted."""
        blobs = BlobStore(directory, keep_open=2)
        await asyncio.to_thread(blobs.prepare)
        contents = [b"%d" % number for number in range(5)]
        for each in contents:
            await blobs.put(Digest.of(each), each)
        readers = [await blobs.open(Digest.of(each)) for each in contents]
        assert all(blobs.is_read(Digest.of(each)) for each in contents)
        for reader in readers:
            assert reader is not None
            reader.close()
        assert not any(blobs.is_read(Digest.of(each)) for each in contents)
        await blobs.aclose()

    async def test_keeps_a_bounded_number_open(self, directory: Path) -> None:
        """The one used longest ago is closed, once its reader has finished."""
        blobs = BlobStore(directory, keep_open=2)
        datas = [b"%d" % number for number in range(3)]
        digests = [Digest.of(data) for data in datas]
        for digest, data in zip(digests, datas, strict=True):
            await blobs.put(digest, data)
        reader = await blobs.open(digests[0])
        assert reader is not None
        read(await blobs.open(digests[1]))
        read(await blobs.open(digests[0]))
        read(await blobs.open(digests[2]))
        await until(lambda: not opened(blobs.path(digests[1])))
        read(await blobs.open(digests[1]))
        assert os.pread(reader.fd, 10, 0) == datas[0]
        assert len(opened(blobs.path(digests[0]))) == 1
        reader.close()
        reader.close()
        await until(lambda: not opened(blobs.path(digests[0])))
        await blobs.aclose()
        await until(lambda: not any(opened(blobs.path(digest)) for digest in digests))

    @pytest.mark.usefixtures("distrusted")
    async def test_what_is_still_there_keeps_its_descriptor(self, blobs: BlobStore) -> None:
        """Looking again costs no reader his."""
        await blobs.put(DIGEST, DATA)
        first, second = await blobs.open(DIGEST), await blobs.open(DIGEST)
        assert first is not None
        assert second is not None
        assert first.fd == second.fd
        first.close()
        assert read(second) == DATA

    @pytest.mark.usefixtures("distrusted")
    async def test_what_was_removed_behind_our_back_is_a_miss(self, blobs: BlobStore) -> None:
        """A second late at most; who reads it may finish, then its blocks are free."""
        await blobs.put(DIGEST, DATA)
        reader = await blobs.open(DIGEST)
        blobs.path(DIGEST).unlink()
        assert await blobs.open(DIGEST) is None
        assert read(reader) == DATA
        await until(lambda: not opened(blobs.path(DIGEST)))

    async def test_a_descriptor_is_trusted_for_a_second(
        self, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And no longer, however often it is used."""
        now = time.monotonic()
        monkeypatch.setattr(openfiles, "monotonic", lambda: now)
        await blobs.put(DIGEST, DATA)
        read(await blobs.open(DIGEST))
        blobs.path(DIGEST).unlink()
        for passed in (0.5, 0.9):
            monkeypatch.setattr(openfiles, "monotonic", lambda passed=passed: now + passed)
            assert read(await blobs.open(DIGEST)) == DATA
        monkeypatch.setattr(openfiles, "monotonic", lambda: now + 1.0)
        assert await blobs.open(DIGEST) is None

    @pytest.mark.usefixtures("distrusted")
    async def test_serves_on_what_is_open_when_the_disk_fails(self, blobs: BlobStore) -> None:
        """Committed content never changes: what is open is right."""
        await blobs.put(DIGEST, DATA)
        read(await blobs.open(DIGEST))
        loop = blobs.path(DIGEST).parent
        loop.rename(loop.with_name("moved"))
        loop.symlink_to(loop.name)  # ELOOP in the path is read as a link at its end, and lstat fails
        assert read(await blobs.open(DIGEST)) == DATA
        with pytest.raises(CacheFailed):
            await blobs.open(Digest.of(OTHER))

    async def test_a_reader_that_is_cancelled_leaves_no_descriptor(self, blobs: BlobStore) -> None:
        """Whether the thread had opened it by then or not."""
        await blobs.put(DIGEST, DATA)
        path = blobs.path(DIGEST)
        for delay in (0, 0, 0, 0.0002, 0.0005):
            opening = asyncio.get_running_loop().create_task(blobs.open(DIGEST))
            await asyncio.sleep(delay)
            opening.cancel()
            for blob in await asyncio.gather(opening, return_exceptions=True):
                if isinstance(blob, OpenBlob):
                    blob.close()
            await blobs.remove(DIGEST)
            await until(lambda: not opened(path))
            await blobs.put(DIGEST, DATA)

    async def test_after_the_end(self, blobs: BlobStore) -> None:
        """A closed store says so; who reads may finish."""
        await blobs.put(DIGEST, DATA)
        reader = await blobs.open(DIGEST)
        await blobs.aclose()
        with pytest.raises(CacheFailed):
            await blobs.open(DIGEST)
        assert read(reader) == DATA
        assert not opened(blobs.path(DIGEST))


class TestHealing:
    """Content that is wrong is removed and is a miss, so that it is fetched again."""

    @pytest.fixture
    async def healed(self, directory: Path) -> list[tuple[Digest, int]]:
        """What the store said it removed."""
        return []

    @pytest.fixture
    async def store(self, directory: Path, healed: list[tuple[Digest, int]]) -> BlobStore:
        """A store that says so."""
        return BlobStore(directory, on_corrupt=lambda digest, freed: healed.append((digest, freed)))

    @pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b"x", b""])
    @pytest.mark.usefixtures("distrusted")
    async def test_a_file_of_another_size(
        self, store: BlobStore, healed: list[tuple[Digest, int]], data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also one that is open, when it is asked for with the size that it should have."""
        await store.put(DIGEST, DATA)
        read(await store.open(DIGEST, len(DATA)))
        damage(store.path(DIGEST), data)
        assert await store.open(DIGEST, len(DATA)) is None
        assert not store.path(DIGEST).exists()
        assert [digest for digest, freed in healed if freed > 0] == [DIGEST]
        assert caplog.text.count("to be fetched again") == 1
        await store.put(DIGEST, DATA)
        assert read(await store.open(DIGEST, len(DATA))) == DATA
        await store.aclose()

    async def test_50_that_find_it_do_not_all_hash_it(
        self,
        store: BlobStore,
        healed: list[tuple[Digest, int]],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """And it is removed, told and logged once.

        One for all, but for those of the eight threads that had opened and not yet looked at it when it was removed.
        """
        hashed: list[Digest] = []
        has_digest = content.has_digest

        def counted(descriptor: int, digest: Digest) -> bool:
            hashed.append(digest)
            return has_digest(descriptor, digest)

        monkeypatch.setattr(blobs_module, "has_digest", counted)
        await store.put(DIGEST, DATA)
        damage(store.path(DIGEST), DATA[:-1])
        assert await asyncio.gather(*(store.open(DIGEST, len(DATA)) for _ in range(50))) == [None] * 50
        assert 1 <= len(hashed) <= 8
        assert len(healed) == caplog.text.count("to be fetched again") == 1
        await until(lambda: not opened(store.path(DIGEST)))
        await store.aclose()

    @pytest.mark.usefixtures("distrusted")
    async def test_flipped_bytes_are_found_before_they_are_served(
        self, store: BlobStore, healed: list[tuple[Digest, int]], directory: Path
    ) -> None:
        """With `verify`, whether a size is told or not; what was wrong is there for somebody to look at."""
        store.verify = True
        await store.put(DIGEST, DATA)
        wrong = DATA[:-1] + b"!"
        damage(store.path(DIGEST), wrong)
        assert await store.open(DIGEST) is None
        assert [digest for digest, _ in healed] == [DIGEST]
        assert (directory / "quarantine" / f"sha256-{DIGEST.hex}").read_bytes() == wrong
        await store.put(DIGEST, DATA)
        assert read(await store.open(DIGEST, len(DATA))) == DATA
        await store.aclose()

    async def test_what_is_open_is_hashed_once(self, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `verify`, for all that read it meanwhile and later; anew where the file was opened anew."""
        hashed: list[Digest] = []

        def counted(descriptor: int, digest: Digest) -> bool:
            hashed.append(digest)
            return content.has_digest(descriptor, digest)

        monkeypatch.setattr(blobs_module, "has_digest", counted)
        await store.put(DIGEST, DATA)
        read(await store.open(DIGEST))
        assert hashed == []
        store.verify = True
        assert [read(blob) for blob in await asyncio.gather(*(store.open(DIGEST) for _ in range(50)))] == [DATA] * 50
        assert len(hashed) == 1
        damage(store.path(DIGEST), DATA)  # another change time: not the file that was hashed
        monkeypatch.setattr(openfiles, "_TRUSTED_FOR", 0.0)
        read(await store.open(DIGEST))
        assert len(hashed) == 2
        await store.aclose()

    async def test_without_a_quarantine_wrong_content_goes_all_the_same(
        self, store: BlobStore, healed: list[tuple[Digest, int]], directory: Path
    ) -> None:
        """Somebody removed the folder."""
        (directory / "quarantine").rmdir()
        await store.put(DIGEST, DATA)
        damage(store.path(DIGEST), b"wrong")
        assert await store.read(DIGEST, 1000) is None
        assert len(healed) == 1
        assert not store.path(DIGEST).exists()
        await store.aclose()

    async def test_another_file_is_not_condemned(self, store: BlobStore, healed: list[tuple[Digest, int]]) -> None:
        """What was fetched in its stead, between the look and the word."""
        await store.put(DIGEST, DATA)
        old = openfiles.identity(store.path(DIGEST).stat())
        store.path(DIGEST).unlink()
        await store.put(DIGEST, DATA)
        assert not await store.condemn(DIGEST, "wrong", old)
        assert await store.read(DIGEST, 10_000) == DATA
        assert await store.condemn(DIGEST, "wrong", openfiles.identity(store.path(DIGEST).stat()))
        assert await store.read(DIGEST, 10_000) is None
        assert len(healed) == 1
        await store.aclose()

    async def test_a_file_that_may_not_be_opened(
        self, store: BlobStore, healed: list[tuple[Digest, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its mode or owner was changed: it is a miss, and what is fetched replaces it. (Root may open all.)"""
        await store.put(DIGEST, DATA)
        before = store.path(DIGEST).stat().st_ino
        opens = os.open

        def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
            if str(path).endswith(DIGEST.hex) and os.stat(path).st_ino == before:
                raise PermissionError(13, "Permission denied")
            return opens(path, flags, mode)

        monkeypatch.setattr(os, "open", refuse)
        assert await store.put(DIGEST, DATA) > 0  # also where nobody looked before
        assert store.path(DIGEST).stat().st_ino != before
        before = store.path(DIGEST).stat().st_ino
        assert await store.open(DIGEST) is None
        assert len(healed) == 1
        await store.put(DIGEST, DATA)
        assert read(await store.open(DIGEST)) == DATA
        await store.aclose()

    async def test_a_descriptor_that_lies_removes_nothing(
        self, store: BlobStore, healed: list[tuple[Digest, int]], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Anybody can push a manifest with a wrong size for a layer that others need; and it is hashed only once."""
        await store.put(DIGEST, DATA)
        assert read(await store.open(DIGEST, 1)) == DATA
        with pytest.raises(StopIteration) as done:
            store.open(DIGEST, 2).send(None)
        assert done.value.value.size == len(DATA)
        assert read(done.value.value) == DATA
        assert healed == []
        assert caplog.text.count("a descriptor says") == 1
        await store.aclose()

    async def test_empty_content_may_be_right(self, store: BlobStore) -> None:
        """No bytes have a digest too."""
        await store.put(Digest.of(b""), b"")
        assert read(await store.open(Digest.of(b""), 0)) == b""
        await store.aclose()

    async def test_an_empty_file_without_a_size(self, store: BlobStore, healed: list[tuple[Digest, int]]) -> None:
        """What a crash of the machine leaves most often is seen without being told the size."""
        store.path(DIGEST).touch()
        assert await store.open(DIGEST) is None
        assert not store.path(DIGEST).exists()
        await store.aclose()

    @pytest.mark.parametrize("kind", ["link", "dangling", "folder", "full folder", "pipe"])
    async def test_what_is_no_file(
        self,
        store: BlobStore,
        healed: list[tuple[Digest, int]],
        tmp_path: Path,
        kind: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is never followed or waited for, it goes out of the way, and what it pointed at stays."""
        path = store.path(DIGEST)
        victim = tmp_path / "victim"
        victim.write_bytes(DATA)
        match kind:
            case "link":
                path.symlink_to(victim)
            case "dangling":
                path.symlink_to(tmp_path / "nowhere")
            case "pipe":
                os.mkfifo(path)
            case _:
                path.mkdir()
                if kind == "full folder":
                    (path / "file").touch()
        async with asyncio.timeout(5):
            assert {*await asyncio.gather(store.open(DIGEST), store.open(DIGEST), store.read(DIGEST, 1 << 20))} == {
                None
            }
        assert caplog.text.count("to be fetched again") == len(healed) == 1
        await store.put(DIGEST, DATA)
        assert read(await store.open(DIGEST, len(DATA))) == DATA
        assert victim.read_bytes() == DATA
        await store.aclose()

    async def test_a_folder_in_its_place_gives_way_to_a_put(self, blobs: BlobStore, directory: Path) -> None:
        """Also when nobody tried to read it before."""
        blobs.path(DIGEST).mkdir()
        await blobs.put(DIGEST, DATA)
        assert await blobs.read(DIGEST, 1 << 20) == DATA
        await asyncio.to_thread(BlobStore(directory).prepare)
        assert list((directory / "partial").iterdir()) == []

    async def test_a_flipped_bit_is_found_by_read(self, store: BlobStore, healed: list[tuple[Digest, int]]) -> None:
        """Manifests are checked whenever they are read."""
        await store.put(DIGEST, DATA)
        damage(store.path(DIGEST), b"W" + DATA[1:])
        assert await store.read(DIGEST, 1 << 20) is None
        assert not store.path(DIGEST).exists()
        assert len(healed) == 1
        await store.put(DIGEST, DATA)
        assert await store.read(DIGEST, 1 << 20) == DATA
        await store.aclose()

    async def test_read_leaves_what_is_too_large(self, store: BlobStore) -> None:
        """It is content, but no manifest."""
        await store.put(DIGEST, DATA)
        assert await store.read(DIGEST, len(DATA) - 1) is None
        assert await store.read(DIGEST, len(DATA)) == DATA
        await store.aclose()

    async def test_what_was_fetched_meanwhile_is_not_removed(self, blobs: BlobStore) -> None:
        """The file that was found wrong is removed, not the name."""
        blobs.path(DIGEST).write_bytes(OTHER)
        wrong = openfiles.identity(blobs.path(DIGEST).stat())
        await blobs.put(DIGEST, DATA)
        assert await blobs._remove(DIGEST, wrong) == 0
        assert await blobs.read(DIGEST, 1 << 20) == DATA


class TestRemove:
    """Eviction, one by one."""

    async def test_frees_its_blocks_when_the_last_reader_is_gone(self, blobs: BlobStore) -> None:
        """The figure is what `put` said; the kept descriptor does not hold the space."""
        taken = await blobs.put(DIGEST, DATA)
        reader = await blobs.open(DIGEST)
        assert await blobs.remove(DIGEST) == taken
        assert await blobs.open(DIGEST) is None
        assert await blobs.remove(DIGEST) == 0
        assert read(reader) == DATA
        await until(lambda: not opened(blobs.path(DIGEST)))

    async def test_beside_an_open_keeps_no_descriptor_of_what_is_gone(self, blobs: BlobStore) -> None:
        """Whichever of them comes first."""
        path = blobs.path(DIGEST)
        for _ in range(30):
            await blobs.put(DIGEST, DATA)
            blob, _ = await asyncio.gather(blobs.open(DIGEST), blobs.remove(DIGEST))
            if blob is not None:
                assert read(blob) == DATA
            await until(lambda: not opened(path))


class TestScan:
    """What there is."""

    async def test_finds_all_content_and_counts_strangers(
        self, blobs: BlobStore, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is not ours is left alone, not even a reason to stop."""
        taken = {DIGEST: await blobs.put(DIGEST, DATA), SHA512: await blobs.put(SHA512, DATA)}
        (directory / "blobs/sha256/README").touch()
        (directory / "blobs/sha256" / ("0" * 64)).mkdir()
        (directory / "blobs/sha256" / ("A" * 64)).touch()
        found = await asyncio.to_thread(lambda: list(blobs.scan()))
        assert {each.digest: each.blocks for each in found} == taken
        assert all(abs(each.modified - time.time()) < 60 for each in found)
        assert all(abs(each.changed - time.time()) < 60 for each in found)
        assert "3 things that are not content" in caplog.text
        assert (directory / "blobs/sha256/README").exists()
        assert set(await asyncio.to_thread(lambda: list(blobs.digests()))) == {*taken, Digest(f"sha256:{'0' * 64}")}
        asked = [*taken, Digest.of(b"not here"), Digest(f"sha256:{'0' * 64}")]
        assert sorted(await asyncio.to_thread(lambda: list(blobs.stat(asked)))) == sorted(found)
        assert await asyncio.to_thread(blobs.missing, asked) == asked[2:3]

    async def test_fails_in_our_words(self, blobs: BlobStore, directory: Path) -> None:
        """A folder that is gone is a `CacheFailed`."""
        (directory / "blobs/sha512").rmdir()
        with pytest.raises(CacheFailed):
            await asyncio.to_thread(lambda: list(blobs.scan()))


async def test_says_what_it_is(blobs: BlobStore) -> None:
    """The state can be read."""
    await blobs.put(DIGEST, DATA)
    blob = await blobs.open(DIGEST)
    assert repr(blob) == f"<OpenBlob {DIGEST.hex[:12]} {len(DATA)}>"
    assert repr(blobs).endswith("[1 kept open]>")
    assert blob is not None
    blob.close()
    assert repr(blob).endswith("closed>")
