"""One cache directory, opened: what the service works with, and a command where no service runs."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import monotonic

from mirrorproxy.admin.desk import Desk, Refetch, Refresh
from mirrorproxy.cache import Shelf
from mirrorproxy.config import Settings
from mirrorproxy.errors import CacheFailed
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, image
from mirrorproxy.retention import Bounds, Retention, Rule
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.files import can_only_be_read
from mirrorproxy.store.index import Index
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.layout import LayoutWriter, rebuild
from mirrorproxy.store.ledger import Ledger
from mirrorproxy.store.owner import InUse, Owner
from mirrorproxy.store.pins import Pin, PinFile
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_COMMANDS_END = 30.0  # seconds that a command which has the directory is waited for
_TRY_AGAIN = 0.1
_LOOK_EVERY = 2.0  # seconds between two looks at whether a directory that could only be read can be written


class Contents:
    """The parts of the store over one directory, and who owns it. `open` it; `aclose` in any case.

    `changed` is called when a tag, a manifest or other content came or went; `thawed` when a directory that could only
    be read at the start can be written.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, keep_open: int = 512) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.thawed: Callable[[], Awaitable[None]] = _nothing
        self.directory = directory = settings.cache.directory
        self._settings = settings
        self._parts = AsyncExitStack()  # closed in the opposite order of their opening
        self.blobs = BlobStore(directory, keep_open=keep_open, on_corrupt=self._corrupt)
        self._parts.push_async_callback(self.blobs.aclose)
        self.index = Index(directory / "index")
        self.layout = LayoutWriter(directory, self.index, self.blobs)
        self.partials = Partials(directory / "partial", self.blobs)
        self.ledger = Ledger(0, 0, directory)
        self.retention = Retention(
            self.blobs,
            self.index,
            self.partials,
            self.ledger,
            PinFile(directory),
            metrics,
            changed=self._changed,
        )
        self.shelf = Shelf(
            self.blobs,
            self.index,
            changed=self._changed,
            used=self.retention.used,
            grown=self.retention.grown,
        )
        self.retention.dropped = self._dropped

    async def open(self, who: str, *, writing: bool = True, patience: float = _COMMANDS_END) -> None:
        """Take the directory and open what is in it. `who` is said to others that want it too.

        `writing`: `index.json` is kept as new as what is in here. `patience`: seconds that a command which has the
        directory is waited for, which a service is not. Raises `CacheFailed`, `OSError`.
        """
        owner = await self._own(who, patience)
        self._parts.callback(owner.release)
        await asyncio.to_thread(self.blobs.prepare)
        if await asyncio.to_thread(can_only_be_read, self.directory):
            log.warning(
                "%s is on a read-only file system: until it can be written, what is cached is served, and all else "
                "passes through and is not kept",
                self.directory,
            )
            tasks = Tasks()
            self._parts.push_async_callback(tasks.aclose)
            tasks.start(self._await_thaw(owner), name="wait until the cache directory can be written")
        self._parts.push_async_callback(self.index.aclose)
        try:
            await self.index.open()
        except CacheFailed as error:  # a disk that is full, mostly: no reason not to pass on what upstream has
            log.error("%s; it is tried again, and what is cached is not found until then", error)
        if writing:
            self.layout.start()
            self._parts.push_async_callback(self.layout.aclose)
        self.filesystem = (await asyncio.to_thread(shutil.disk_usage, self.directory)).total
        self.use(self._settings)
        await self.retention.open()
        self._parts.push_async_callback(self.retention.aclose)

    async def _await_thaw(self, owner: Owner) -> None:
        while await asyncio.to_thread(can_only_be_read, self.directory):  # noqa: ASYNC110 - no event: a remount tells nobody
            await asyncio.sleep(_LOOK_EVERY)
        await asyncio.to_thread(owner.introduce)
        try:
            await asyncio.to_thread(self.blobs.prepare)
        except CacheFailed as error:
            log.error("%s", error)
        log.info("%s can be written again", self.directory)
        await self.thawed()

    async def _own(self, who: str, patience: float) -> Owner:
        until = monotonic() + patience
        while True:
            try:
                return await asyncio.to_thread(Owner, self.directory, who)
            except InUse as error:
                if not error.command or monotonic() > until:
                    raise
            await asyncio.sleep(_TRY_AGAIN)

    def use(self, settings: Settings) -> None:
        """Keep to these settings from now on."""
        self.retention.bounds = _bounds(settings)
        self.retention.pins.configured = tuple(Pin(*image(each.image), each.platform) for each in settings.pins)
        parts = self.retention.parts
        parts.keep, parts.most = settings.partials.keep, settings.partials.max_count
        self.blobs.verify = settings.cache.verify == "on-read"
        self.ledger.limit = settings.cache.max_size.resolve(self.filesystem)
        self.ledger.min_free = settings.cache.min_free.resolve(self.filesystem)

    async def rebuild(self) -> None:
        """Fill an index that is new, or was lost while running. What fails is logged, and can be tried again."""
        if await asyncio.to_thread(can_only_be_read, self.directory):
            return
        try:
            count = await rebuild(self.blobs, self.index, self.directory)
        except CacheFailed as error:
            log.warning("the index cannot be rebuilt: %s", error)
        else:
            if count:
                log.info("the index was rebuilt from the disk: %d manifests", count)

    def desk(self, settings: Callable[[], Settings], refresh: Refresh, refetch: Refetch) -> Desk:
        """What the operations work on."""
        return Desk(
            self.directory,
            self.blobs,
            self.index,
            self.partials,
            self.ledger,
            self.retention,
            self._changed,
            settings,
            refresh,
            refetch,
        )

    async def aclose(self) -> None:
        """Write what is not written yet, close all, and leave the directory to others."""
        await self._parts.aclose()

    def _changed(self) -> None:
        self.layout.changed()
        self.changed()

    def _dropped(self, digest: Digest) -> None:
        self.shelf.forget(digest)
        self.layout.changed()

    def _corrupt(self, digest: Digest, size: int) -> None:
        self._dropped(digest)
        self.changed()
        self.retention.corrupt(digest, size)


async def _nothing() -> None:
    pass


def _bounds(settings: Settings) -> Bounds:
    cache = settings.cache
    rules = tuple(Rule(each.match, each.unused_for, each.keep) for each in settings.retention)
    return Bounds(cache.high_watermark.percent / 100, cache.low_watermark.percent / 100, rules)
