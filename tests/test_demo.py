"""`mirrorproxy demo`: run as a user runs it, and its registry and client alone."""

import asyncio
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from mirrorproxy.cli import main
from mirrorproxy.cli.demo import Failed
from mirrorproxy.cli.demo_pull import Proxy, three_pulls
from mirrorproxy.cli.demo_registry import REPOSITORY, TAG, Image, Line, Registry

DEMO = (sys.executable, "-m", "mirrorproxy", "demo")
FAST = Line(rate=10**9, round_trip=0)


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _processes(word: str) -> list[str]:
    """The command lines of all processes that have `word` in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if word in line:
            found.append(line)
    return found


def test_three_pulls_and_what_they_cost(tmp_path: Path) -> None:
    """Cold takes every byte from upstream once, warm takes none, and the last one does without a registry.

    The user's own settings and HTTP proxy are not for the demonstration, and nothing is left behind.
    """
    folder, mine = tmp_path / "tmp", tmp_path / "mine"
    folder.mkdir()
    environment = {
        "TMPDIR": str(folder),
        "MIRRORPROXY__CACHE__DIRECTORY": str(mine),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [*DEMO, "--size", "600kB", "--rate", "20MB/s", "--delay", "1ms"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    size = re.search(r"image of (\S+) bytes", done.stdout)
    assert size
    rows = {
        line.split()[0]: line.split()[2:]
        for line in done.stdout.splitlines()
        if re.match(r"(cold|warm|offline) +[0-9.]+  ", line)
    }
    # HEAD of the tag, the manifest, the config, six layers
    assert rows.pop("cold")[:2] == [size[1], "9"]  # what was read ahead may be a hit already
    assert rows == {"warm": ["0", "0", "100%"], "offline": ["0", "0", "100%"]}
    assert "\x1b" not in done.stdout
    assert list(folder.iterdir()) == []
    assert not mine.exists()
    assert _processes(str(folder)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of the cold pull, whose bar moves on a terminal: the proxy ends and its folder goes."""
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [*DEMO, "--size", "2MB", "--rate", "100kB/s"],
        env=os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as demo:
        os.close(theirs)
        shown = b""
        while not re.search(rb"cold +\[#+\.+\] [1-9]", shown):
            shown += os.read(terminal, 1 << 16)
        assert len(_processes(str(tmp_path))) == 1

        demo.send_signal(number)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=30)
    os.close(terminal)

    assert demo.returncode == 128 + number
    assert errors == b"\ninterrupted\n"
    assert _processes(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "4Mbit"), "is not a rate"),
        (("--rate", "1B/s"), "the slowest is 1kB/s"),
        (("--size", "2GiB"), "is not from 1kB to 1GiB"),
        (("--delay", "11s"), "the longest is 10s"),
    ],
)
def test_wrong_words(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that cannot be used is refused with the reason."""
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])

    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_proxy_that_does_not_start(tmp_path: Path) -> None:
    """It is told at once, with what the proxy said."""
    proxy = Proxy.prepare(tmp_path, registry_port=1)
    proxy.config.write_text("server: {lisen: 1}")

    async def start() -> None:
        async with aiohttp.ClientSession() as session, proxy.running(session):
            raise AssertionError("it runs")

    with pytest.raises(Failed, match="ended at once, with status 78"):
        asyncio.run(start())
    assert "lisen" in proxy.last_words()


class _NoProxy(Proxy):
    """The registry itself, in the proxy's place."""

    @asynccontextmanager
    async def running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        yield

    async def settled(self, session: aiohttp.ClientSession) -> None:
        """Nothing is written."""


async def test_wrong_bytes_are_found() -> None:
    """The client checks what it gets: a blob of the right length that is another one ends the demonstration."""
    image = Image.generate(10_000)
    digest = list(image.blobs)[-1]
    bad = replace(image, blobs=image.blobs | {digest: bytes(len(image.blobs[digest]))})
    with _listener() as listener:
        registry = Registry(bad, FAST, listener)
        proxy = _NoProxy(_url(listener), Path(tempfile.gettempdir()), Path(tempfile.gettempdir()))
        with pytest.raises(Failed, match=f"{digest}: these are other bytes"):
            await three_pulls(registry, proxy, image.size)


async def test_without_a_proxy_every_pull_costs_the_same() -> None:
    """What the table says is counted at the registry, and a registry that was stopped is gone."""
    image = Image.generate(10_000)
    with _listener() as listener:
        registry = Registry(image, FAST, listener)
        proxy = _NoProxy(_url(listener), Path(tempfile.gettempdir()), Path(tempfile.gettempdir()))
        with pytest.raises(Failed, match="GET /v2/: ClientConnectorError"):
            await three_pulls(registry, proxy, image.size)

    assert registry.sent == 2 * image.size
    assert registry.requests == 2 * 10


async def test_the_registry_answers_as_registries_do() -> None:
    """HEAD and GET by tag and digest, ranges of blobs, and 404 and 416 for what is not there."""
    image = Image.generate(10_000)
    digest, blob = max(image.blobs.items(), key=lambda item: len(item[1]))
    with _listener() as listener:
        root = f"{_url(listener)}/v2/{REPOSITORY}"
        async with Registry(image, FAST, listener) as registry, aiohttp.ClientSession() as session:
            async with session.head(f"{root}/manifests/{TAG}") as response:
                assert response.content_length == len(image.manifest)
                manifest = response.headers["Docker-Content-Digest"]
            async with session.get(f"{root}/manifests/{manifest}") as response:
                assert await response.read() == image.manifest
            for header, wanted in (
                ("bytes=7-", slice(7, None)),
                ("bytes=3-9", slice(3, 10)),
                ("bytes=-5", slice(-5, None)),
            ):
                async with session.get(f"{root}/blobs/{digest}", headers={"Range": header}) as response:
                    assert response.status == 206
                    assert await response.read() == blob[wanted]
            async with session.get(f"{root}/blobs/{digest}", headers={"Range": f"bytes={len(blob)}-"}) as response:
                assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(blob)}")
            for path in ("manifests/other", f"blobs/{manifest}"):
                async with session.get(f"{root}/{path}") as response:
                    assert response.status == 404
            assert registry.sent == len(image.manifest) + len(blob) - 7 + 7 + 5


async def test_connections_share_the_line() -> None:
    """Two transfers at once take as long as one after the other."""
    line = Line(rate=1_000_000, round_trip=0)
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(line.carry(10_000) for _ in range(20)))
    assert 0.17 < asyncio.get_running_loop().time() - started < 1
