"""The cache directory: the version of its format, and where it lies."""

import os
from pathlib import Path

import pytest

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store import directory as module
from mirrorproxy.store.directory import FORMAT, file_system, prepare, warn_of_network

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:44 / /srv/cache\\040here rw,relatime shared:15 master:3 - nfs4 files:/export rw,vers=4.2
broken
40 22 0:50 /x /mnt rw - fuse.sshfs me@there:/ rw
"""


def contents(directory: Path) -> dict[str, bytes | None]:
    """All that is there, and all bytes of it."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


class TestFormat:
    """`format`: a number that later versions can rely on."""

    def test_is_written_into_a_new_cache(self, tmp_path: Path) -> None:
        """A decimal number in a line of its own."""
        prepare(tmp_path / "new")
        assert (tmp_path / "new" / "format").read_bytes() == b"%d\n" % FORMAT

    def test_of_a_cache_from_before_it_had_one(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Format 0: what is kept stays as it is, and the number is added."""
        (directory / "format").unlink()
        (directory / "quarantine").rmdir()
        (directory / "blobs/sha256/something").write_text("kept")
        before = contents(directory)
        with caplog.at_level("INFO"):
            prepare(directory)
        assert contents(directory) == {**before, "format": b"1\n", "quarantine": None}
        assert f"from format 0 to {FORMAT}" in caplog.text

    def test_migrates_step_by_step(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From whatever version it is: those steps that it lacks, in order."""
        steps: list[int] = []
        monkeypatch.setattr(module, "_MIGRATIONS", [lambda _, n=number: steps.append(n) for number in range(4)])
        monkeypatch.setattr(module, "FORMAT", 4)
        prepare(directory)
        assert steps == [1, 2, 3]
        assert (directory / "format").read_bytes() == b"4\n"
        prepare(directory)
        assert steps == [1, 2, 3]

    def test_is_written_after_the_migration(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that failed, or was cut off by a crash, is run again."""

        def fail(_: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "_MIGRATIONS", [fail, fail])
        monkeypatch.setattr(module, "FORMAT", 2)
        with pytest.raises(CacheFailed):
            prepare(directory)
        assert (directory / "format").read_bytes() == b"1\n"

    def test_of_a_later_version_is_refused(self, directory: Path) -> None:
        """With a clear word, and without touching anything: not even what a crash left."""
        (directory / "format").write_text(f"{FORMAT + 1}\nwhatever it needs\n")
        (directory / "partial/tmp-1-0").touch()
        (directory / "index.json").unlink()
        before = contents(directory)
        with pytest.raises(CacheFailed, match=rf"has format {FORMAT + 1}, from a later version of mirrorproxy"):
            prepare(directory)
        assert contents(directory) == before

    @pytest.mark.parametrize("damage", [b"", b"\n", b"one", b"\xff\x00" * 50, b"-1\n", b"1.5\n", None])
    def test_that_was_damaged_is_written_anew(
        self, directory: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No version writes that: a cache that may be right is not refused for it."""
        path = directory / "format"
        path.unlink()
        path.mkdir() if damage is None else path.write_bytes(damage)
        prepare(directory)
        assert path.read_bytes() == b"%d\n" % FORMAT
        assert "is written anew" in caplog.text

    def test_that_cannot_be_written_keeps_nobody_from_starting(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """On a full disk a cache of before is of use all the same."""

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        (directory / "format").unlink()
        monkeypatch.setattr(module, "write_whole", full)
        prepare(directory)
        assert "cannot be written down" in caplog.text


class TestNetworkFileSystem:
    """Where locks and flushes are another machine's."""

    @pytest.mark.parametrize(
        ("device", "kind"), [((254, 0), "ext4"), ((0, 44), "nfs4"), ((0, 50), "fuse.sshfs"), ((0, 99), None)]
    )
    def test_is_found_by_its_device(self, device: tuple[int, int], kind: str | None) -> None:
        """In what the kernel says of all mounts."""
        assert file_system(MOUNTS, os.makedev(*device)) == kind

    @pytest.mark.parametrize(("kind", "warned"), [("nfs4", True), ("cifs", True), ("ext4", False), ("xfs", False)])
    def test_is_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, warned: bool) -> None:
        """Once, with its type, at the start."""
        device = tmp_path.stat().st_dev
        mounts = tmp_path / "mountinfo"
        mounts.write_text(f"31 22 {os.major(device)}:{os.minor(device)} / {tmp_path} rw - {kind} it rw\n")
        warn_of_network(tmp_path, mounts)
        assert (f"network file system ({kind})" in caplog.text) == warned

    def test_where_nothing_is_known_nothing_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without /proc, say."""
        warn_of_network(tmp_path, tmp_path / "missing")
        assert caplog.text == ""
