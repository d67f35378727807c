"""The contract suite of `Registry`: inherit `RegistryContract`, and give a fixture `registry` that serves `SAMPLE`.

class TestUpstream(RegistryContract):
    @pytest.fixture
    async def registry(self, origin: Origin) -> AsyncIterator[Registry]:
        origin.serve(SAMPLE)
        ...
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qs

import pytest

from mirrorproxy import manifests
from mirrorproxy.errors import BlobUnknown, NameUnknown, NotFound
from mirrorproxy.names import Digest, Reference, Repository, Tag, repository
from mirrorproxy.registry import Blob, FileBlob, Registry

ARTIFACT_TYPE = "application/vnd.example.signature"


@dataclass
class Content:
    """A repository's content: manifests with their media types, tags, blobs."""

    repository: Repository
    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)

    def blob(self, data: bytes, media_type: str) -> dict[str, object]:
        """Put in a blob; its descriptor."""
        self.blobs[Digest.of(data)] = data
        return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)}

    def manifest(self, document: dict[str, object], *tags: str, media_type: str) -> dict[str, object]:
        """Put in a manifest, oddly spaced so that a re-serialised one differs; its descriptor."""
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}, indent=3).encode()
        digest = Digest.of(body)
        self.manifests[digest] = (media_type, body)
        self.tags.update(dict.fromkeys(tags, digest))
        return {"mediaType": media_type, "digest": digest, "size": len(body)}


def _sample() -> Content:
    content = Content(repository("docker.io", "library/sample"))
    noise = random.Random(1)
    config = content.blob(b'{"architecture": "amd64", "os": "linux"}', "application/vnd.oci.image.config.v1+json")
    layers = [
        content.blob(noise.randbytes(size), "application/vnd.oci.image.layer.v1.tar+gzip")
        for size in (1, 70_000, 300_000)
    ]
    image = content.manifest({"config": config, "layers": layers}, "1.0", "latest", media_type=manifests.OCI_MANIFEST)
    content.manifest({"config": config, "layers": layers[:1]}, "docker", media_type=manifests.DOCKER_MANIFEST)
    content.manifest({"manifests": [image]}, "index", media_type=manifests.OCI_INDEX)
    empty = content.blob(b"{}", "application/vnd.oci.empty.v1+json")
    content.manifest(
        {"config": empty, "layers": [empty], "subject": image, "artifactType": ARTIFACT_TYPE},
        media_type=manifests.OCI_MANIFEST,
    )
    return content


SAMPLE = _sample()
_ABSENT = Digest.of(b"nothing has this digest")
_LAYER = max(SAMPLE.blobs, key=lambda digest: len(SAMPLE.blobs[digest]))


async def read(blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a blob by `chunks`."""
    chunks = cast("AsyncGenerator[bytes]", blob.chunks(start, end))
    async with aclosing(chunks):
        return b"".join([chunk async for chunk in chunks])


REFERENCES: list[tuple[Reference, Digest]] = [
    *((Tag(tag), digest) for tag, digest in SAMPLE.tags.items()),
    *((digest, digest) for digest in SAMPLE.manifests),
]
"""Each way to name each manifest, and its digest."""


class RegistryContract:
    """What every `Registry` does."""

    @pytest.mark.parametrize(("reference", "digest"), REFERENCES)
    async def test_a_manifest_comes_byte_for_byte(
        self, registry: Registry, reference: Reference, digest: Digest
    ) -> None:
        """By tag or digest: the bytes, the media type, the digest, and what it names."""
        found = await registry.manifest(SAMPLE.repository, reference)
        media_type, body = SAMPLE.manifests[digest]
        assert found.body == body
        assert (found.descriptor.media_type, found.descriptor.digest, found.descriptor.size) == (
            media_type,
            digest,
            len(body),
        )
        assert found.contents == manifests.parse(body, media_type)

    @pytest.mark.parametrize(("reference", "digest"), REFERENCES)
    async def test_resolving_says_what_the_manifest_would(
        self, registry: Registry, reference: Reference, digest: Digest
    ) -> None:
        """A HEAD's descriptor is that of the manifest."""
        resolved = await registry.resolve(SAMPLE.repository, reference)
        assert resolved.descriptor == (await registry.manifest(SAMPLE.repository, reference)).descriptor
        assert resolved.descriptor.digest == digest

    async def test_asking_afresh_gives_the_same(self, registry: Registry) -> None:
        """`fresh` changes who is asked, not what is said."""
        first = await registry.manifest(SAMPLE.repository, Tag("latest"), fresh=True)
        assert first.descriptor == (await registry.resolve(SAMPLE.repository, Tag("latest"), fresh=True)).descriptor

    @pytest.mark.parametrize("reference", [Tag("absent"), _ABSENT])
    async def test_an_absent_manifest_is_not_found(self, registry: Registry, reference: Reference) -> None:
        """`NotFound`, by tag and digest, for GET and HEAD."""
        with pytest.raises(NotFound):
            await registry.manifest(SAMPLE.repository, reference)
        with pytest.raises(NotFound):
            await registry.resolve(SAMPLE.repository, reference)

    async def test_an_absent_repository_is_not_found(self, registry: Registry) -> None:
        """`NotFound` for whatever is asked of it."""
        absent = repository("docker.io", "library/absent")
        with pytest.raises(NotFound):
            await registry.manifest(absent, Tag("latest"))
        with pytest.raises((BlobUnknown, NameUnknown)):
            await registry.stat(absent, _LAYER)
        with pytest.raises((BlobUnknown, NameUnknown)):
            await registry.blob(absent, _LAYER)
        with pytest.raises(NameUnknown):
            await registry.tags(absent)

    @pytest.mark.parametrize("digest", list(SAMPLE.blobs), ids=lambda digest: str(len(SAMPLE.blobs[digest])))
    async def test_a_blob_comes_byte_for_byte(self, registry: Registry, digest: Digest) -> None:
        """Whole, with its size told before."""
        async with aclosing(await registry.blob(SAMPLE.repository, digest)) as blob:
            assert (blob.digest, blob.size, blob.first) == (digest, len(SAMPLE.blobs[digest]), 0)
            assert await read(blob) == SAMPLE.blobs[digest]

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 5000), (250_000, None), (299_999, 300_000), (0, 300_000)])
    async def test_a_part_of_a_blob(self, registry: Registry, start: int, end: int | None) -> None:
        """The bytes that were asked for, whatever the registry fetches beside them; the size is still the whole's."""
        async with aclosing(await registry.blob(SAMPLE.repository, _LAYER, start, end)) as blob:
            assert blob.size == len(SAMPLE.blobs[_LAYER])
            assert blob.first in (0, start)
            assert await read(blob, start, end) == SAMPLE.blobs[_LAYER][start:end]

    async def test_a_part_behind_the_end_tells_the_size(self, registry: Registry) -> None:
        """No error, so that the client can be told by how much it was wrong."""
        async with aclosing(await registry.blob(SAMPLE.repository, _LAYER, 300_000)) as blob:
            assert blob.size == 300_000

    async def test_a_files_bytes_are_the_blobs(self, registry: Registry) -> None:
        """Where a blob is a file, reading the file as it becomes ready gives the blob."""
        async with aclosing(await registry.blob(SAMPLE.repository, _LAYER)) as blob:
            if not hasattr(blob, "fd"):
                return
            file, read_so_far = cast("FileBlob", blob), b""
            while len(read_so_far) < 300_000:
                await file.wait(len(read_so_far))
                ready = file.ready(len(read_so_far))
                assert ready > len(read_so_far)
                read_so_far += os.pread(file.fd, ready - len(read_so_far), len(read_so_far))
            assert read_so_far == SAMPLE.blobs[_LAYER]
            await file.wait(300_000)
            assert file.ready(300_000) == 300_000

    async def test_a_blob_left_in_the_middle_hurts_nobody(self, registry: Registry) -> None:
        """One reader leaves after a chunk, another reads on."""
        leaver = await registry.blob(SAMPLE.repository, _LAYER)
        async with aclosing(await registry.blob(SAMPLE.repository, _LAYER)) as stayer:
            chunks = cast("AsyncGenerator[bytes]", leaver.chunks(0, None))
            await anext(chunks)
            await chunks.aclose()
            await leaver.aclose()
            assert await read(stayer) == SAMPLE.blobs[_LAYER]

    async def test_many_readers_get_the_same(self, registry: Registry) -> None:
        """Twenty at once."""

        async def pull() -> bytes:
            async with aclosing(await registry.blob(SAMPLE.repository, _LAYER)) as blob:
                return await read(blob)

        assert set(await asyncio.gather(*(pull() for _ in range(20)))) == {SAMPLE.blobs[_LAYER]}

    async def test_an_absent_blob_is_unknown(self, registry: Registry) -> None:
        """For GET and HEAD, before anything is sent."""
        with pytest.raises(BlobUnknown):
            await registry.stat(SAMPLE.repository, _ABSENT)
        with pytest.raises(BlobUnknown):
            await registry.blob(SAMPLE.repository, _ABSENT)

    @pytest.mark.parametrize("digest", list(SAMPLE.blobs), ids=lambda digest: str(len(SAMPLE.blobs[digest])))
    async def test_a_blobs_size_is_told_without_it(self, registry: Registry, digest: Digest) -> None:
        """What a HEAD says."""
        descriptor = (await registry.stat(SAMPLE.repository, digest)).descriptor
        assert (descriptor.digest, descriptor.size) == (digest, len(SAMPLE.blobs[digest]))

    async def test_tags_are_listed(self, registry: Registry) -> None:
        """All of them, under the repository's name."""
        listing = await registry.tags(SAMPLE.repository)
        assert json.loads(listing.body) == {"name": "library/sample", "tags": sorted(SAMPLE.tags)}
        assert manifests.bare_media_type(listing.media_type) == "application/json"
        assert listing.next_query is None

    async def test_tags_come_in_pages(self, registry: Registry) -> None:
        """Following `next_query` page by page shows each tag once."""
        query: str | None = "n=2"
        pages = []
        while query is not None:
            assert "ns" not in parse_qs(query)
            listing = await registry.tags(SAMPLE.repository, query)
            pages.append(json.loads(listing.body)["tags"])
            query = listing.next_query
        assert [len(page) for page in pages] == [2, 2]
        assert [tag for page in pages for tag in page] == sorted(SAMPLE.tags)

    async def test_referrers_are_listed(self, registry: Registry) -> None:
        """What has an image as its subject, as an OCI index."""
        listing = await registry.referrers(SAMPLE.repository, SAMPLE.tags["latest"])
        assert manifests.bare_media_type(listing.media_type) == manifests.OCI_INDEX
        (found,) = json.loads(listing.body)["manifests"]
        assert found["artifactType"] == ARTIFACT_TYPE
        assert Digest(found["digest"]) in SAMPLE.manifests

    async def test_referrers_can_be_filtered(self, registry: Registry) -> None:
        """By artifact type; the filter is told where it was applied."""
        listing = await registry.referrers(SAMPLE.repository, SAMPLE.tags["latest"], "artifactType=application/x.other")
        if listing.filters is not None:
            assert listing.filters == "artifactType"
            assert json.loads(listing.body)["manifests"] == []

    async def test_nothing_refers_to_what_nothing_refers_to(self, registry: Registry) -> None:
        """An empty list, where the upstream says so."""
        listing = await registry.referrers(SAMPLE.repository, SAMPLE.tags["docker"])
        assert json.loads(listing.body)["manifests"] == []
