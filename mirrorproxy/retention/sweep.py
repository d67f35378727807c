"""The rules applied to what is cached: which tags are too old, and what content goes with them."""

import asyncio
from collections.abc import Container, Iterable
from itertools import groupby, islice

from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.retention.images import Images
from mirrorproxy.retention.rules import Known, Rule, expired
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.layout import Entry, cached

_BATCH = 200


async def too_old(
    rules: Iterable[Rule], index: Index, blobs: BlobStore, images: Images, pinned: Container[Digest], now: float
) -> tuple[list[tuple[Repository, Tag]], set[Digest]]:
    """Tags that go by the rules, and content that nothing else leads to. Raises `CacheFailed`."""
    rules = tuple(rules)
    going: list[Known] = []
    by_repository = groupby(cached(index, blobs), key=lambda entry: entry.repository)
    while repository := await asyncio.to_thread(lambda: next(((list(each)) for _, each in by_repository), None)):
        known = await _known(repository, index, blobs)
        going += [each for each in expired(rules, known, now) if each.digest not in pinned]
    if not going:
        return [], set()
    tags = [(each.repository, each.reference) for each in going if isinstance(each.reference, Tag)]
    return tags, await images.only_named_by({each.digest for each in going}, without=set(tags))


async def _known(entries: list[Entry], index: Index, blobs: BlobStore) -> list[Known]:
    """When these came, and were used last."""
    known: list[Known] = []
    waiting = iter(entries)
    while batch := list(islice(waiting, _BATCH)):
        used = await index.used_of({entry.descriptor.digest for entry in batch})
        for entry, came in zip(batch, await asyncio.to_thread(_came, batch, blobs), strict=True):
            digest = entry.descriptor.digest
            last = used[digest].last if digest in used else came
            known.append(Known(entry.repository, entry.reference, digest, last, came))
    return known


def _came(entries: list[Entry], blobs: BlobStore) -> list[float]:
    """Since when tags point there; of what has no tag, or one of which that is not known, when the manifest came."""
    times = []
    for entry in entries:
        if entry.record is not None and entry.record.since is not None:
            times.append(entry.record.since)
            continue
        try:
            times.append(blobs.path(entry.descriptor.digest).stat().st_mtime)
        except OSError:
            times.append(0.0)
    return times
