"""What the tests of the store share: a cache directory, prepared, and the parts over it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory, prepared."""
    path = tmp_path / "cache"
    BlobStore(path).prepare()
    return path


@pytest.fixture
async def blobs(directory: Path) -> AsyncIterator[BlobStore]:
    """Content in it."""
    store = BlobStore(directory)
    yield store
    await store.aclose()


@pytest.fixture
async def index(directory: Path) -> AsyncIterator[Index]:
    """The index in it, open and new."""
    found = Index(directory / "index")
    await found.open()
    yield found
    await found.aclose()
