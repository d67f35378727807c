"""Rows that we did not write: refused, deleted, counted, and harmless. The database is forged by hand.

diskcache 5.6.3 runs code for a row with `mode` 4 (CVE-2025-69872), reads any file for one with a `filename`, and
removes that file when the row is replaced or deleted.
"""

import json
import os
import pickle
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import diskcache
import pytest

from mirrorproxy.manifests import OCI_MANIFEST
from mirrorproxy.names import Descriptor, Digest, Tag, repository
from mirrorproxy.registry import Kind
from mirrorproxy.store.index import Index
from mirrorproxy.store.records import Fact, TagRecord
from mirrorproxy.store.rows import ClosedDisk, RefusedRowError

ALPINE = repository("docker.io", "alpine")
FORGED, HONEST = Tag("forged"), Tag("honest")
DIGEST = Digest.of(b"1")
RECORD = TagRecord(DIGEST, 1.0)
KEY = "tag:docker.io/library/alpine forged"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.path),)


@pytest.fixture
async def closed(directory: Path) -> Path:
    """An index with two tags, closed."""
    index = Index(directory / "index")
    await index.open()
    for tag in (FORGED, HONEST):
        await index.put_tag(ALPINE, tag, RECORD)
    await index.rebuilt()
    await index.aclose()
    return directory / "index"


def forge(directory: Path, statement: str, *values: object) -> None:
    """Run SQL on the database."""
    database = sqlite3.connect(directory / "cache.db")
    with database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


async def opened(directory: Path) -> Index:
    """The index, opened again."""
    index = Index(directory)
    await index.open()
    return index


@pytest.fixture(
    params=["pickle", "pickle file", "binary file", "text file", "file and value", "text", "no text", "number", "null"]
)
async def forged(request: pytest.FixtureRequest, closed: Path, tmp_path: Path) -> AsyncIterator[Path]:
    """A row for `FORGED` that is not ours; the file that it is after, which has to survive."""
    victim = tmp_path / "victim"
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    victim.write_bytes(bomb if request.param == "pickle file" else json.dumps({"d": DIGEST, "c": 1.0}).encode())
    before = victim.read_bytes()
    name = os.path.relpath(victim, closed)
    mode, filename, value = {
        "pickle": (4, None, bomb),
        "pickle file": (4, name, None),
        "binary file": (2, name, None),
        "text file": (3, name, None),
        "file and value": (1, name, json.dumps({"d": DIGEST, "c": 1.0}).encode()),
        "text": (1, None, json.dumps({"d": DIGEST, "c": 1.0})),
        "no text": (1, None, b"\xff\xfe"),
        "number": (1, None, 5),
        "null": (0, None, None),
    }[request.param]
    forge(closed, "UPDATE Cache SET mode=?, filename=?, value=? WHERE key=?", mode, filename, value, KEY)
    if request.param == "no text":
        forge(closed, "UPDATE Cache SET value=CAST(value AS TEXT) WHERE key=?", KEY)
    yield closed
    assert victim.read_bytes() == before
    assert not (tmp_path / "exploded").exists()


class TestForgedValues:
    """Whatever the row says, no code runs, no file is read or removed."""

    async def test_is_absent_when_it_is_read(self, forged: Path, caplog: pytest.LogCaptureFixture) -> None:
        """And is gone after that; what stood there before is sought in `index.json`, after a restart too."""
        index = await opened(forged)
        assert not index.rebuild_needed, "thrown away for a forged row"
        assert await index.tag(ALPINE, FORGED) is None
        assert index.refused == 1
        assert index.rebuild_needed
        await index.aclose()
        index = await opened(forged)
        assert index.rebuild_needed
        index.refused = 1
        assert caplog.text.count("not ours") == 1
        assert await index.tag(ALPINE, FORGED) is None
        assert index.refused == 1
        assert await index.tag(ALPINE, HONEST) == RECORD
        await index.aclose()

    async def test_is_absent_when_all_are_read(self, forged: Path) -> None:
        """The others are read on."""
        index = await opened(forged)
        for _ in range(2):
            assert [row async for batch in index.tag_rows() for row in batch] == [(ALPINE, HONEST, RECORD)]
            assert index.refused == 1
        await index.aclose()

    async def test_can_be_replaced(self, forged: Path) -> None:
        """Unread."""
        index = await opened(forged)
        await index.put_tag(ALPINE, FORGED, RECORD)
        await index.aclose()
        index = await opened(forged)
        assert await index.tag(ALPINE, FORGED) == RECORD
        await index.aclose()

    async def test_can_be_forgotten(self, forged: Path) -> None:
        """Unread."""
        index = await opened(forged)
        await index.forget_tag(ALPINE, FORGED)
        assert await index.tag(ALPINE, FORGED) is None
        assert index.refused == 0
        await index.aclose()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b'{"d":"sha256:0","c":1}',
        b'{"d":5,"c":1}',
        json.dumps({"d": DIGEST, "c": "now"}).encode(),
        json.dumps({"d": DIGEST, "c": True}).encode(),
        json.dumps({"d": DIGEST, "c": float("nan")}).encode(),
        json.dumps({"d": DIGEST, "c": -1}).encode(),
        json.dumps({"d": "../../" + DIGEST, "c": 1}).encode(),
    ],
)
async def test_a_value_that_does_not_parse_is_absent(closed: Path, value: bytes) -> None:
    """Damaged or forged, it is deleted."""
    forge(closed, "UPDATE Cache SET value=? WHERE key=?", value, KEY)
    index = await opened(closed)
    assert await index.tag(ALPINE, FORGED) is None
    assert index.refused == 1
    assert [row async for batch in index.tag_rows() for row in batch] == [(ALPINE, HONEST, RECORD)]
    await index.aclose()


@pytest.mark.parametrize(
    "key",
    [
        "tag:docker.io/library/alpine",
        "tag:docker.io/library/alpine ",
        "tag:docker.io/library/alpine ../x",
        "tag:docker.io/alpine latest",
        "tag:docker.io/../x latest",
        "tag:DOCKER.IO/x latest",
        "tag:index.docker.io/library/x latest",
        "tag: latest",
        "tag:",
        "tag:docker.io",
        b"tag:\xff\xff latest",
        b"tag:a\x80b/c latest",
        b"tag:docker.io/library/alpine \xff",
    ],
)
async def test_a_key_that_does_not_parse_is_passed_over(closed: Path, key: str | bytes) -> None:
    """No name that is not one comes out of the index, and none of them stops a walk."""
    forge(closed, "UPDATE Cache SET key=CAST(? AS TEXT) WHERE key=?", key, KEY)
    index = await opened(closed)
    assert await index.repositories() == [ALPINE]
    for _ in range(2):
        assert [row async for batch in index.tag_rows() for row in batch] == [(ALPINE, HONEST, RECORD)]
        assert index.refused == (key != "tag:")
    await index.aclose()


async def test_a_pickled_key_is_never_unpickled(closed: Path, tmp_path: Path) -> None:
    """Neither as the key that a walk meets, nor beside the key that is asked for."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    forge(closed, "UPDATE Cache SET raw=0, key=? WHERE key=?", bomb, KEY)
    insert = "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, 1, ?)"
    forge(closed, insert, KEY.replace("forged", "honest"), b"{}")
    index = await opened(closed)
    assert [row async for batch in index.tag_rows() for row in batch] == [(ALPINE, HONEST, RECORD)]
    assert index.refused == 1
    assert await index.tag(ALPINE, HONEST) == RECORD
    await index.aclose()
    assert not (tmp_path / "exploded").exists()


async def test_every_kind_of_row_is_checked(closed: Path) -> None:
    """Facts and listings as well as tags."""
    index = await opened(closed)
    await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, DIGEST, 1)])
    await index.aclose()
    for value in (
        b'{"t": 5, "s": 1}',
        b'{"t": "a/b", "s": -1}',
        b'{"t": "a/b", "s": true}',
        b"[1]",
        b"[1, 2, 3]",
        b"5",
    ):
        forge(closed, "UPDATE Cache SET value=? WHERE key LIKE 'manifest:%'", value)
        index = await opened(closed)
        assert await index.fact(ALPINE, DIGEST) is None
        assert index.refused == 1
        await index.put_facts(ALPINE, [Descriptor(OCI_MANIFEST, DIGEST, 1)])
        assert await index.fact(ALPINE, DIGEST) == Fact(OCI_MANIFEST, 1)
        await index.aclose()
    forge(closed, "UPDATE Cache SET key=?, value=? WHERE key=?", "list:x", b'{"t":1}', KEY)
    index = await opened(closed)
    assert await index.listing(ALPINE, Kind.TAGS, "") is None
    await index.aclose()


@pytest.mark.parametrize(
    ("key", "value"),
    [("get", "x"), ("_sql", 1), ("sqlite_temp_store_directory", "'/'"), ("disk_directory", "/"), ("timeout", "x")],
)
async def test_settings_that_are_not_ours_make_a_new_database(closed: Path, key: str, value: object) -> None:
    """The package makes attributes and PRAGMAs of whatever it finds in that table."""
    forge(closed, "INSERT INTO Settings VALUES (?, ?)", key, value)
    index = Index(closed)
    await index.open()
    assert index.rebuild_needed
    await index.put_tag(ALPINE, HONEST, RECORD)
    assert await index.tag(ALPINE, HONEST) == RECORD
    await index.aclose()


async def test_known_settings_are_ours_whatever_the_database_says(closed: Path) -> None:
    """Culling by itself would forget tags; a mapped database could kill the process."""
    for key, value in {
        "cull_limit": 10,
        "eviction_policy": "least-recently-used",
        "size_limit": 1,
        "sqlite_mmap_size": 1 << 26,
        "disk_min_file_size": 0,
        "statistics": 1,
    }.items():
        forge(closed, "UPDATE Settings SET value=? WHERE key=?", value, key)
    index = await opened(closed)
    found = index._connected
    assert found is not None
    assert (found.cull_limit, found.eviction_policy, found.statistics) == (0, "none", 0)
    assert found.size_limit > 1 << 60
    for number in range(100):
        await index.put_tag(ALPINE, Tag(f"t{number}"), RECORD)
    assert sum([len(batch) async for batch in index.tag_rows()]) == 102
    assert await index._run(lambda: found._con.execute("PRAGMA mmap_size").fetchone()[0]) == 0
    await index.aclose()
    assert {path.name for path in closed.iterdir()} == {"cache.db"}


class TestClosedDisk:
    """Text to bytes, and nothing else: in both directions."""

    disk = ClosedDisk("/nowhere")

    @pytest.mark.parametrize("key", [b"bytes", 5, 1.5, None, ("a", 1), Tag("a")])
    def test_refuses_other_keys(self, key: object) -> None:
        """Also a subclass of text, which SQLite would keep as another type."""
        with pytest.raises(RefusedRowError):
            self.disk.put(key)

    @pytest.mark.parametrize("value", ["text", 5, None, bytearray(b"x"), ["x"]])
    def test_refuses_other_values(self, value: object) -> None:
        """What it does not know it does not pickle."""
        with pytest.raises(RefusedRowError):
            self.disk.store(value, False)
        with pytest.raises(RefusedRowError):
            self.disk.store(b"x", True)

    @pytest.mark.parametrize(("key", "raw"), [("a", 0), (b"a", 1), (5, 1), ("a", None)])
    def test_refuses_to_read_other_keys(self, key: object, raw: object) -> None:
        """`raw` 0 means a pickle."""
        with pytest.raises(RefusedRowError):
            self.disk.get(key, raw)

    def test_makes_no_files(self) -> None:
        """Nor removes any."""
        with pytest.raises(RefusedRowError):
            self.disk.filename("a", b"x")
        self.disk.remove("../anything")

    def test_gives_back_what_it_took(self) -> None:
        """Whatever its size."""
        value = bytes(1 << 20)
        assert self.disk.get(*self.disk.put("key")) == "key"
        _, mode, filename, kept = self.disk.store(value, False)
        assert self.disk.fetch(mode, filename, kept, False) == value


def test_the_hole_is_there_without_us(tmp_path: Path) -> None:
    """What these tests forge does work on diskcache itself: when this fails they show nothing any more."""
    cache = diskcache.Cache(str(tmp_path / "cache"))
    cache["a"] = b"x"
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    cache._sql("UPDATE Cache SET mode=4, value=?", (bomb,))
    cache["a"]
    assert (tmp_path / "exploded").exists()
    (tmp_path / "victim").write_bytes(b"secret")
    cache._sql("UPDATE Cache SET mode=2, filename='../victim', value=NULL")
    assert cache["a"] == b"secret"
    cache["a"] = b"y"
    assert not (tmp_path / "victim").exists()
    cache.close()
