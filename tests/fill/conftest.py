"""What the tests of fills share: a store in a temporary folder, and fills over it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirrorproxy.fill import Fills, Terms
from mirrorproxy.metrics import Metrics
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.ingest import Partials


class Unlimited:
    """A disk without an end."""

    async def reserve(self, size: int) -> "Unlimited":
        """There is room."""
        return self

    def resume(self, size: int) -> "Unlimited":
        """Fine."""
        return self

    def extend(self, size: int) -> bool:
        """There is more."""
        return True

    def wrote(self, size: int) -> None:
        """Fine."""

    def commit(self, size: int) -> None:
        """Fine."""

    def leave(self, size: int) -> None:
        """Fine."""


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    """Committed content in a temporary folder."""
    store = BlobStore(tmp_path / "cache")
    await asyncio.to_thread(store.prepare)
    yield store
    await store.aclose()


@pytest.fixture
def partials(blobs: BlobStore, tmp_path: Path) -> Partials:
    """Partial content beside it."""
    return Partials(tmp_path / "cache" / "partial", blobs)


@pytest.fixture
def metrics() -> Metrics:
    """Fresh metrics."""
    return Metrics(["docker.io"])


@pytest.fixture
async def fills(partials: Partials, metrics: Metrics) -> AsyncIterator[Fills]:
    """Fills with a short budget."""
    fills = Fills(partials, Unlimited(), metrics, Terms(budget=2.0, max_active=8))
    yield fills
    await fills.aclose()
