"""The repositories of which something is known, from their rows. Blocks."""

from contextlib import suppress

from mirrorproxy.names import Repository
from mirrorproxy.store import records
from mirrorproxy.store.records import BAD_ROW
from mirrorproxy.store.rows import Rows


def repositories(table: Rows, after: bytes, limit: int) -> list[Repository]:
    """The first `limit` that sort after `after`.

    One look-up each: `!` comes next after the space, so behind the name and it is the next repository's row.
    """
    found: list[Repository] = []
    while len(found) < limit:
        names = []
        for prefix in (records.TAGS, records.MANIFESTS):
            start = prefix.encode()
            if (key := table.next_key(prefix, start + after + b"!")) is not None:
                names.append(key.removeprefix(start).partition(b" ")[0])
        if not names:
            break
        after = min(names)
        with suppress(*BAD_ROW):
            found.append(records.parse_repository(after.decode()))
    return found
