"""The pins that somebody made: a file of lines."""

import asyncio
import threading
from pathlib import Path

import pytest

from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.store import pins as module
from mirrorproxy.store.pins import Pin, PinFile
from mirrorproxy.tasks import Tasks

ALPINE = Repository("docker.io", "library/alpine")
ONE = Digest.of(b"1")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """As a store has made it."""
    (tmp_path / "partial").mkdir()
    return tmp_path


async def test_pins_are_kept(directory: Path) -> None:
    """With a tag or a digest, with a platform or without, each once; for the next service, too, until forgotten."""
    pins = [Pin(ALPINE, Tag("3.20")), Pin(ALPINE, ONE, "linux/arm64/v8"), Pin(ALPINE, Tag("3.20"), "linux/amd64")]
    file = PinFile(directory)
    for pin in (*pins, pins[0]):
        await file.put(pin)
    assert await file.all() == await PinFile(directory).all() == pins
    await file.forget(pins[1])
    await file.forget(pins[1])
    assert await file.all() == await PinFile(directory).all() == [pins[0], pins[2]]
    assert (directory / "pins").read_text().splitlines() == [
        "docker.io/library/alpine:3.20",
        "docker.io/library/alpine:3.20 linux/amd64",
    ]


async def test_whoever_leaves_while_it_is_written_takes_nothing_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the pin a moment later: what is known of it must say the same, or the next one would undo it."""
    started, go_on = threading.Event(), threading.Event()
    write = module._write

    def slow(directory: Path, pins: list[Pin]) -> None:
        started.set()
        go_on.wait(5)
        write(directory, pins)

    monkeypatch.setattr(module, "_write", slow)
    file, one, two = PinFile(directory), Pin(ALPINE, Tag("1")), Pin(ALPINE, Tag("2"))
    leaving = Tasks().start(file.put(one), name="put")
    await asyncio.to_thread(started.wait, 5)
    leaving.cancel()
    await asyncio.wait([leaving])
    putting = Tasks().start(file.put(two), name="put")
    await asyncio.sleep(0.05)
    go_on.set()
    await putting
    assert await file.all() == [one, two]
    assert await PinFile(directory).all() == [one, two]


async def test_what_was_not_written_is_no_pin(directory: Path) -> None:
    """Neither now nor later."""
    file = PinFile(directory)
    (directory / "partial").rmdir()
    with pytest.raises(CacheFailed):
        await file.put(Pin(ALPINE, Tag("1")))
    assert await file.all() == []


async def test_lines_that_are_no_pins(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Are told, and keep back no others."""
    (directory / "pins").write_bytes(b"x\n\xff\n" + f"{ALPINE}:1 what ever\n{ALPINE}@1\n\n{ALPINE}:2\n".encode())
    assert await PinFile(directory).all() == [Pin(ALPINE, Tag("2"))]
    assert caplog.text.count("is no pin") == 5


async def test_what_cannot_be_read_is_not_taken_for_nothing(directory: Path) -> None:
    """Else a person's pins would be gone with the next one."""
    (directory / "pins").mkdir()
    with pytest.raises(CacheFailed):
        await PinFile(directory).put(Pin(ALPINE, Tag("1")))
