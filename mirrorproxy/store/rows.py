"""Rows of text keys and bytes values, kept by diskcache (in SQLite). The only module that knows diskcache. All blocks.

diskcache has other ways to keep a value, and whoever can forge a row chooses among them: pickle, which runs code
(CVE-2025-69872), and a file name, which reads, and at the next write deletes, any file. `ClosedDisk` knows none of
them, in either direction. diskcache's settings are in the same database, and are checked before it sees them.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import diskcache
from diskcache.core import MODE_RAW

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store.files import can_only_be_read

DATABASE = "cache.db"
"""diskcache's name for its file."""

_SETTINGS = {
    **diskcache.DEFAULT_SETTINGS,  # all of them are given, so that none comes from the database
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 1 << 62,
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 1,  # NORMAL: a power cut may take the last rows, and leaves the database whole
    "sqlite_cache_size": -1024,  # KiB; the rest is in the page cache: 7 us a row, of 13,000, with 512 to 4,096
    "sqlite_mmap_size": 0,  # a mapped file that somebody truncates kills the process (SIGBUS)
}
_KNOWN_SETTINGS = {*_SETTINGS, "count", "size", "hits", "misses"}
_LOCKED_FOR = 10  # seconds to wait for a lock; we are the only writer
_TOGETHER = 64  # keys in one statement
_ROW_COST = 200  # bytes, roughly: the other columns and the index
_CORRUPT, _NOT_A_DATABASE, _OTHER_SCHEMA = 11, 26, 1  # primary result codes of SQLite


class RefusedRowError(ValueError):
    """A row that was not written by us: its key is no text, or its value no bytes in the database."""


class BrokenDatabaseError(Exception):
    """The database is no use: it has to be made anew."""


class ClosedDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Text to bytes, in the database, and nothing else."""

    def put(self, key: object) -> tuple[str, bool]:
        """The key as it is kept."""
        if type(key) is not str:
            _refuse(f"a key of type {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """The key as it was put."""
        if raw != 1 or type(key) is not str:
            _refuse(f"a key of type {type(key).__name__}, raw={raw!r:.20}")
        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[int, int, None, bytes]:  # noqa: ARG002
        """The value as it is kept, whatever its size."""
        if read or type(value) is not bytes:
            _refuse(f"a value of type {type(value).__name__}")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        """The value as it was stored."""
        if read or mode != MODE_RAW or filename is not None or type(value) is not bytes:
            _refuse(f"a value of type {type(value).__name__}, mode={mode!r:.20}, with a file: {filename is not None}")
        return value

    def filename(self, *_: object, **__: object) -> NoReturn:
        """No value is a file."""
        _refuse("a file")

    def remove(self, file_path: object) -> None:
        """Do nothing: diskcache removes the file of a row that is replaced or deleted, and no row of ours has one."""


class Rows(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """The table. `get`, `set`, `add`, `transact` and `close` are diskcache's.

    The rest is SQL of our own: diskcache walks its keys from the first to the last only, and deletes no row without
    reading it. It uses `_sql`, the connection of this thread, and the columns that diskcache 5 has.
    """

    def __init__(self, directory: Path) -> None:
        try:
            super().__init__(str(directory), timeout=_LOCKED_FOR, disk=ClosedDisk, **_SETTINGS)
        except BaseException:
            self.close()
            raise
        # A forged row that is not UTF-8 shall be read, so that it can be refused.
        self._con.text_factory = lambda text: text.decode(errors="replace")

    @property
    def _con(self) -> sqlite3.Connection:
        """The connection of the thread. diskcache's own reads the settings first, which would map a file."""
        if getattr(self._local, "con", None) is None:
            self._local.pid = os.getpid()
            self._local.con = (_connected_to_frozen if self.frozen else _connected)(Path(self._directory))
            for name in ("synchronous", "cache_size", "mmap_size"):  # which are not kept in the database
                self._local.con.execute(f"PRAGMA {name} = {_SETTINGS[f'sqlite_{name}']}")
        return self._local.con  # type: ignore[no-any-return]  # diskcache has no types

    @property
    def frozen(self) -> bool:
        """Can it only be read, see `FrozenRows`?"""
        return False

    def page(self, prefix: str, after: bytes, limit: int) -> list[tuple[int, bytes, int, int, int, object]]:
        """The next rows behind the key `after`: rowid, key, raw, mode, whether there is a file, value."""
        # As bytes, since a forged key may not be UTF-8.
        return self._sql(  # type: ignore[no-any-return]  # diskcache has no types
            "SELECT rowid, CAST(key AS BLOB), raw, mode, filename IS NOT NULL, value FROM Cache"
            " WHERE key > CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?",
            (after, _end(prefix), limit),
        ).fetchall()

    def next_key(self, prefix: str, after: bytes) -> bytes | None:
        """The first key behind `after`."""
        rows = self.page(prefix, after, 1)
        return rows[0][1] if rows else None

    def drop(self, key: str) -> None:
        """Delete the row, whatever is in it."""
        self._sql("DELETE FROM Cache WHERE key = ?", (key,))

    def drop_all(self, keys: Iterable[str]) -> None:
        """Delete these rows, whatever is in them."""
        wanted = iter(keys)
        while some := tuple(islice(wanted, _TOGETHER)):
            marks = ", ".join("?" * len(some))
            self._sql(f"DELETE FROM Cache WHERE key IN ({marks})", some)  # noqa: S608 - question marks

    def drop_row(self, rowid: int) -> None:
        """Delete the row, whatever is in it."""
        self._sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))

    def volume_of(self, prefix: str) -> int:
        """How many bytes the rows take, roughly."""
        query = "SELECT TOTAL(LENGTH(value) + ?) FROM Cache WHERE key > ? AND key < ?"
        return int(self._sql(query, (_ROW_COST, prefix, _end(prefix))).fetchone()[0])

    def drop_oldest(self, prefix: str, leave: int) -> None:
        """Delete those that were stored first, until the rest takes `leave` bytes."""
        rows = self._sql(
            "SELECT rowid, LENGTH(value) + ? FROM Cache WHERE key > ? AND key < ? ORDER BY store_time DESC",
            (_ROW_COST, prefix, _end(prefix)),
        ).fetchall()
        for rowid, size in rows:
            leave -= size or _ROW_COST
            if leave < 0:
                self.drop_row(rowid)


class FrozenRows(Rows):
    """The table on a file system that can only be read. Whatever would change it raises `sqlite3.Error`, or diskcache's
    `Timeout`.
    """

    def __init__(self, directory: Path) -> None:
        # What diskcache's own does, but for what it writes.
        self._directory = str(directory)
        self._timeout = _LOCKED_FOR
        self._local = threading.local()
        self._txn_id = None
        self._disk = ClosedDisk(str(directory))
        for name, value in _SETTINGS.items():
            setattr(self, name, value)
        self._con.text_factory = lambda text: text.decode(errors="replace")

    @property
    def frozen(self) -> bool:
        """It can."""
        return True


def _connected_to_frozen(directory: Path) -> sqlite3.Connection:
    """A connection that needs no lock and makes no file. With a log beside it the database is read through that, which
    a crash may have left, or the file system's becoming read-only; without one it is whole by itself.
    """
    way = "vfs=unix-none" if (directory / f"{DATABASE}-wal").exists() else "immutable=1"
    database = sqlite3.connect(
        f"{(directory / DATABASE).absolute().as_uri()}?mode=ro&{way}", uri=True, isolation_level=None
    )
    database.execute("PRAGMA locking_mode = EXCLUSIVE")  # as below
    return database


def _connected(directory: Path) -> sqlite3.Connection:
    """A connection that locks the database for itself: then SQLite keeps the index of its log in memory, and not in
    the file `cache.db-shm`, which it would map: whoever truncates that kills the process (SIGBUS).
    """
    database = sqlite3.connect(directory / DATABASE, timeout=_LOCKED_FOR, isolation_level=None)
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database


def checked_row(raw: object, mode: object, has_file: object, key: bytes, value: object) -> tuple[str, bytes]:
    """Key and value of a row of a `page`. Raises a `ValueError` where `ClosedDisk` would refuse it."""
    if raw != 1 or mode != MODE_RAW or has_file or type(value) is not bytes:
        _refuse(f"raw={raw!r:.20}, mode={mode!r:.20}, a value of type {type(value).__name__}, with a file: {has_file}")
    return key.decode(), value


def connect(directory: Path) -> Rows:
    """Open the database in `directory`, or make one. Raises `BrokenDatabaseError`, or `CacheFailed`."""
    with failures(opening=True):
        if can_only_be_read(directory):
            return FrozenRows(directory)
        if (directory / DATABASE).exists():
            with closing(_connected(directory)) as database:
                found = {key for (key,) in database.execute("SELECT key FROM Settings")}
            if not found <= _KNOWN_SETTINGS:
                raise BrokenDatabaseError("it has settings that are not ours")
        try:
            return Rows(directory)
        except (sqlite3.Error, OSError):
            raise
        except Exception as error:  # what a forged schema does inside diskcache has no end
            raise BrokenDatabaseError(f"{type(error).__name__}: {error}") from error


@contextmanager
def failures(*, opening: bool = False) -> Iterator[None]:
    """Turn what SQLite and diskcache raise into `CacheFailed`, or `BrokenDatabaseError` where a new one is needed."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte; the module's own errors have none. What else fails (full, locked, read-only, no permission, no
        # descriptor left) may pass.
        code: Any = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in {_CORRUPT, _NOT_A_DATABASE} or (opening and code & 0xFF == _OTHER_SCHEMA):
            raise BrokenDatabaseError(str(error)) from error
        raise CacheFailed(f"the index failed: {error}") from error
    except diskcache.Timeout as error:
        raise CacheFailed("the index failed: it is locked or cannot be written") from error
    except OSError as error:
        raise CacheFailed(f"the index failed: {error.strerror or error}") from error


def _end(prefix: str) -> str:
    """The first text behind all keys that begin with `prefix`, which ends with a colon."""
    return f"{prefix[:-1]};"


def _refuse(what: str) -> NoReturn:
    raise RefusedRowError(f"refused: {what}")
