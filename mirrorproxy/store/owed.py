"""Rows that the index could not take, for want of room mostly, and gets with the next one that it can.

Memory has them meanwhile. Without this the index would lack them for good: what is in memory is not written again.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store import records
from mirrorproxy.store.memory import Recent
from mirrorproxy.store.rows import Rows, failures

_MOST = 4096  # rows, of some hundred bytes
_KINDS = records.TAGS, records.MANIFESTS, records.BLOBS, records.ORIGINS


class Owed:
    """What is owed to the table that `table` gives, the newest of it. All blocks, in the index's thread."""

    def __init__(self, table: Callable[[], Rows]) -> None:
        self._table = table
        self._rows: Recent[str, bytes] = Recent(_MOST)

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, rows: Iterable[tuple[str, bytes]], *, new: bool = False) -> None:
        """Write these, and what is owed before them; where that fails they are owed too. `new`: only what is not there,
        which is never owed.
        """
        rows = tuple(rows)
        try:
            table = self._table()
            with table.transact():
                for key, value in self._rows.items():
                    table.set(key, value)
                for key, value in rows:
                    (table.add if new else table.set)(key, value)
        except Exception:
            for key, value in rows:
                if not new and key.startswith(_KINDS):
                    self._rows.put(key, value)
            raise
        self._rows = Recent(_MOST)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete these; they are not owed any more, also where that fails."""
        keys = tuple(keys)
        for key in keys:
            self._rows.drop(key)
        table = self._table()
        with table.transact():
            table.drop_all(keys)

    def pay(self) -> None:
        """Write what is owed, if that can be done."""
        if len(self._rows):
            with suppress(CacheFailed), failures():
                self.write(())
