"""What the operations work on: one cache directory, opened, and the settings in effect."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from mirrorproxy.audit import Fate
from mirrorproxy.config import Settings
from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.registry import Resolved
from mirrorproxy.retention import Retention
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger

Refresh = Callable[[Repository, Tag], Awaitable[Resolved]]
"""Asks upstream about a tag now, and keeps what it names. Raises as `Registry.resolve` of an upstream does."""

Refetch = Callable[[Digest], Awaitable[Fate]]
"""Fetches content again that was taken away because it was wrong."""


@dataclass(frozen=True)
class Desk:
    """The parts of a cache, whoever opened them. `settings` gives those in effect now; `changed` is to be called when a
    tag or a manifest came or went.
    """

    directory: Path
    blobs: BlobStore
    index: Index
    partials: Partials
    ledger: Ledger
    retention: Retention
    changed: Callable[[], None]
    settings: Callable[[], Settings]
    refresh: Refresh
    refetch: Refetch
