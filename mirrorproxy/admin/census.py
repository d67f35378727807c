"""Who names what: counts over all cached content, whose memory does not grow with it.

A temporary database that SQLite keeps in memory as long as it is small, and in a nameless file otherwise. It belongs to
one thread at a time. All but `new_census` blocks.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from mirrorproxy.admin.anatomy import Piece
from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Digest

_SCHEMA = """
CREATE TABLE holder (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE blob (id INTEGER PRIMARY KEY, digest TEXT UNIQUE, blocks INTEGER, holders INTEGER);
CREATE TABLE held (holder INTEGER, blob INTEGER, PRIMARY KEY (holder, blob)) WITHOUT ROWID;
CREATE TABLE note (id INTEGER PRIMARY KEY, holder INTEGER, text TEXT);
"""


class Share(NamedTuple):
    """Bytes on the disk of one holder: what nobody else holds, what others hold too; and how many pieces."""

    own: int
    shared: int
    objects: int


class Census:
    """Holders (images, repositories), the pieces that each names, and notes about them. `close` it."""

    def __init__(self) -> None:
        with _failures():
            self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            self._database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA cache_size = -16384; {_SCHEMA} BEGIN")

    def close(self) -> None:
        """Throw it away."""
        self._database.close()

    def add(self, holder: str, pieces: Iterable[Piece]) -> bool:
        """Count what `holder` names, as far as it is here. False where it was counted before, and is left as it was."""
        with _failures():
            if self._database.execute("INSERT OR IGNORE INTO holder (name) VALUES (?)", (holder,)).rowcount == 0:
                return False
        self.extend(holder, pieces)
        return True

    def extend(self, holder: str, pieces: Iterable[Piece]) -> None:
        """Count more of a holder; what it has already counts once."""
        run = self._database.execute
        with _failures():
            run("INSERT OR IGNORE INTO holder (name) VALUES (?)", (holder,))
            (number,) = run("SELECT id FROM holder WHERE name = ?", (holder,)).fetchone()
            for piece in pieces:
                if piece.blocks is None:
                    continue
                run(
                    "INSERT OR IGNORE INTO blob (digest, blocks, holders) VALUES (?, ?, 0)",
                    (piece.digest, piece.blocks),
                )
                (blob,) = run("SELECT id FROM blob WHERE digest = ?", (piece.digest,)).fetchone()
                if run("INSERT OR IGNORE INTO held VALUES (?, ?)", (number, blob)).rowcount:
                    run("UPDATE blob SET holders = holders + 1 WHERE id = ?", (blob,))

    def holders(self) -> list[str]:
        """All of them, in order. As many as there are repositories, say: not for images."""
        with _failures():
            return [name for (name,) in self._database.execute("SELECT name FROM holder ORDER BY name")]

    def strange(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Those that nobody holds."""
        run = self._database.execute
        with _failures():
            return [
                each for each in pieces if not run("SELECT 1 FROM blob WHERE digest = ?", (each.digest,)).fetchone()
            ]

    def share(self, holder: str) -> Share:
        """What a holder takes."""
        with _failures():
            found = self._database.execute(
                "SELECT TOTAL(blocks * (holders = 1)), TOTAL(blocks * (holders > 1)), COUNT(*) FROM held"
                " JOIN blob ON blob.id = held.blob WHERE holder = (SELECT id FROM holder WHERE name = ?)",
                (holder,),
            ).fetchone()
        return Share(*map(int, found))

    def own(self, holder: str) -> list[tuple[Digest, int]]:
        """What nobody else holds, with the bytes that it takes on the disk."""
        with _failures():
            rows = self._database.execute(
                "SELECT digest, blocks FROM held JOIN blob ON blob.id = held.blob"
                " WHERE holder = (SELECT id FROM holder WHERE name = ?) AND holders = 1",
                (holder,),
            ).fetchall()
        return [(Digest(digest), blocks) for digest, blocks in rows]

    def note(self, holder: str, text: str) -> None:
        """Keep a text about a holder."""
        with _failures():
            self._database.execute(
                "INSERT INTO note (holder, text) SELECT id, ? FROM holder WHERE name = ?", (text, holder)
            )

    def notes(self, after: int, limit: int) -> list[tuple[int, str, str]]:
        """The next notes in the order of their making: number, holder, text."""
        with _failures():
            return self._database.execute(
                "SELECT note.id, name, text FROM note JOIN holder ON holder.id = note.holder"
                " WHERE note.id > ? ORDER BY note.id LIMIT ?",
                (after, limit),
            ).fetchall()


@asynccontextmanager
async def new_census() -> AsyncIterator[Census]:
    """A census for an async block. Raises `CacheFailed`."""
    census = await asyncio.to_thread(Census)
    try:
        yield census
    finally:
        await asyncio.to_thread(census.close)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CacheFailed(f"cannot count: {error}; is there room for temporary files?") from error
