"""`mirrorproxy demo`: what the program is for, seen in half a minute and without a network."""

import argparse
import asyncio
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mirrorproxy.units import Size, format_duration, format_rate, parse_duration, parse_rate, parse_size

T = TypeVar("T")

_LARGEST = Size(2**30)  # the image is made in memory
_SMALLEST = _SLOWEST = Size(10**3)
_LONGEST_DELAY = 10.0  # the proxy gives an upstream 30 s for its headers
_REDRAW = 0.1  # seconds between two pictures of a bar
_BAR = 30  # characters
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_NEXT = """\
Next: `mirrorproxy serve` does this for Docker Hub, ghcr.io, quay.io and others, on 127.0.0.1:5000. For Docker, write
{"registry-mirrors": ["http://127.0.0.1:5000"]} to /etc/docker/daemon.json; README.md has containerd and podman."""


class Failed(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Pull:
    """What a pull took. `hits` of `answers` came from the cache."""

    name: str
    seconds: float
    upstream_bytes: int
    upstream_requests: int
    hits: int
    answers: int


class Bar:
    """The progress of one pull: a bar that moves on a terminal, and a line at the end, there or anywhere else."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._live = sys.stdout.isatty()
        self._started = time.monotonic()
        self._drawn_at = -_REDRAW
        self._draw()

    def add(self, size: int) -> None:
        """So many more bytes have come."""
        self._done += size
        self._draw()

    def end(self) -> float:
        """The pull is complete; the seconds that it took."""
        seconds = time.monotonic() - self._started
        self._write(f"{self._name:8} {_short(self._done)} in {seconds:.2f} s\n")
        return seconds

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._live or now - self._drawn_at < _REDRAW:
            return
        self._drawn_at = now
        width = max(0, min(_BAR, shutil.get_terminal_size().columns - 50))  # 50: for the words beside it
        full = "#" * min(width, width * self._done // self._total)
        words = f"{_short(self._done)} of {_short(self._total)}, {now - self._started:.1f} s"
        self._write(f"{self._name:8} [{full:.<{width}}] {words}")

    def _write(self, line: str) -> None:
        print(f"\r\x1b[K{line}" if self._live else line, end="", flush=True)


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "demo",
        help="see in half a minute what it does, without a network",
        description="Start a registry behind a slow line and mirrorproxy in front of it, and pull an image three times:"
        " cold, warm, and with the registry stopped. Nothing is left behind.",
    )
    for flag, read, default, meaning in (
        ("--size", _size, "40MB", "of the image's layers"),
        ("--rate", _rate, "4MB/s", "of the line, for all connections together"),
        ("--delay", _delay, "100ms", "of each request on the line"),
    ):
        parser.add_argument(flag, type=read, default=default, metavar="X", help=f"{meaning} (default: {default})")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it; 1 when something failed, 128 and the signal's number (Ctrl-C: 130) when it was interrupted."""
    try:
        return _show(args.size, args.rate, args.delay)
    except KeyboardInterrupt:  # while nothing was started yet
        return 128 + signal.SIGINT
    except (Failed, OSError) as error:
        print(f"\nmirrorproxy demo: {error}", file=sys.stderr)
        return 1


def _show(size: int, rate: int, delay: float) -> int:
    # aiohttp takes 0.2 s to import: not for the other commands
    from mirrorproxy.cli.demo_pull import Proxy, three_pulls
    from mirrorproxy.cli.demo_registry import Image, Line, Registry

    image = Image.generate(size)
    print(
        f"A registry with an image of {image.size:,} bytes, on a line of {format_rate(rate)} with"
        f" {format_duration(delay)} a request: {image.size / rate:.0f} s at the least.\n"
        "mirrorproxy in front of it, with an empty cache. A client pulls the image, again, and once more with\n"
        "the registry stopped.\n",
        flush=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="mirrorproxy-demo-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        registry = Registry(image, Line(rate, delay), listener)
        proxy = Proxy.prepare(Path(folder), registry_port=listener.getsockname()[1])
        try:
            pulls = _until_signal(three_pulls(registry, proxy, image.size))
        except Failed as error:
            raise Failed(f"{error}\n{proxy.last_words()}".rstrip()) from error
    if isinstance(pulls, signal.Signals):
        print("\ninterrupted", file=sys.stderr)
        return 128 + pulls
    print(_report(pulls))
    return 0


def _until_signal(work: Coroutine[object, object, T]) -> T | signal.Signals:
    """Run `work` to its end, or cancel it at the first signal that would end the process, and return that."""
    came: list[signal.Signals] = []

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None

        def end(number: signal.Signals) -> None:
            if not came:  # the ones after the first do not disturb the cleaning up, which takes 5 s at most
                task.cancel()
            came.append(number)

        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        for number in _SIGNALS:  # the loop gave them back; what is left to do is short, and to be done
            signal.signal(number, signal.SIG_IGN)
        return came[0]


def _report(pulls: Sequence[Pull]) -> str:
    """A table of the three pulls, what it means, and what to do next."""
    rows = [
        ("pull", "seconds", "bytes from upstream", "requests to upstream", "hit ratio"),
        *(
            (
                pull.name,
                f"{pull.seconds:.2f}",
                f"{pull.upstream_bytes:,}",
                f"{pull.upstream_requests:,}",
                f"{pull.hits / pull.answers:.0%}",
            )
            for pull in pulls
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
    cold, warm, _ = pulls
    meaning = (
        f"Warm was {cold.seconds / warm.seconds:.0f} times as fast as cold. Offline, the proxy was told to ask about"
        " the tag\nanew, found nobody, and served what it had."
    )
    return "\n".join(("", *table, "", meaning, "", _NEXT))


def _short(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} kB"


def _size(text: str) -> Size:
    """An argument of --size; what is wrong with it reaches the user, which a ValueError's words do not."""
    size = _read(parse_size, text)
    if not _SMALLEST <= size <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not from {_SMALLEST} to {_LARGEST}")
    return size


def _rate(text: str) -> Size:
    rate = _read(parse_rate, text)
    if rate < _SLOWEST:
        raise argparse.ArgumentTypeError(f"{text} is too slow; the slowest is {_SLOWEST}/s")
    return rate


def _delay(text: str) -> float:
    delay = _read(parse_duration, text)
    if delay > _LONGEST_DELAY:
        raise argparse.ArgumentTypeError(f"{text} is too long; the longest is {format_duration(_LONGEST_DELAY)}")
    return delay


def _read(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
