"""What the tests of the cache share: an origin in memory, a store in a temporary folder, a clock that is told."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from mirrorproxy.cache import Cached, Mode, Rules, Shelf
from mirrorproxy.errors import UpstreamError
from mirrorproxy.fill import Fills, Terms
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Origin, Transfer
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from tests.fakes.memory import MemoryRegistry, StreamBlob
from tests.fill.conftest import Unlimited


class MemoryTransfer(StreamBlob):
    """A blob on its way from the origin."""

    async def chunks(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """An answer ends where what was asked for does."""
        async for data in super().chunks(start, self._last if end is None else end):
            yield data

    def blame(self, error: UpstreamError) -> None:
        """There is no other endpoint."""


class MemoryOrigin(MemoryRegistry):
    """A registry in memory, asked as if over the network."""

    def __init__(self) -> None:
        super().__init__(blobs_are="stream")
        self.expected: list[int] = []

    def expect(self, blobs: int) -> None:
        """As `Origin.expect`."""
        self.expected.append(blobs)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Transfer:
        """As `Origin.blob`."""
        blob = cast("StreamBlob", await super().blob(repository, digest, start, end))
        blob.__class__ = MemoryTransfer
        return cast("Transfer", blob)


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A cache over an origin, and what is behind it."""

    origin: MemoryOrigin
    clock: Clock
    shelf: Shelf
    blobs: BlobStore
    index: Index
    fills: Fills
    again: Callable[..., Cached]
    cached: Cached
    uses: list[tuple[Digest, bool]]
    """What was noted as used, and whether as a manifest, with all that it names."""

    def asked(self) -> list[str]:
        """What the origin was asked since the last time."""
        asked, self.origin.asked = self.origin.asked, []
        return [line.split()[0] for line in asked]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A cache over an empty origin. Tags are fresh for 300 s, a "no" is believed for 10 s."""
    origin, clock = MemoryOrigin(), Clock()
    blobs = BlobStore(tmp_path / "cache")
    await asyncio.to_thread(blobs.prepare)
    index = Index(tmp_path / "cache" / "index")
    await index.open()
    uses: list[tuple[Digest, bool]] = []
    shelf = Shelf(blobs, index, used=lambda digest, manifest=False: uses.append((digest, manifest)))
    metrics = Metrics(["docker.io", "ghcr.io"])
    fills = Fills(Partials(tmp_path / "cache" / "partial", blobs), Unlimited(), metrics, Terms(2, 8))
    made: list[Cached] = []

    def again(source: Origin = origin, prefetch: Mode = Mode.OFF, **rules: float) -> Cached:
        """The same cache as after a restart, or over another origin."""
        made.append(Cached(source, Shelf(blobs, index), fills, Rules(prefetch=prefetch, **rules), clock))
        return made[-1]

    cached = Cached(origin, shelf, fills, Rules(300, 10, 0.2, Mode.OFF), clock)
    made.append(cached)
    yield World(origin, clock, shelf, blobs, index, fills, again, cached, uses)
    for each in made:
        await each.aclose()
    await fills.aclose()
    await index.aclose()
    await blobs.aclose()
