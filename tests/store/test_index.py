"""The index: what it remembers, in memory and on the disk, and what it does when the database fails."""

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import CacheFailed
from mirrorproxy.manifests import OCI_MANIFEST
from mirrorproxy.names import Descriptor, Digest, Repository, Tag, repository
from mirrorproxy.registry import Kind, Listing
from mirrorproxy.store import index as index_module
from mirrorproxy.store import records
from mirrorproxy.store.index import Index
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import Fact, KeptListing, TagRecord, Used

ALPINE = repository("docker.io", "alpine")
LATEST = Tag("latest")
ONE, TWO = Digest.of(b"1"), Digest.of(b"2")
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


async def reopened(index: Index) -> Index:
    """The index after a restart: nothing in memory."""
    await index.aclose()
    again = Index(index._directory)
    await again.open()
    return again


class TestTags:
    """What tags point at."""

    async def test_are_kept_over_a_restart(self, index: Index) -> None:
        """A record comes back as it was put."""
        record = TagRecord(ONE, 1700000000.25)
        await index.put_tag(ALPINE, LATEST, record)
        again = await reopened(index)
        assert again.peek_tag(ALPINE, LATEST) is None
        assert await again.tag(ALPINE, LATEST) == record
        assert again.peek_tag(ALPINE, LATEST) == record
        assert await again.tag(ALPINE, Tag("other")) is None
        assert await again.tag(repository("ghcr.io", "library/alpine"), LATEST) is None
        await again.aclose()

    async def test_can_be_forgotten(self, index: Index) -> None:
        """In memory and on the disk."""
        await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        await index.forget_tag(ALPINE, LATEST)
        assert index.peek_tag(ALPINE, LATEST) is None
        assert await index.tag(ALPINE, LATEST) is None

    async def test_a_known_one_does_not_wait(self, index: Index) -> None:
        """A hot hit needs no thread."""
        await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        with pytest.raises(StopIteration) as done:
            index.tag(ALPINE, LATEST).send(None)
        assert done.value.value == TagRecord(ONE, 1.0)

    async def test_a_read_that_was_overtaken_by_a_write_is_not_remembered(self, index: Index) -> None:
        """Memory is never behind the database."""
        await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        again = await reopened(index)
        reading = asyncio.get_running_loop().create_task(again.tag(ALPINE, LATEST))
        await asyncio.sleep(0)
        await again.put_tag(ALPINE, LATEST, TagRecord(TWO, 2.0))
        assert await reading == TagRecord(ONE, 1.0)
        assert await again.tag(ALPINE, LATEST) == TagRecord(TWO, 2.0)
        await again.aclose()

    async def test_a_read_that_was_overtaken_by_a_removal_is_not_remembered(self, index: Index) -> None:
        """What upstream has no more does not come back."""
        await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        again = await reopened(index)
        reading = asyncio.get_running_loop().create_task(again.tag(ALPINE, LATEST))
        await asyncio.sleep(0)
        await again.forget_tag(ALPINE, LATEST)
        await reading
        assert await again.tag(ALPINE, LATEST) is None
        await again.aclose()

    async def test_memory_is_bounded(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ones used last are found without a thread, the others on the disk."""
        index._tags._limit = 2
        for name in "abc":
            await index.put_tag(ALPINE, Tag(name), TagRecord(ONE, 1.0))
            index.peek_tag(ALPINE, Tag("a"))
        assert index.peek_tag(ALPINE, Tag("b")) is None
        assert index.peek_tag(ALPINE, Tag("a")) == await index.tag(ALPINE, Tag("b")) == TagRecord(ONE, 1.0)

    async def test_come_in_batches(self, index: Index) -> None:
        """All of them, by repository, however many."""
        expected = [
            (repository("ghcr.io", name), Tag(f"v{number:03}"), TagRecord(ONE, float(number)))
            for name in ("a", "a-b", "a/b")
            for number in range(150)
        ]
        for row in reversed(expected):
            await index.put_tag(*row)
        batches = [batch async for batch in index.tag_rows()]
        assert [row for batch in batches for row in batch] == expected
        assert max(map(len, batches)) < 200
        assert await asyncio.to_thread(lambda: list(index.walk_tags())) == expected


class TestFacts:
    """What belongs to a repository, and what it is."""

    async def test_are_kept_over_a_restart(self, index: Index) -> None:
        """By repository: what one has, the other may not."""
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 500), Descriptor(LAYER, TWO, 3_000_000_000)])
        again = await reopened(index)
        assert again.peek_fact(ALPINE, ONE) is None
        assert await again.fact(ALPINE, ONE) == again.peek_fact(ALPINE, ONE) == Fact(OCI_MANIFEST, 500)
        assert await again.fact(ALPINE, TWO) == again.peek_fact(ALPINE, TWO) == Fact(LAYER, 3_000_000_000)
        assert await again.fact(repository("quay.io", "library/alpine"), TWO) is None
        await again.aclose()

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("order", [(OCI_MANIFEST, LAYER), (LAYER, OCI_MANIFEST)])
    async def test_a_manifest_that_another_names_as_a_layer_stays_one(
        self, index: Index, order: tuple[str, str], restart: bool
    ) -> None:
        """Whatever came first, and whether memory knows it or only the disk."""
        for media_type in order:
            await index.put_facts(ALPINE, [Descriptor(media_type, ONE, 500)])
            if restart:
                index = await reopened(index)
        assert await index.fact(ALPINE, ONE) == Fact(OCI_MANIFEST, 500)
        await index.aclose()

    async def test_the_layers_of_what_just_came_are_in_memory(self, index: Index) -> None:
        """They are asked for next; a digest that the database has as a manifest is no layer, whatever names it."""
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 500)])
        index = await reopened(index)
        await index.put_facts(ALPINE, [Descriptor(LAYER, TWO, 2), Descriptor(LAYER, ONE, 500)])
        assert index.peek_fact(ALPINE, TWO) == Fact(LAYER, 2)
        assert index.peek_fact(ALPINE, ONE) is None
        await index.aclose()

    async def test_the_last_word_on_a_blob_counts(self, index: Index) -> None:
        """Also where memory knew another."""
        for size in (1, 2):
            await index.put_facts(ALPINE, [Descriptor(LAYER, ONE, size)])
            assert await index.fact(ALPINE, ONE) == Fact(LAYER, size)

    async def test_can_be_forgotten(self, index: Index) -> None:
        """As a manifest and as anything else."""
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 500), Descriptor(LAYER, ONE, 500)])
        await index.forget_fact(ALPINE, ONE)
        assert index.peek_fact(ALPINE, ONE) is None
        assert await index.fact(ALPINE, ONE) is None

    async def test_many_are_put_in_one_transaction(self, index: Index) -> None:
        """A manifest with a thousand layers costs one."""
        statements: list[str] = []

        def trace() -> None:
            assert index._connected is not None
            index._connected._con.set_trace_callback(statements.append)

        await index._run(trace)
        await index.put_facts(ALPINE, [Descriptor(LAYER, Digest.of(b"%d" % n), n) for n in range(1000)])
        assert [statement for statement in statements if statement.startswith(("BEGIN", "COMMIT"))] == [
            "BEGIN IMMEDIATE",
            "COMMIT",
        ]

    async def test_restoring_changes_nothing_that_is_known(self, index: Index) -> None:
        """A rebuild runs beside the service."""
        await index.put_tag(ALPINE, LATEST, TagRecord(TWO, 5.0))
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 500)])
        again = await reopened(index)
        await again.restore(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 1), Descriptor(LAYER, TWO, 2)], [LATEST, Tag("old")])
        assert await again.tag(ALPINE, LATEST) == TagRecord(TWO, 5.0)
        assert await again.tag(ALPINE, Tag("old")) == TagRecord(ONE, 0.0)
        assert await again.fact(ALPINE, ONE) == Fact(OCI_MANIFEST, 500)
        assert await again.fact(ALPINE, TWO) == Fact(LAYER, 2)
        await again.aclose()


class TestListings:
    """The last answers of upstream."""

    async def test_are_kept_as_they_came(self, index: Index) -> None:
        """Byte for byte, whatever is in them, by repository, kind and query."""
        listing = Listing(b'{"tags":\n["\xff"]}\n', "application/json", "n=2&last=b", "artifactType")
        await index.put_listing(ALPINE, Kind.TAGS, "n=2", listing, 7.5)
        plain = Listing(b"", "text/plain")
        await index.put_listing(ALPINE, Kind.REFERRERS, "n=2", plain, 8.0)
        again = await reopened(index)
        assert await again.listing(ALPINE, Kind.TAGS, "n=2") == KeptListing(listing, 7.5)
        assert await again.listing(ALPINE, Kind.REFERRERS, "n=2") == KeptListing(plain, 8.0)
        assert await again.listing(ALPINE, Kind.TAGS, "") is None
        await again.aclose()

    async def test_any_query_will_do(self, index: Index) -> None:
        """It is the client's: long, empty, with characters that no database takes."""
        for number, query in enumerate(("", "x" * 60_000, "\udcff\x00 '\"", "list:a")):
            await index.put_listing(ALPINE, Kind.TAGS, query, Listing(b"%d" % number, "a"), 1.0)
            kept = await index.listing(ALPINE, Kind.TAGS, query)
            assert kept is not None
            assert kept.listing.body == b"%d" % number

    @pytest.mark.parametrize("restart", [False, True])
    async def test_take_no_more_room_than_they_may(
        self, index: Index, monkeypatch: pytest.MonkeyPatch, restart: bool
    ) -> None:
        """Queries without end make the oldest answers go."""
        monkeypatch.setattr(index_module, "_LISTINGS", 20_000)
        for number in range(60):
            await index.put_listing(ALPINE, Kind.TAGS, f"n={number}", Listing(b"x" * 1000, "a"), 1.0)
            if restart and number % 10 == 0:
                index = await reopened(index)
        there = [n for n in range(60) if await index.listing(ALPINE, Kind.TAGS, f"n={n}") is not None]
        assert 10 <= len(there) <= 20
        assert there == list(range(60 - len(there), 60))
        await index.aclose()

    async def test_one_that_is_put_again_and_again_takes_room_once(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others are not pushed out by it."""
        monkeypatch.setattr(index_module, "_LISTINGS", 20_000)
        await index.put_listing(ALPINE, Kind.TAGS, "other", Listing(b"other", "a"), 1.0)
        for _ in range(60):
            await index.put_listing(ALPINE, Kind.TAGS, "", Listing(b"x" * 1000, "a"), 1.0)
        assert await index.listing(ALPINE, Kind.TAGS, "other") is not None

    async def test_a_huge_one_is_not_kept(self, index: Index) -> None:
        """More than 4 MiB is nobody's list of tags."""
        await index.put_listing(ALPINE, Kind.TAGS, "", Listing(bytes((4 << 20) + 1), "a"), 1.0)
        assert await index.listing(ALPINE, Kind.TAGS, "") is None

    async def test_a_large_one_makes_no_file(self, index: Index, directory: Path) -> None:
        """All values are in the database."""
        await index.put_listing(ALPINE, Kind.TAGS, "", Listing(bytes(4 << 20), "a"), 1.0)
        assert {path.name for path in (directory / "index").iterdir()} <= {"cache.db", "cache.db-wal", "cache.db-shm"}


class TestRepositories:
    """The catalog."""

    async def test_names_what_has_a_tag_or_a_manifest(self, index: Index) -> None:
        """Once each; a repository of which only a layer is known has no image here."""
        await index.put_tag(repository("ghcr.io", "tagged"), LATEST, TagRecord(ONE, 1.0))
        await index.put_facts(repository("ghcr.io", "pulled/by-digest"), [Descriptor(OCI_MANIFEST, ONE, 1)])
        await index.put_facts(repository("ghcr.io", "layer"), [Descriptor(LAYER, ONE, 1)])
        for tag in ("a", "b"):
            await index.put_tag(ALPINE, Tag(tag), TagRecord(ONE, 1.0))
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 1)])
        names = ["docker.io/library/alpine", "ghcr.io/pulled/by-digest", "ghcr.io/tagged"]
        assert list(map(str, await index.repositories())) == names
        assert list(map(str, await index.repositories("", 2))) == names[:2]
        assert list(map(str, await index.repositories(names[0], 1))) == names[1:2]
        assert list(map(str, await index.repositories("ghcr.io/pulled"))) == names[1:]
        assert await index.repositories("zzz") == []
        assert await index.repositories("\uffff") == []
        assert len(await index.repositories("\udcff")) == 3  # no text at all, so nothing in particular

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        names=st.sets(st.from_regex(r"[a-c](?:[._/-]{1,1}[a-c]){0,3}", fullmatch=True), max_size=8),
        ports=st.sets(st.sampled_from(["localhost:5000", "localhost", "local", "[::1]:80"]), min_size=1),
        limit=st.integers(1, 4),
    )
    async def test_come_in_order_page_by_page(
        self, tmp_path: Path, names: set[str], ports: set[str], limit: int
    ) -> None:
        """The order is that of their names, whatever characters these have."""
        directory = tmp_path / os.urandom(4).hex()
        index = Index(directory)
        await index.open()
        expected = sorted(str(Repository(port, name)) for port in ports for name in names)
        for text in reversed(expected):
            await index.put_tag(records.parse_repository(text), LATEST, TagRecord(ONE, 1.0))
        found: list[str] = []
        while page := await index.repositories(found[-1] if found else "", limit):
            assert len(page) <= limit
            found += map(str, page)
        assert found == expected
        await index.aclose()


class TestDatabase:
    """The file underneath."""

    async def test_is_private_and_small(self, index: Index, directory: Path) -> None:
        """WAL, flushed at checkpoints; never mapped, since a mapped file that shrinks kills the process."""
        assert (directory / "index").stat().st_mode & 0o777 == 0o700

        def pragmas() -> list[object]:
            assert index._connected is not None
            names = ("journal_mode", "synchronous", "mmap_size", "cache_size", "locking_mode")
            return [index._connected._con.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        assert await index._run(pragmas) == ["wal", 1, 0, -1024, "exclusive"]
        assert not (directory / "index/cache.db-shm").exists()

    async def test_a_new_one_has_to_be_rebuilt_until_that_is_done(self, index: Index) -> None:
        """A rebuild that was killed begins again."""
        assert index.rebuild_needed
        again = await reopened(index)
        assert again.rebuild_needed
        await again.rebuilt()
        assert not again.rebuild_needed
        again = await reopened(again)
        assert not again.rebuild_needed
        await again.aclose()

    @pytest.mark.parametrize("damage", ["random", "empty", "truncated", "folder", "stranger", "deleted", "header"])
    async def test_a_broken_one_is_made_anew(self, index: Index, directory: Path, damage: str) -> None:
        """It works again at once, and what `index.json` knows is missing in it."""
        for number in range(300):
            await index.put_tag(ALPINE, Tag(f"t{number}"), TagRecord(ONE, 1.0))
        await index.rebuilt()
        await index.aclose()
        path = directory / "index" / "cache.db"
        data = path.read_bytes()
        match damage:
            case "random":
                path.write_bytes(os.urandom(len(data)))
            case "empty":
                path.write_bytes(b"")
            case "truncated":
                path.write_bytes(data[: len(data) // 2])
            case "header":
                path.write_bytes(data[:100] + os.urandom(4000) + data[4100:])
            case "stranger":
                path.unlink()
                with sqlite3.connect(path) as database:
                    database.execute("CREATE TABLE Cache (x)")
                    database.execute("CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value)")
                database.close()
            case _:
                path.unlink()
                (directory / "index/cache.db-wal").write_bytes(os.urandom(5000))
                if damage == "folder":
                    path.mkdir()
                    (path / "file").touch()
        again = Index(directory / "index")
        await again.open()
        assert again.rebuild_needed
        assert await again.tag(ALPINE, Tag("t0")) is None
        await again.put_tag(ALPINE, LATEST, TagRecord(TWO, 1.0))
        again = await reopened(again)
        assert await again.tag(ALPINE, LATEST) == TagRecord(TWO, 1.0)
        await again.aclose()

    async def test_one_that_breaks_while_it_is_used_is_made_anew(self, index: Index, directory: Path) -> None:
        """One call fails, the next ones work, and a rebuild is asked for."""
        for number in range(1000):
            await index.put_tag(ALPINE, Tag(f"t{number}"), TagRecord(ONE, 1.0))
        await index.rebuilt()
        index = await reopened(index)
        with (directory / "index/cache.db").open("r+b") as file:
            size = file.seek(0, 2)
            for page in range(2, size // 4096):
                file.seek(page * 4096)
                file.write(os.urandom(4096))
        with pytest.raises(CacheFailed):
            await asyncio.to_thread(lambda: list(index.walk_tags()))
        assert index.rebuild_needed
        assert await asyncio.to_thread(lambda: list(index.walk_tags())) == []
        await index.put_tag(ALPINE, LATEST, TagRecord(TWO, 1.0))
        assert [row async for batch in index.tag_rows() for row in batch] == [(ALPINE, LATEST, TagRecord(TWO, 1.0))]
        await index.aclose()

    def writable(self, index: Index, yes: bool) -> None:
        """Whether the database can be written."""
        assert index._connected is not None
        index._connected._con.execute(f"PRAGMA query_only = {not yes}")

    async def test_memory_serves_while_it_cannot_be_written(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What upstream said is not lost on those who ask next; and the index works again by itself."""
        index = Index(directory / "index")
        await index.open()
        await index._run(self.writable, index, False)
        with pytest.raises(CacheFailed):
            await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        with pytest.raises(CacheFailed):
            await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 1), Descriptor(LAYER, TWO, 2)])
        assert await index.tag(ALPINE, LATEST) == TagRecord(ONE, 1.0)
        assert index.peek_fact(ALPINE, ONE) == Fact(OCI_MANIFEST, 1)
        assert index.peek_fact(ALPINE, TWO) == Fact(LAYER, 2)
        assert not index.rebuild_needed or await index.tag(ALPINE, Tag("unknown")) is None
        await index._run(self.writable, index, True)
        await index.put_tag(ALPINE, Tag("next"), TagRecord(TWO, 1.0))
        index = await reopened(index)
        assert await index.tag(ALPINE, Tag("next")) == TagRecord(TWO, 1.0)
        await index.aclose()

    async def test_what_could_not_be_written_is_written_with_what_can(self, directory: Path) -> None:
        """Else the database would lack it for good: what is in memory is not written again. Not what was forgotten
        meanwhile.
        """
        index = Index(directory / "index")
        await index.open()
        await index._run(self.writable, index, False)
        with pytest.raises(CacheFailed):
            await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, ONE, 1)])
        for tag in (LATEST, Tag("gone")):
            with pytest.raises(CacheFailed):
                await index.put_tag(ALPINE, tag, TagRecord(ONE, 1.0))
        with pytest.raises(CacheFailed):
            await index.forget_tag(ALPINE, Tag("gone"))
        assert await asyncio.to_thread(lambda: list(index.walk_tags())) == []
        assert index.is_behind
        await index._run(self.writable, index, True)
        assert await asyncio.to_thread(lambda: list(index.walk_tags())) == [(ALPINE, LATEST, TagRecord(ONE, 1.0))]
        assert not index.is_behind
        index = await reopened(index)
        assert await index.fact(ALPINE, ONE) == Fact(OCI_MANIFEST, 1)
        await index.aclose()

    async def test_one_that_cannot_be_opened_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not at each call; a disk that was full at the start may not be so for ever."""
        (tmp_path / "index").touch()
        index = Index(tmp_path / "index")
        with pytest.raises(CacheFailed) as failed:
            await index.open()
        assert failed.value.detail == {"errno": "EEXIST"}
        (tmp_path / "index").unlink()
        with pytest.raises(CacheFailed, match="could not be opened"):
            await index.tag(ALPINE, LATEST)
        monkeypatch.setattr(index_module, "_TRY_AGAIN", 0.0)
        assert await index.tag(ALPINE, LATEST) is None
        assert index.rebuild_needed
        await index.aclose()

    @pytest.mark.parametrize("new", [True, False])
    async def test_one_that_fails_as_it_is_opened_is_tried_again(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, new: bool
    ) -> None:
        """A disk that is full after the first page, say: no half of it is used."""
        index = Index(directory / "index")
        if not new:
            await index.open()
            await index.rebuilt()
            await index.aclose()
            index = Index(directory / "index")
        real = ContentQueues.__init__

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(ContentQueues, "__init__", full)
        with pytest.raises(CacheFailed, match="full"):
            await index.open()
        assert not index.is_open
        monkeypatch.setattr(ContentQueues, "__init__", real)
        monkeypatch.setattr(index_module, "_TRY_AGAIN", 0.0)
        assert await index.used_of([ONE]) == {}
        assert index.rebuild_needed is new
        await index.aclose()

    async def test_after_the_end(self, index: Index) -> None:
        """A closed index says so, and may be closed again."""
        await index.aclose()
        await index.aclose()
        with pytest.raises(CacheFailed, match="closed"):
            await index.put_tag(ALPINE, LATEST, TagRecord(ONE, 1.0))
        with pytest.raises(CacheFailed, match="closed"):
            list(index.walk_tags())
        assert repr(index).endswith("closed>")


def test_a_tag_of_an_earlier_version_has_no_endpoint() -> None:
    """Rows written before endpoints were put down are read as they are."""
    assert records.parse_tag(b'{"d": "%s", "c": 5.0}' % ONE.encode()) == TagRecord(ONE, 5.0, None)
    for record in (TagRecord(ONE, 5.0), TagRecord(ONE, 5.0, "ghcr.io"), TagRecord(ONE, 5.0, None, 4.0)):
        assert records.parse_tag(records.tag_row(record)) == record


async def test_where_content_came_from_goes_with_it(index: Index) -> None:
    """The row of the endpoint is deleted with that of the last use."""
    await index.put_origin(ONE, "ghcr.io")
    assert await index.origins_of([ONE, TWO]) == {ONE: "ghcr.io"}
    await index.content(ContentQueues.enter, {ONE: Used(1.0, 512), TWO: Used(2.0, 512)})
    assert await index.used_of([ONE, TWO]) == {ONE: Used(1.0, 512), TWO: Used(2.0, 512)}
    await index.content(ContentQueues.forget, [ONE])
    assert (await index.origins_of([ONE]), await index.used_of([ONE, TWO])) == ({}, {TWO: Used(2.0, 512)})
