"""A cache directory with its retention, a clock that is set by hand, and images to put in."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirrorproxy.manifests import OCI_INDEX, OCI_MANIFEST
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Descriptor, Digest, Repository, Tag
from mirrorproxy.retention import Retention
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger
from mirrorproxy.store.pins import PinFile
from mirrorproxy.store.records import TagRecord

KIB = 1024
APP = Repository("ghcr.io", "team/app")


class Place:
    """The parts, and what is done with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 1_000_000.0
        self.dropped: list[Digest] = []
        self.changes = 0
        self.blobs = BlobStore(directory)
        self.index = Index(directory / "index")
        self.partials = Partials(directory / "partial", self.blobs)
        self.ledger = Ledger(1000 * KIB, 0, directory)
        self.metrics = Metrics(["ghcr.io"])
        self.retention = Retention(
            self.blobs,
            self.index,
            self.partials,
            self.ledger,
            PinFile(directory),
            self.metrics,
            changed=self._changed,
            clock=lambda: self.now,
        )
        self.retention.dropped = self.dropped.append

    def _changed(self) -> None:
        self.changes += 1

    async def open(self) -> None:
        """As a service does."""
        await self.index.open()
        if self.index.rebuild_needed:
            await self.index.rebuilt()
        await self.retention.open()
        if self.ledger.used is None:
            await self.counted()

    async def aclose(self) -> None:
        """As a service does."""
        await self.retention.aclose()
        await self.index.aclose()
        await self.blobs.aclose()

    async def counted(self, *, lost: bool = False) -> None:
        """The account was checked against the disk."""
        await self.retention._account.check(self.retention._removing, lost=lost)

    async def blob(self, size: int = 16 * KIB, *, data: bytes | None = None) -> Descriptor:
        """Put in a blob, as a fill does: random bytes, or these."""
        data = os.urandom(size) if data is None else data
        digest = Digest.of(data)
        self.ledger.added(await self.blobs.put(digest, data))
        self.retention.used(digest)
        return Descriptor("application/octet-stream", digest, len(data))

    async def manifest(self, document: dict[str, object], tag: str | None = None, media: str = OCI_MANIFEST) -> Digest:
        """Put in a manifest, as a pull by this tag does."""
        body = json.dumps({"schemaVersion": 2, "mediaType": media, **document}).encode()
        digest = Digest.of(body)
        self.ledger.added(await self.blobs.put(digest, body))
        await self.index.put_facts(APP, [Descriptor(media, digest, len(body))])
        if tag is not None:
            await self.index.put_tag(APP, Tag(tag), TagRecord(digest, self.now))
        self.retention.used(digest, manifest=True)
        return digest

    async def image(self, tag: str | None, *layers: Descriptor) -> Digest:
        """Put in an image of these layers, or of one of its own."""
        layers = layers or (await self.blob(),)
        config = await self.blob(100)
        return await self.manifest({"config": as_json(config), "layers": [as_json(each) for each in layers]}, tag)

    async def images(self, tag: str, **platforms: Digest) -> Digest:
        """Put in an index of images, for `linux_arm64=digest` and so on."""
        entries = [
            {
                **as_json(Descriptor(OCI_MANIFEST, digest, 1)),
                "platform": dict(zip(("os", "architecture"), name.split("_"), strict=True)),
            }
            for name, digest in platforms.items()
        ]
        return await self.manifest({"manifests": entries}, tag, OCI_INDEX)

    def has(self, digest: Digest) -> bool:
        """Is it on the disk?"""
        return self.blobs.path(digest).exists()

    def on_disk(self) -> tuple[int, int]:
        """Bytes and pieces of all content."""
        found = list(self.blobs.scan())
        return sum(each.blocks for each in found), len(found)


def as_json(descriptor: Descriptor) -> dict[str, object]:
    """As a manifest writes it."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory, prepared."""
    path = tmp_path / "cache"
    BlobStore(path).prepare()
    return path


@pytest.fixture
async def place(directory: Path) -> AsyncIterator[Place]:
    """A service's store over it, counted and empty."""
    found = Place(directory)
    await found.open()
    yield found
    await found.aclose()
