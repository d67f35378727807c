"""What is on the disk, by the index: its size, its last use, its place in the queues of `eviction`. All blocks.

A table of its own beside diskcache's, in the same database and the same transactions: 115 bytes a piece of content,
nothing in memory, and sums that are kept by the database itself, so that a start knows them without counting.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mirrorproxy.names import Digest
from mirrorproxy.store import eviction, records
from mirrorproxy.store.eviction import Entry, Queue
from mirrorproxy.store.records import Used
from mirrorproxy.store.rows import BrokenDatabaseError, Rows

_SCHEMA = """
CREATE TABLE IF NOT EXISTS Content (
    digest BLOB PRIMARY KEY, blocks INTEGER NOT NULL, last REAL NOT NULL, uses INTEGER NOT NULL,
    queue INTEGER NOT NULL, place INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS ContentPlaces ON Content (queue, place);
CREATE TABLE IF NOT EXISTS Taken (queue INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, objects INTEGER NOT NULL);
INSERT OR IGNORE INTO Taken VALUES (1, 0, 0), (2, 0, 0), (3, 0, 0);
CREATE TRIGGER IF NOT EXISTS ContentCame AFTER INSERT ON Content BEGIN
    UPDATE Taken SET bytes = bytes + NEW.blocks, objects = objects + 1 WHERE queue = NEW.queue;
END;
CREATE TRIGGER IF NOT EXISTS ContentWent AFTER DELETE ON Content BEGIN
    UPDATE Taken SET bytes = bytes - OLD.blocks, objects = objects - 1 WHERE queue = OLD.queue;
END;
CREATE TRIGGER IF NOT EXISTS ContentMoved AFTER UPDATE OF queue, blocks ON Content BEGIN
    UPDATE Taken SET bytes = bytes - OLD.blocks, objects = objects - 1 WHERE queue = OLD.queue;
    UPDATE Taken SET bytes = bytes + NEW.blocks, objects = objects + 1 WHERE queue = NEW.queue;
END
"""
_COLUMNS = "digest, blocks, last, uses, place"
_STATE = 0  # no queue: its row in Taken says that the account is complete, and was left so
_TOGETHER = 64  # digests in one question
_NO_PLACE = 1 << 62
_HERE = f"queue IN ({Queue.SMALL:d}, {Queue.MAIN:d})"  # and is no ghost
_ALGORITHMS = {32: "sha256", 64: "sha512"}


class ContentQueues:
    """The table: the `Queues` of an eviction, and what else is asked of it. In the index's thread, in a transaction."""

    def __init__(self, rows: Rows) -> None:
        """Raises `sqlite3.Error` where there is another table of this name, `BrokenDatabaseError` for forged places."""
        self._rows = rows
        for statement in () if rows.frozen else _statements(_SCHEMA):
            rows._sql(statement)  # noqa: SLF001 - as in `Rows`
        self._execute(f"SELECT {_COLUMNS}, queue FROM Content LIMIT 1")  # noqa: S608 - our own words
        self._place = max(self._newest(queue) for queue in Queue)

    def _execute(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self._rows._sql(query, values).fetchall()  # type: ignore[no-any-return]  # noqa: SLF001 - as in `Rows`

    # The queues.

    def taken(self, queue: Queue) -> int:
        """See `Queues`."""
        return int(self._execute("SELECT bytes FROM Taken WHERE queue = ?", (queue,))[0][0])

    def oldest(self, queue: Queue, after: int, limit: int) -> list[Entry]:
        """See `Queues`."""
        where = "queue = ? AND place > ? ORDER BY place LIMIT ?"
        query = f"SELECT {_COLUMNS} FROM Content WHERE {where}"  # noqa: S608 - our own words
        return list(self._entries(self._execute(query, (queue, after, limit))))

    def move(self, entry: Entry, queue: Queue, uses: int) -> None:
        """See `Queues`."""
        self._place += 1
        query = "UPDATE Content SET queue = ?, place = ?, uses = ? WHERE digest = ?"
        self._execute(query, (queue, self._place, uses, _raw(entry.digest)))

    def drop(self, entry: Entry) -> None:
        """See `Queues`."""
        self._delete(_raw(entry.digest))

    # What came, was used, and went.

    def account(self) -> tuple[int, int]:
        """Bytes and pieces of all content."""
        query = "SELECT TOTAL(bytes), TOTAL(objects) FROM Taken WHERE queue IN (?, ?)"
        ((size, objects),) = self._execute(query, (Queue.SMALL, Queue.MAIN))
        return max(0, int(size)), max(0, int(objects))

    def opened(self) -> tuple[bool, bool]:
        """Is the account complete, and was it left complete the last time? Says that it is in use now."""
        rows = self._execute("SELECT objects FROM Taken WHERE queue = ?", (_STATE,))
        self._execute("UPDATE Taken SET objects = 0 WHERE queue = ?", (_STATE,))
        return bool(rows), rows == [(1,)]

    def left(self) -> None:
        """Say that all that came and went was put down."""
        self._execute("UPDATE Taken SET objects = 1 WHERE queue = ?", (_STATE,))

    def recount(self) -> tuple[int, int]:
        """The account, summed up anew when all that is on the disk was put in: a quarter of a second for a million."""
        for queue in Queue:
            query = "SELECT TOTAL(blocks), COUNT(*) FROM Content WHERE queue = ?"
            ((size, objects),) = self._execute(query, (queue,))
            self._execute("INSERT OR REPLACE INTO Taken VALUES (?, ?, ?)", (queue, int(size), objects))
        self._execute("INSERT OR IGNORE INTO Taken VALUES (?, 0, 0)", (_STATE,))
        return self.account()

    def touch(self, uses: Mapping[Digest, float]) -> list[Digest]:
        """Put down uses (Unix seconds); returns what of it is not known to be here."""
        unknown = []
        for digest, when in uses.items():
            known = self._find(digest)
            if known is None or known[0] is Queue.GHOST:
                unknown.append(digest)
            elif (entry := known[1]).last != when:
                counted = eviction.uses_now(entry.uses, entry.last, when)
                query = "UPDATE Content SET last = ?, uses = ? WHERE digest = ?"
                self._execute(query, (when, counted, _raw(digest)))
        return unknown

    def enter(self, content: Mapping[Digest, Used]) -> tuple[int, int]:
        """Put in what came; returns the bytes and the number of what was not known to be here."""
        size = objects = 0
        for digest, used in content.items():
            known = self._find(digest)
            if known is not None and known[0] is not Queue.GHOST:
                continue
            queue = eviction.first_queue(None if known is None else known[0])
            self._place += 1
            query = (
                "INSERT OR REPLACE INTO Content (digest, blocks, last, uses, queue, place) VALUES (?, ?, ?, 0, ?, ?)"
            )
            if known is not None:
                self._delete(_raw(digest))  # REPLACE calls no trigger
            self._execute(query, (_raw(digest), used.blocks, used.last, queue, self._place))
            size += used.blocks
            objects += 1
        return size, objects

    def choose(self, needed: int, limit: int) -> tuple[list[Entry], bool]:
        """See `eviction.choose`."""
        return eviction.choose(self, needed, limit)

    def settle(self, gone: Iterable[Digest], spared: Iterable[Digest]) -> None:
        """Say which of the chosen went, and which have to stay."""
        gone = list(gone)
        self._rows.drop_all(map(records.origin_key, gone))
        eviction.gone(self, self._found(gone))
        for queue, entry in self._found(spared):
            eviction.spare(self, entry, queue)

    def forget(self, digests: Iterable[Digest]) -> tuple[int, int]:
        """Content that is gone otherwise; returns bytes and number of what was known."""
        digests = list(digests)
        self._rows.drop_all(map(records.origin_key, digests))
        size = objects = 0
        for queue, entry in self._found(digests):
            self.drop(entry)
            if queue is not Queue.GHOST:
                size += entry.blocks
                objects += 1
        return size, objects

    # What is known.

    def absent(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of them that are not known to be here. Of 500 at most, for which it is one question."""
        marks = ", ".join("?" * len(digests))
        query = f"SELECT digest FROM Content WHERE {_HERE} AND digest IN ({marks})"  # noqa: S608 - our own words, and question marks
        known = {raw for (raw,) in self._execute(query, tuple(map(_raw, digests)))}
        return [digest for digest in digests if _raw(digest) not in known]

    def used_of(self, digests: Iterable[Digest]) -> dict[Digest, Used]:
        """Last use and size of those of them that are known to be here."""
        found = self._found(digests)
        return {entry.digest: Used(entry.last, entry.blocks) for queue, entry in found if queue is not Queue.GHOST}

    def page(self, after: Digest | None, limit: int) -> list[tuple[Digest, Used]]:
        """All content, by digest: what comes next after `after`."""
        where = f"digest > ? AND {_HERE} ORDER BY digest LIMIT ?"
        query = f"SELECT {_COLUMNS} FROM Content WHERE {where}"  # noqa: S608 - our own words
        rows = self._execute(query, (b"" if after is None else _raw(after), limit))
        return [(entry.digest, Used(entry.last, entry.blocks)) for entry in self._entries(rows)]

    def names(self, after: Digest | None, limit: int) -> list[Digest]:
        """The digests of a `page`."""
        where = f"digest > ? AND {_HERE} ORDER BY digest LIMIT ?"
        query = f"SELECT digest FROM Content WHERE {where}"  # noqa: S608 - our own words
        rows = self._execute(query, (b"" if after is None else _raw(after), limit))
        return [Digest(f"{_ALGORITHMS[len(raw)]}:{raw.hex()}") for (raw,) in rows if _is_raw(raw)]

    def _find(self, digest: Digest) -> tuple[Queue, Entry] | None:
        return next(iter(self._found([digest])), None)

    def _found(self, digests: Iterable[Digest]) -> list[tuple[Queue, Entry]]:
        """What is known of these, ghosts too."""
        found: list[tuple[Queue, Entry]] = []
        wanted = iter(digests)
        while some := [_raw(digest) for digest in islice(wanted, _TOGETHER)]:
            marks = ", ".join("?" * len(some))
            query = f"SELECT queue, {_COLUMNS} FROM Content WHERE digest IN ({marks})"  # noqa: S608 - our own words, and question marks
            for queue, *row in self._execute(query, tuple(some)):
                if queue not in tuple(Queue):
                    self._delete(row[0])
                    continue
                found += [(Queue(queue), entry) for entry in self._entries([tuple(row)])]
        return found

    def _entries(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[Entry]:
        """The rows that are as ours are; others are deleted."""
        for raw, *numbers in rows:
            if not _is_raw(raw) or list(map(type, numbers)) != [int, float, int, int] or numbers[0] < 0:
                self._delete(raw)
                continue
            yield Entry(Digest(f"{_ALGORITHMS[len(raw)]}:{raw.hex()}"), *numbers)

    def _delete(self, raw: object) -> None:
        self._execute("DELETE FROM Content WHERE digest = ?", (raw,))

    def _newest(self, queue: Queue) -> int:
        ((place,),) = self._execute("SELECT MAX(place) FROM Content WHERE queue = ?", (queue,))
        if place is None:
            return 0
        if not isinstance(place, int) or place >= _NO_PLACE:
            raise BrokenDatabaseError("there is content at a place that nothing can come after")
        return place


def _raw(digest: Digest) -> bytes:
    """A digest in half the bytes; its length says which algorithm it is of."""
    return bytes.fromhex(digest.hex)


def _is_raw(value: object) -> bool:
    return isinstance(value, bytes) and len(value) in _ALGORITHMS


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: triggers have some inside."""
    lines: list[str] = []
    for line in script.strip().splitlines():
        lines.append(line)
        inside = any(each.startswith("CREATE TRIGGER") for each in lines)
        if line.endswith("END;") if inside else line.endswith(";"):
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)
