"""Room for new content, made by removing other content: by size, by age, or because somebody says so."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mirrorproxy.errors import CacheFailed
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.retention.account import Account
from mirrorproxy.retention.images import Images
from mirrorproxy.retention.parts import Parts
from mirrorproxy.retention.pins import Pins
from mirrorproxy.retention.rules import Rule
from mirrorproxy.retention.steps import STEP, rest
from mirrorproxy.retention.sweep import Sweep
from mirrorproxy.retention.uses import Uses
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.eviction import Candidate, Entry, Oldest, Queue
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger, Reservation
from mirrorproxy.store.pins import PinFile
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_WRITE_EVERY = 5.0  # seconds
_LOOK_EVERY = 60.0  # seconds between two looks at whether what is pinned is here
_GRACE = (
    60.0  # seconds for which what was just used stays, so that a manifest's blobs are there when they are asked for
)
_MOST_SPARED = 4096  # in a row; then so much is in use that there is no room to be made
_BATCH = 500
_BLOCK = 4096  # bytes: file systems count files in these; a part has two more for its folder and its state


class Gone(NamedTuple):
    """Content that went, or would go: bytes on the disk, and its last use (Unix seconds). `is_part`: it was the part of
    a download, the last bytes of which came then.
    """

    digest: Digest
    blocks: int
    last: float
    is_part: bool = False


@dataclass(frozen=True)
class Bounds:
    """What the cache keeps to. Shares are of what it may take: above `high` content goes until it is below `low`."""

    high: float = 0.98
    low: float = 0.95
    rules: tuple[Rule, ...] = ()


class Retention:
    """Room in the cache: a `Space` for fills.

    `dropped` is called with each piece of content that went, `changed` when anything may be missed: not for what was
    evicted for its size, which nobody used in the last minute. What is being filled, read or pinned, and what was used
    in the last minute, is never evicted.
    """

    def __init__(
        self,
        blobs: BlobStore,
        index: Index,
        partials: Partials,
        ledger: Ledger,
        made_pins: PinFile,
        metrics: Metrics,
        *,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bounds = Bounds()
        self.dropped: Callable[[Digest], None] = lambda _: None
        self._blobs = blobs
        self._index = index
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._changed = changed
        self.images = Images(blobs, index)
        self.pins = Pins(made_pins, index, self.images)
        self.parts = Parts(partials, ledger, metrics, clock)
        self._account = Account(blobs, index, ledger, clock)
        self._uses = Uses(blobs, index, self.images, self._account, clock)
        self._sweep = Sweep(index, blobs, self.images, self.pins, self._remove_old, changed, clock)
        self._removing = asyncio.Lock()
        self._full = asyncio.Event()
        self._tasks = Tasks()
        self._checking: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._uncounted = False
        self._shrinking = False  # down to the low mark

    async def open(self) -> None:
        """Learn what the index knows is on the disk. After this, content may come and go."""
        with contextlib.suppress(CacheFailed):  # then it is counted, when the index can be asked
            await self._account.open()

    # What others tell.

    def used(self, digest: Digest, *, manifest: bool = False) -> None:
        """It was served now; of a `manifest`, all that it names was used too."""
        self._uses.note(digest, manifest=manifest)

    def grown(self, size: int) -> None:
        """Content of `size` bytes on the disk was stored without a reservation."""
        self._ledger.added(size)
        self._look_for_room()

    def corrupt(self, digest: Digest, size: int) -> None:
        """Content was removed because it was wrong."""
        self._uses.note_gone(digest)
        self._ledger.removed(size)
        self._count("corrupt", size)

    async def write_uses(self) -> None:
        """Put the uses noted so far into the index. Raises `CacheFailed`."""
        await self._uses.write()

    # Room.

    async def reserve(self, size: int) -> Reservation:
        """Room for `size` bytes; other content goes for it. Raises `CacheFailed` where that fails."""
        blocks = -(-size // _BLOCK) * _BLOCK + 2 * _BLOCK
        if not self._ledger.is_ample(blocks):  # else a look at the disk, 0.3 ms, before the first byte
            await self._ledger.refresh()
        reservation = self._ledger.reserve(blocks)
        if reservation is None and blocks <= self._ledger.capacity - self._ledger.reserved:
            await self.parts.tidy(blocks - self._ledger.room)
            while (missing := blocks - self._ledger.room) > 0 and await self._evict_some(missing):
                pass
            reservation = self._ledger.reserve(blocks)
        if reservation is None:
            raise CacheFailed(
                f"there is no room for {size} bytes in the cache: what is in it is in use, or pinned, or max_size and "
                "min_free do not allow for so much"
            )
        self._look_for_room()
        return reservation

    def resume(self, size: int) -> Reservation:
        """The room that a part of `size` bytes on the disk has already; ask for the rest."""
        return self._ledger.resume(size)

    async def run(self) -> None:
        """Check the account, write down uses, keep to the limit and to the rules, for ever."""
        while True:
            self._full.clear()
            goes_on = False
            with contextlib.suppress(CacheFailed):  # the next round tries again; a service without an index goes on
                self._keep_account()
                await self.parts.tidy(0)
                await self.write_uses()
                await self._ledger.refresh()
                await self._look_at_pins()
                self._keep_rules()
                goes_on = await self._make_room(time.monotonic() + _WRITE_EVERY)
            if goes_on:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_EVERY):
                    await self._full.wait()
                    await asyncio.sleep(0.2)  # many at once are one reason to look

    async def aclose(self) -> None:
        """Write down the last uses."""
        checking = self._checking is not None and not self._checking.done()
        await self._tasks.aclose()
        with contextlib.suppress(CacheFailed):
            await self.write_uses()
            if not checking and not self._uses.lost:
                await self._account.close()

    def _look_for_room(self) -> None:
        if self._ledger.taken > self.bounds.high * self._ledger.capacity:
            self._full.set()

    def _keep_account(self) -> None:
        """Have the account checked: after a start, after the index failed, and when it is a new one."""
        if self._checking is None or (self._checking.done() and (self._uses.lost or self._index.is_new)):
            if self._index.is_new:
                self._account.begin_anew()
            lost, self._uses.lost, self._index.is_new = self._uses.lost, False, False
            self._checking = self._tasks.start(self._check(lost=lost), name="check of the account")

    async def _check(self, *, lost: bool = False) -> None:
        try:
            await self._account.check(self._removing, lost=lost)
            self._uncounted = False
        except CacheFailed as error:
            if not self._uncounted:
                log.warning("the content on the disk cannot be counted: %s", error)
            self._uses.lost = self._uncounted = True

    async def _make_room(self, until: float) -> bool:
        """Evict down to the low mark, with a rest after each step; True where the next call is to go on with it."""
        ledger = self._ledger
        if not self._shrinking and ledger.taken <= self.bounds.high * ledger.capacity:
            return False
        self._shrinking = False  # where it fails, and where nothing can go, it is tried again in a while
        await self.parts.tidy(int(ledger.taken - self.bounds.low * ledger.capacity))
        while (missing := int(ledger.taken - self.bounds.low * ledger.capacity)) > 0:
            started = time.monotonic()
            if not await self._evict_some(missing):
                return False
            await rest(started)
            await ledger.refresh()
            if time.monotonic() > until:
                self._shrinking = True
                return True
        return False

    async def _evict_some(self, needed: int) -> bool:
        """Remove what should go first, a step of it, as far as `needed` bytes take. False where nothing could go."""
        if not self.pins.sure:
            await self.pins.look()
            if not self.pins.sure:
                return False
        async with self._removing:
            spared: dict[Digest, int] = {}
            while True:
                with contextlib.suppress(CacheFailed):
                    await self.write_uses()
                # What stays is chosen again, behind the others of its queue: so much more is asked for, or what is in
                # the other queue would never be reached.
                chosen, more = await self._choose(needed + sum(spared.values()), STEP + len(spared))
                chosen = [each for each in chosen if each.digest not in spared]
                now, noted = self._clock(), await self._uses.noted()
                stay = {each.digest for each in chosen if 0 <= now - each.last < _GRACE or each.digest in noted}
                stay |= {each.digest for each in chosen if self._is_held(each.digest)}
                going: list[Gone] = []
                left = needed
                for each in chosen:
                    if each.digest not in stay and left > 0 and len(going) < STEP:
                        going.append(Gone(each.digest, each.blocks, each.last))
                        left -= each.blocks
                gone = await self._remove(going, "size")
                await self._settle([each.digest for each in gone], stay)
                if gone:
                    return True
                spared |= {each.digest: each.blocks for each in chosen}
                if not chosen or not more or len(spared) > _MOST_SPARED:
                    return False

    async def _choose(self, needed: int, most: int) -> tuple[list[Entry], bool]:
        """What should go. An index that can only be read, on a full disk mostly, says what is there for longest: with
        that gone it can be written again. Raises `CacheFailed` where it cannot be read either.
        """
        try:
            return await self._index.content(ContentQueues.choose, needed, most)
        except CacheFailed:
            oldest: list[Entry] = []
            for queue in (Queue.SMALL, Queue.MAIN):
                oldest += await self._index.asked(ContentQueues.oldest, queue, 0, most)
            return [each for each in oldest if not self._uses.is_gone(each.digest)][:most], False

    async def _settle(self, gone: list[Digest], stay: set[Digest]) -> None:
        try:
            await self._index.content(ContentQueues.settle, gone, stay)
        except CacheFailed:
            for digest in gone:
                self._uses.note_gone(digest)

    def _is_held(self, digest: Digest) -> bool:
        """Must it not go, whatever its age?"""
        return digest in self.pins.kept or self._blobs.is_read(digest) or digest in self.parts.filling

    async def _remove(self, going: list[Gone], reason: str) -> list[Gone]:
        """Remove a step of content from the disk; returns what went, which is all but where the disk fails on the way.

        The index is told by the caller. Raises `CacheFailed`.
        """
        if not going:
            return []
        now = self._clock()
        freed = await self._blobs.remove_all([each.digest for each in going])
        for each, size in zip(going, freed, strict=False):
            if size:
                self._ledger.removed(size)
                self._count(reason, size)
                if reason != "manual":
                    self._metrics.evicted_age.observe(max(0.0, now - each.last))
            else:
                self._ledger.correct(-each.blocks, -1)  # somebody else removed it
            self.dropped(each.digest)
        if reason != "size":
            self._changed()
        return going[: len(freed)]

    # What somebody says.

    async def remove(
        self, digests: Iterable[Digest], reason: str = "manual", *, unused_since: float = math.inf
    ) -> list[Gone]:
        """Remove this content, but for what is pinned, being filled or was used since then (Unix seconds); returns what
        went. Raises `CacheFailed`.
        """
        await self.write_uses()
        wanted = [digest for digest in digests if digest not in self.pins.kept and digest not in self.parts.filling]
        gone: list[Gone] = []
        for start in range(0, len(wanted), STEP):
            step = wanted[start : start + STEP]
            async with self._removing:
                used = await self._index.used_of(step)
                known = [Gone(digest, used[digest].blocks, used[digest].last) for digest in step if digest in used]
                known = [each for each in known if each.last <= unused_since]
                went = await self._remove(known, reason)
                await self._index.content(ContentQueues.forget, [each.digest for each in went])
            gone += went
            await asyncio.sleep(0)
        return gone

    async def prune(
        self, unused_for: float | None = None, to: int | None = None, *, dry_run: bool = False
    ) -> AsyncGenerator[Gone, None]:
        """Remove what was not used for `unused_for` seconds, and what was not used for longest until all takes no more
        than `to` bytes, parts of downloads before content; yields it. `dry_run`: only say it.

        What is pinned, read or being filled stays, as does an image of which anything is being filled, and what was
        used in the last minute, unless `unused_for` is less. Raises `CacheFailed`.
        """
        await self.write_uses()
        if self._ledger.used is None:
            await self._account.check(self._removing)
        await self.pins.look()
        now, after = self._clock(), None
        age = math.inf if unused_for is None else unused_for
        grace = min(_GRACE, age)
        idle = await self.parts.idle()
        needed = 0 if to is None else (self._ledger.used or 0) + self._ledger.idle - to
        for part in idle:
            is_old = now - part.modified > age or (needed > 0 and not 0 <= now - part.modified < grace)
            if is_old and (dry_run or await self.parts.drop(part, "manual")):
                needed -= part.blocks
                yield Gone(part.digest, part.blocks, part.modified, is_part=True)
        oldest = Oldest(needed)
        pulled = await self.images.waiting_for(self.parts.filling)
        while page := await self._index.asked(ContentQueues.page, after, _BATCH):
            after = page[-1][0]
            aged: list[Gone] = []
            for digest, used in page:
                if digest in pulled or self._is_held(digest):
                    continue
                if now - used.last > age:
                    aged.append(Gone(digest, used.blocks, used.last))
                    oldest.freed(used.blocks)
                elif to is not None and not 0 <= now - used.last < grace:
                    oldest.add(Candidate(digest, used.blocks, used.last))
            for each in aged if dry_run else await self.remove(one.digest for one in aged):
                yield each
        found = oldest.candidates()
        for start in range(0, len(found), STEP):
            step = [Gone(each.digest, each.size, each.last_use) for each in found[start : start + STEP]]
            for each in step if dry_run else await self.remove(one.digest for one in step):
                yield each

    # What comes round.

    async def _look_at_pins(self) -> None:
        """Before anything is evicted, and now and then."""
        now = time.monotonic()
        full = self._ledger.taken > self.bounds.high * self._ledger.capacity
        if full or now >= self._next_look or not self.pins.sure:
            self._next_look = now + _LOOK_EVERY
            await self.pins.look()

    def _keep_rules(self) -> None:
        """Have the rules applied, where that is due and there is an account of what is here."""
        known = not self._index.rebuild_needed and self._ledger.used is not None
        if known and (self._sweeping is None or self._sweeping.done()) and self._sweep.is_due(self.bounds.rules):
            self._sweeping = self._tasks.start(self._apply_rules(), name="rules of retention")

    async def _remove_old(self, digests: Iterable[Digest], *, unused_since: float) -> list[int]:
        return [each.blocks for each in await self.remove(digests, "age", unused_since=unused_since)]

    async def _apply_rules(self) -> None:
        try:
            await self._sweep.run(self.bounds.rules)
        except CacheFailed as error:
            log.warning("the rules of retention are applied later: %s", error)

    def _count(self, reason: str, size: int) -> None:
        self._metrics.evictions.labels(reason).inc()
        self._metrics.evicted_bytes.labels(reason).inc(size)
