"""The pins that somebody made by hand: `pins`, a line each, `docker.io/library/nginx:1.27` and a platform or none.

They are no part of the index: that can be lost and made again from the rest of the directory, a person's word cannot.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mirrorproxy.manifests import PLATFORM
from mirrorproxy.names import Digest, Reference, Repository
from mirrorproxy.store.files import disk_errors, write_whole
from mirrorproxy.store.records import BAD_ROW, parse_name

log = logging.getLogger(__name__)

_LARGEST = 16 << 20  # bytes; a line has about 50


class Pin(NamedTuple):
    """An image that must stay, with all that it needs; of an index of images, that of one `platform`, or all."""

    repository: Repository
    reference: Reference
    platform: str | None = None

    def __str__(self) -> str:
        at = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.repository}{at}{self.reference}{f' {self.platform}' if self.platform else ''}"


class PinFile:
    """The file in `directory`, read once. Nobody else writes it while this one has the directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pins: list[Pin] | None = None
        self._writing = asyncio.Lock()

    async def all(self) -> list[Pin]:
        """The pins, in the order in which they were made. Raises `CacheFailed`."""
        if self._pins is None:
            self._pins = await asyncio.to_thread(_read, self._directory / "pins")
        return list(self._pins)

    async def put(self, pin: Pin) -> None:
        """Add one, if it is not there. On the disk when this returns. Raises `CacheFailed`."""
        await self._change(lambda pins: pins if pin in pins else [*pins, pin])

    async def forget(self, pin: Pin) -> None:
        """Take one away, if it is there. Raises as `put`."""
        await self._change(lambda pins: [each for each in pins if each != pin])

    async def _change(self, change: Callable[[list[Pin]], list[Pin]]) -> None:
        async with self._writing:
            before = await self.all()
            after = change(before)
            if after != before:
                writing = asyncio.get_running_loop().run_in_executor(None, _write, self._directory, after)
                try:
                    await asyncio.shield(writing)
                finally:
                    await asyncio.wait([writing])  # it does not end because whoever asked for it leaves
                    self._pins = after if writing.exception() is None else before


def parse(line: str) -> Pin:
    """The pin that `str()` wrote as `line`. Raises one of `records.BAD_ROW` for anything else."""
    name, _, platform = line.partition(" ")
    if platform and not PLATFORM.fullmatch(platform):
        raise ValueError("not a platform")
    return Pin(*parse_name(name), platform or None)


def _read(path: Path) -> list[Pin]:
    with disk_errors("read the pins"):
        try:
            with path.open("rb") as file:
                lines = file.read(_LARGEST).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
    pins: dict[Pin, None] = {}
    for number, line in enumerate(lines, 1):
        try:
            pins[parse(line)] = None
        except BAD_ROW as error:
            log.warning("line %d of %s is no pin: %s", number, path, error)
    return list(pins)


def _write(directory: Path, pins: list[Pin]) -> None:
    with disk_errors("write the pins"):
        lines = [f"{pin}\n".encode() for pin in pins]
        write_whole(directory / "pins", lines, scratch=directory / "partial", mode=0o600)
