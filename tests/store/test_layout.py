"""`index.json`: a valid OCI layout of what is cached, and the way back from it to a lost index."""

import asyncio
import json
import logging
import shutil
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import CacheFailed
from mirrorproxy.manifests import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from mirrorproxy.names import Descriptor, Digest, Repository, Tag, repository
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.layout import Entry, LayoutWriter, cached, read, rebuild, write
from mirrorproxy.store.records import Fact, TagRecord
from mirrorproxy.tasks import Tasks

ALPINE = repository("docker.io", "alpine")
LOCAL = repository("localhost:5000", "a")
LATEST = Tag("latest")
ONE = Descriptor(OCI_MANIFEST, Digest.of(b"1"), 1)
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


def document(descriptor: Descriptor) -> dict[str, object]:
    """A descriptor as manifests write it."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


class Cache:
    """A cache directory that is filled as a pull would."""

    def __init__(self, directory: Path, blobs: BlobStore, index: Index) -> None:
        self.directory = directory
        self.blobs = blobs
        self.index = index

    async def keep(self, place: Repository, body: bytes, media_type: str, children: list[Descriptor]) -> Descriptor:
        """A manifest, stored, with what it names known."""
        descriptor = Descriptor(media_type, Digest.of(body), len(body))
        await self.blobs.put(descriptor.digest, body)
        await self.index.put_facts(place, [descriptor, *children])
        return descriptor

    async def image(self, place: Repository, text: str) -> tuple[Descriptor, list[Descriptor]]:
        """An image with a config and a layer: its manifest and these two."""
        config = (
            b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"n":"%s"}' % text.encode()
        )
        children = [
            Descriptor(CONFIG, Digest.of(config), len(config)),
            Descriptor(LAYER, Digest.of(text.encode()), len(text)),
        ]
        await self.blobs.put(children[0].digest, config)
        await self.blobs.put(children[1].digest, text.encode())
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": document(children[0]),
            "layers": [document(children[1])],
        }
        return await self.keep(place, json.dumps(body).encode(), OCI_MANIFEST, children), children

    async def platforms(
        self, place: Repository, manifests: list[Descriptor], media_type: str = OCI_INDEX
    ) -> Descriptor:
        """An index of these."""
        body = {"schemaVersion": 2, "mediaType": media_type, "manifests": [document(each) for each in manifests]}
        return await self.keep(place, json.dumps(body).encode(), media_type, manifests)

    async def tag(self, place: Repository, tag: str, descriptor: Descriptor) -> None:
        """A tag that was checked a while ago."""
        await self.index.put_tag(place, Tag(tag), TagRecord(descriptor.digest, 1000.0))

    async def entries(self) -> list[Entry]:
        """What `index.json` should name."""
        return await asyncio.to_thread(lambda: list(cached(self.index, self.blobs)))

    async def write(self) -> None:
        """Write it."""
        await asyncio.to_thread(write, self.directory, cached(self.index, self.blobs))

    async def lose_index(self) -> None:
        """Start again without an index."""
        await self.index.aclose()
        shutil.rmtree(self.directory / "index")
        self.index = Index(self.directory / "index")
        await self.index.open()
        assert self.index.rebuild_needed


@pytest.fixture
async def cache(directory: Path, blobs: BlobStore, index: Index) -> AsyncIterator[Cache]:
    """An empty cache."""
    found = Cache(directory, blobs, index)
    yield found
    await found.index.aclose()


class TestFile:
    """Writing and reading."""

    def test_has_one_descriptor_for_each_entry(self, directory: Path) -> None:
        """In the words of the image specification, with the name as an annotation."""
        write(directory, [Entry(ALPINE, Tag("3.20"), ONE), Entry(LOCAL, ONE.digest, ONE)])
        assert json.loads((directory / "index.json").read_text()) == {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                document(ONE) | {"annotations": {"org.opencontainers.image.ref.name": "docker.io/library/alpine:3.20"}},
                document(ONE)
                | {"annotations": {"org.opencontainers.image.ref.name": f"localhost:5000/a@{ONE.digest}"}},
            ],
        }
        assert stat.S_IMODE((directory / "index.json").stat().st_mode) == 0o600
        assert list((directory / "partial").iterdir()) == []

    def test_an_empty_one_is_what_a_new_cache_has(self, directory: Path) -> None:
        """And nothing is read from it."""
        before = (directory / "index.json").read_bytes()
        write(directory, [])
        assert (directory / "index.json").read_bytes() == before
        assert list(read(directory)) == []

    def test_a_failure_leaves_the_one_before(self, directory: Path) -> None:
        """The file is replaced when it is whole, or not at all."""
        write(directory, [Entry(ALPINE, LATEST, ONE)])

        def failing() -> Any:
            yield Entry(LOCAL, LATEST, ONE)
            raise CacheFailed("the index failed")

        with pytest.raises(CacheFailed):
            write(directory, failing())
        assert list(read(directory)) == [Entry(ALPINE, LATEST, ONE)]
        assert list((directory / "partial").iterdir()) == []
        (directory / "partial").rmdir()
        with pytest.raises(CacheFailed):
            write(directory, [])

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(
            st.builds(
                lambda place, tag, data, media_type, tagged: Entry(
                    place, tag if tagged else Digest.of(data), Descriptor(media_type, Digest.of(data), len(data))
                ),
                st.sampled_from([ALPINE, LOCAL, repository("[::1]:80", "a/b__c"), repository("a.b", "c-d.e_f")]),
                st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,10}", fullmatch=True).map(Tag),
                st.binary(max_size=10),
                st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_LIST]),
                st.booleans(),
            )
        )
    )
    def test_reads_what_it_wrote(self, tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
        """Names, digests, media types and sizes, in order."""
        directory = tmp_path_factory.mktemp("layout")
        (directory / "partial").mkdir()
        write(directory, entries)
        assert list(read(directory)) == entries

    def test_reads_what_another_tool_wrote(self, directory: Path) -> None:
        """A tool that adds an image writes the whole file anew, on one line."""
        write(directory, [Entry(ALPINE, LATEST, ONE)])
        content = json.loads((directory / "index.json").read_text())
        content["manifests"].append(document(ONE) | {"annotations": {"org.opencontainers.image.ref.name": "a name"}})
        (directory / "index.json").write_text(json.dumps(content))
        assert list(read(directory)) == [Entry(ALPINE, LATEST, ONE)]

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 5000, b"[]", b"{}", b'{"manifests":5}', b"[" * 200_000])
    def test_a_broken_one_is_empty(self, directory: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
        """And that is logged."""
        (directory / "index.json").write_bytes(content)
        assert list(read(directory)) == []
        assert "index.json" in caplog.text

    def test_a_missing_one_is_empty(self, directory: Path) -> None:
        """Without a word."""
        (directory / "index.json").unlink()
        assert list(read(directory)) == []

    def test_of_a_damaged_one_the_rest_is_read(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Line by line: one that is damaged costs only itself, an end that is missing only what was in it."""
        entries = [Entry(ALPINE, Tag(f"v{number}"), ONE) for number in range(4)]
        write(directory, entries)
        lines = (directory / "index.json").read_bytes().splitlines(keepends=True)
        (directory / "index.json").write_bytes(
            b"".join([*lines[:2], b"x" * 10_000 + b"\n", *lines[3:4], lines[4][:50]])
        )
        assert list(read(directory)) == [entries[0], entries[2]]
        assert "damaged" in caplog.text

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "docker.io/library/alpine"},
            {"name": "docker.io/library/alpine:../../x"},
            {"name": "docker.io/../../etc:latest"},
            {"name": "docker.io/alpine:latest"},
            {"name": "docker.io/library/alpine:latest@" + ONE.digest},
            {"name": "docker.io/library/alpine@" + Digest.of(b"other")},
            {"name": "docker.io/library/alpine@latest"},
            {"name": ""},
            {"name": 5},
            {"digest": "sha256:../../../../etc/passwd"},
            {"digest": None},
            {"size": -1},
            {"size": "1"},
            {"size": 5 << 20},
            {"mediaType": LAYER},
            {"mediaType": ["x"]},
            {"annotations": None},
        ],
    )
    def test_what_is_no_entry_is_left_out(self, directory: Path, change: dict[str, object]) -> None:
        """A forged name becomes no path, no key and no repository; a layer no manifest."""
        entry: dict[str, object] = {"name": "docker.io/library/alpine:latest", **document(ONE), **change}
        entry.setdefault("annotations", {"org.opencontainers.image.ref.name": entry.pop("name")})
        (directory / "index.json").write_text(json.dumps({"manifests": [entry]}))
        assert list(read(directory)) == []


class TestCached:
    """What the file names."""

    async def test_names_tags_and_manifests_without_one(self, cache: Cache) -> None:
        """By repository; what a tag points at needs no second line."""
        one, _ = await cache.image(ALPINE, "one")
        two, _ = await cache.image(ALPINE, "two")
        await cache.tag(ALPINE, "b", one)
        await cache.tag(ALPINE, "a", one)
        for name in ("x", "x-y", "x/y"):
            await cache.image(repository("ghcr.io", name), "two")
        await cache.tag(repository("ghcr.io", "x/y"), "t", two)
        assert [entry._replace(record=None) for entry in await cache.entries()] == [
            Entry(ALPINE, Tag("a"), one),
            Entry(ALPINE, Tag("b"), one),
            Entry(ALPINE, two.digest, two),
            Entry(repository("ghcr.io", "x"), two.digest, two),
            Entry(repository("ghcr.io", "x-y"), two.digest, two),
            Entry(repository("ghcr.io", "x/y"), Tag("t"), two),
        ]

    async def test_names_nothing_that_is_not_there(self, cache: Cache) -> None:
        """A tag that was only asked for, one whose manifest was evicted, and one that points at nothing known."""
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "evicted", one)
        await cache.blobs.remove(one.digest)
        await cache.index.put_facts(ALPINE, [ONE])
        await cache.tag(ALPINE, "asked", ONE)
        await cache.tag(ALPINE, "unknown", Descriptor(OCI_MANIFEST, Digest.of(b"?"), 1))
        assert await cache.entries() == []

    async def test_is_read_page_by_page(self, cache: Cache) -> None:
        """More rows than one page holds."""
        one, _ = await cache.image(ALPINE, "one")
        for number in range(300):
            await cache.tag(ALPINE, f"v{number:03}", one)
        assert [entry.reference for entry in await cache.entries()] == [f"v{number:03}" for number in range(300)]

    @pytest.mark.clients
    async def test_skopeo_reads_the_cache_directory(self, cache: Cache, tmp_path: Path) -> None:
        """By the name that the image has everywhere."""
        one, children = await cache.image(ALPINE, "one")
        many = await cache.platforms(LOCAL, [one])
        await cache.keep(LOCAL, await cache.blobs.read(one.digest, 1 << 20) or b"", OCI_MANIFEST, children)
        await cache.tag(ALPINE, "3.20", one)
        await cache.tag(LOCAL, "many", many)
        await cache.write()
        for name, descriptor in (("docker.io/library/alpine:3.20", one), ("localhost:5000/a:many", many)):
            raw = await asyncio.to_thread(
                subprocess.run,
                ["skopeo", "inspect", "--raw", f"oci:{cache.directory}:{name}"],
                capture_output=True,
                check=True,
                timeout=30,
            )
            assert Digest.of(raw.stdout) == descriptor.digest
        copy = f"oci:{cache.directory}:docker.io/library/alpine:3.20"
        target = tmp_path / "copy"
        await asyncio.to_thread(
            subprocess.run, ["skopeo", "copy", copy, f"dir:{target}"], capture_output=True, check=True, timeout=30
        )
        assert (target / children[1].digest.hex).read_bytes() == b"one"


class TestRebuild:
    """From `index.json` back to the index."""

    async def test_brings_back_tags_and_what_belongs_to_whom(self, cache: Cache) -> None:
        """Tags are asked for before they are believed; membership is by repository, through indexes too."""
        one, in_one = await cache.image(ALPINE, "one")
        two, in_two = await cache.image(ALPINE, "two")
        absent = Descriptor(OCI_MANIFEST, Digest.of(b"not pulled"), 700)
        many = await cache.platforms(ALPINE, [one, absent])
        other, in_other = await cache.image(LOCAL, "other")
        await cache.tag(ALPINE, "latest", many)
        await cache.tag(LOCAL, "t", other)
        await cache.write()
        await cache.lose_index()
        assert await rebuild(cache.blobs, cache.index, cache.directory) == 4
        assert not cache.index.rebuild_needed
        assert await cache.index.tag(ALPINE, LATEST) == TagRecord(many.digest, 0.0)
        assert await cache.index.tag(LOCAL, Tag("t")) == TagRecord(other.digest, 0.0)
        for each in (one, *in_one, two, *in_two, absent, many):
            assert await cache.index.fact(ALPINE, each.digest) == Fact(each.media_type, each.size)
            assert await cache.index.fact(LOCAL, each.digest) is None
        for each in (other, *in_other):
            assert await cache.index.fact(LOCAL, each.digest) == Fact(each.media_type, each.size)
            assert await cache.index.fact(ALPINE, each.digest) is None

    async def test_follows_an_index_to_manifests_that_came_after_the_file(self, cache: Cache) -> None:
        """The file is written now and then; what it names tells the rest."""
        one, in_one = await cache.image(ALPINE, "one")
        many = await cache.platforms(ALPINE, [one])
        await cache.tag(ALPINE, "latest", many)
        write_now = [Entry(ALPINE, LATEST, many)]
        await asyncio.to_thread(write, cache.directory, write_now)
        await cache.lose_index()
        await rebuild(cache.blobs, cache.index, cache.directory)
        for each in (one, *in_one):
            assert await cache.index.fact(ALPINE, each.digest) == Fact(each.media_type, each.size)

    async def test_changes_nothing_that_is_newer(self, cache: Cache) -> None:
        """It runs beside the service, and may run twice."""
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "latest", one)
        await cache.write()
        await cache.lose_index()
        await cache.index.put_tag(ALPINE, LATEST, TagRecord(ONE.digest, 2000.0))
        for _ in range(2):
            await rebuild(cache.blobs, cache.index, cache.directory)
            assert await cache.index.tag(ALPINE, LATEST) == TagRecord(ONE.digest, 2000.0)

    async def test_believes_the_disk_and_not_the_file(self, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
        """What is gone, wrong or no manifest gives no tag; the rest does."""
        good, _ = await cache.image(ALPINE, "good")
        gone, _ = await cache.image(ALPINE, "gone")
        wrong, _ = await cache.image(ALPINE, "wrong")
        no_manifest = Descriptor(OCI_MANIFEST, Digest.of(b"{"), 1)
        await cache.blobs.put(no_manifest.digest, b"{")
        entries = zip(("good", "gone", "wrong", "none"), (good, gone, wrong, no_manifest), strict=True)
        await asyncio.to_thread(write, cache.directory, [Entry(ALPINE, Tag(name), each) for name, each in entries])
        await cache.blobs.remove(gone.digest)
        cache.blobs.path(wrong.digest).chmod(0o644)
        cache.blobs.path(wrong.digest).write_bytes(b"x" * wrong.size)
        await cache.lose_index()
        assert await rebuild(cache.blobs, cache.index, cache.directory) == 1
        assert [tag async for batch in cache.index.tag_rows() for _, tag, _ in batch] == ["good"]
        assert str(no_manifest.digest) in caplog.text

    async def test_reads_each_manifest_of_an_index_once(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        """However often it names it."""
        asked: list[Digest] = []
        reading = cache.blobs.read

        async def counted(digest: Digest, limit: int) -> bytes | None:
            asked.append(digest)
            return await reading(digest, limit)

        monkeypatch.setattr(cache.blobs, "read", counted)
        many = await cache.platforms(ALPINE, [ONE])
        twice = await cache.platforms(ALPINE, [many, many, many])
        await cache.tag(ALPINE, "latest", twice)
        await cache.write()
        await cache.lose_index()
        assert await rebuild(cache.blobs, cache.index, cache.directory) == 2
        assert asked == [twice.digest, many.digest, ONE.digest, many.digest, ONE.digest]  # the tag, then the other one

    async def test_is_asked_for_again_when_it_did_not_end(self, cache: Cache) -> None:
        """A service that is stopped in the middle begins again at its next start."""
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "latest", one)
        await cache.write()
        await cache.lose_index()
        rebuilding = asyncio.get_running_loop().create_task(rebuild(cache.blobs, cache.index, cache.directory))
        await asyncio.sleep(0)
        rebuilding.cancel()
        await asyncio.gather(rebuilding, return_exceptions=True)
        assert rebuilding.cancelled()
        assert cache.index.rebuild_needed


class TestLayoutWriter:
    """When the file is written."""

    async def named(self, cache: Cache, tag: str) -> None:
        """Wait until the file names this tag."""
        async with asyncio.timeout(5):
            while tag not in [
                entry.reference for entry in await asyncio.to_thread(lambda: list(read(cache.directory)))
            ]:
                await asyncio.sleep(0.005)

    async def test_writes_after_the_start_and_after_a_change(self, cache: Cache) -> None:
        """And at no other time."""
        await cache.index.rebuilt()
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "first", one)
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        writer.start()
        await self.named(cache, "first")
        await cache.tag(ALPINE, "second", one)
        before = (cache.directory / "index.json").stat().st_mtime_ns
        await asyncio.sleep(0.3)
        assert (cache.directory / "index.json").stat().st_mtime_ns == before
        writer.changed()
        await self.named(cache, "second")
        await writer.aclose()

    async def test_writes_at_the_end_what_is_not_written_yet(self, cache: Cache) -> None:
        """However long the pause would have been."""
        await cache.index.rebuilt()
        one, _ = await cache.image(ALPINE, "one")
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=3600)
        writer.start()
        await asyncio.sleep(0)
        await cache.tag(ALPINE, "last", one)
        writer.changed()
        async with asyncio.timeout(5):
            await writer.aclose()
        assert [entry.reference for entry in await asyncio.to_thread(lambda: list(read(cache.directory)))] == ["last"]
        assert repr(writer).startswith("<LayoutWriter done")

    async def test_writes_at_the_end_what_came_while_it_was_writing(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end may come before that write has."""
        await cache.index.rebuilt()
        one, _ = await cache.image(ALPINE, "one")
        started, go_on = threading.Event(), threading.Event()

        def slow(directory: Path, entries: Iterable[Entry]) -> None:
            found = list(entries)
            started.set()
            go_on.wait(5)
            write(directory, found)

        monkeypatch.setattr("mirrorproxy.store.layout.write", slow)
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        writer.start()
        await asyncio.to_thread(started.wait, 5)
        await cache.tag(ALPINE, "last", one)
        writer.changed()
        ending = Tasks().start(writer.aclose(), name="end")
        await asyncio.sleep(0)
        go_on.set()
        await ending
        assert [entry.reference for entry in await asyncio.to_thread(lambda: list(read(cache.directory)))] == ["last"]

    async def test_does_not_overwrite_what_has_to_be_rebuilt(self, cache: Cache) -> None:
        """Also not at the end: the next start needs it."""
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "kept", one)
        await cache.write()
        await cache.lose_index()
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        writer.start()
        await cache.tag(LOCAL, "new", one)
        writer.changed()
        await asyncio.sleep(0.05)
        await writer.aclose()
        await self.named(cache, "kept")
        await rebuild(cache.blobs, cache.index, cache.directory)
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        writer.start()
        await writer.aclose()
        await self.named(cache, "kept")

    async def test_waits_longer_when_writing_takes_long(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        """100 times as long as the last write took, whatever the least pause is."""
        await cache.index.rebuilt()
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        times = iter([100.0, 104.0])
        monkeypatch.setattr("mirrorproxy.store.layout.monotonic", lambda: next(times))
        await writer._write()
        assert writer._pause == 400.0

    async def test_tries_again_after_a_failure(
        self, cache: Cache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Logged once, however often it fails."""
        caplog.set_level(logging.WARNING)
        await cache.index.rebuilt()
        one, _ = await cache.image(ALPINE, "one")
        await cache.tag(ALPINE, "t", one)
        (cache.directory / "partial").rename(cache.directory / "moved")
        writer = LayoutWriter(cache.directory, cache.index, cache.blobs, pause=0.001)
        monkeypatch.setattr("mirrorproxy.store.layout._PAUSE_FACTOR", 0)
        writer.start()
        async with asyncio.timeout(5):
            while "will be tried again" not in caplog.text:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        (cache.directory / "moved").rename(cache.directory / "partial")
        await self.named(cache, "t")
        assert caplog.text.count("will be tried again") == 1
        await writer.aclose()
