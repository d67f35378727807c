"""The rules applied to what is cached: which tags are too old, and what content goes with them."""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable
from itertools import groupby, islice
from typing import Protocol

from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.retention.images import Images
from mirrorproxy.retention.pins import Pins
from mirrorproxy.retention.rules import Known, Rule, expired
from mirrorproxy.retention.steps import STEP, rest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.layout import Entry, cached

log = logging.getLogger(__name__)

_BATCH = 200
_LONGEST = 3600.0  # seconds between two sweeps


class Remove(Protocol):
    """Removes content that was not used since then (Unix seconds); the bytes that each piece had."""

    async def __call__(self, digests: Iterable[Digest], *, unused_since: float) -> list[int]: ...


class Sweep:
    """Lets go of what the rules say is too old. `changed` is called when anything went."""

    def __init__(
        self,
        index: Index,
        blobs: BlobStore,
        images: Images,
        pins: Pins,
        remove: Remove,
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._blobs = blobs
        self._images = images
        self._pins = pins
        self._remove = remove
        self._changed = changed
        self._clock = clock
        self._next = 0.0

    def is_due(self, rules: Iterable[Rule]) -> bool:
        """Once in a tenth of the shortest time in the rules, or an hour. Where it is, it is not for that long."""
        now, rules = time.monotonic(), tuple(rules)
        if not rules or now < self._next:
            return False
        shortest = min((rule.unused_for for rule in rules if rule.unused_for is not None), default=10 * _LONGEST)
        self._next = now + min(_LONGEST, max(1.0, shortest / 10))
        return True

    async def run(self, rules: Iterable[Rule]) -> None:
        """Sweep, with a rest after each step. Raises `CacheFailed`."""
        began, tags, size = self._clock(), 0, 0
        await self._pins.look()
        going, content = await too_old(rules, self._index, self._blobs, self._images, self._pins.kept, began)
        try:
            for repository, tag in going:
                await self._index.forget_tag(repository, tag)
                tags += 1
            left, started = iter(content), None
            while step := list(islice(left, STEP)):
                if started is not None:
                    await rest(started)
                started = time.monotonic()
                size += sum(await self._remove(step, unused_since=began))
        finally:
            if tags or size:
                self._changed()
                log.info("by the rules of retention %d tags went, with %d bytes of content", tags, size)


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
