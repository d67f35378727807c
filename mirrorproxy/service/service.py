"""The service: all parts put together, started, reloaded and stopped."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from mirrorproxy import __version__
from mirrorproxy.audit import Checker, Quarantine, Refetch, Scrub
from mirrorproxy.config import Settings, changes
from mirrorproxy.errors import CacheFailed
from mirrorproxy.fill import Fills
from mirrorproxy.metrics import Metrics
from mirrorproxy.service.catalog import CachedCatalog
from mirrorproxy.service.contents import Contents
from mirrorproxy.service.listening import Listening, raise_file_limit
from mirrorproxy.service.logs import set_up, wants_json
from mirrorproxy.service.stack import Stacks, terms
from mirrorproxy.service.tls import Certificate
from mirrorproxy.store.directory import warn_of_network
from mirrorproxy.tasks import Tasks
from mirrorproxy.web.access import AccessLog
from mirrorproxy.web.admin import AdminServer
from mirrorproxy.web.app import App
from mirrorproxy.web.probes import Probes, State
from mirrorproxy.web.routes import Names

log = logging.getLogger(__name__)

_PAGES = 64  # connections for health pages and metrics, where these have an address of their own
_LOOK_EVERY = 5.0  # seconds
_LAST_REQUESTS = 0.2  # seconds: who was let in at the last moment has yet to ask
_FAREWELL = 1.0  # seconds for requests that were cut off to be put down in the log


class Service:
    """One running mirrorproxy. `start` it, `reload` it, `stop` it; `aclose` in any case."""

    def __init__(self, settings: Settings, inherited: Sequence[socket.socket] = ()) -> None:
        """`inherited` are listening sockets to serve on, instead of those that `server.listen` asks for."""
        self._settings = settings
        self._inherited = inherited
        self._parts = AsyncExitStack()  # closed in the opposite order of their making
        self._tasks = Tasks()
        self._rebuilding = False
        self._probes = Probes(self._troubles)

    async def start(self) -> None:
        """Make the parts and listen. Dials nobody. Raises `CacheFailed` or `OSError` where that cannot be."""
        settings = self._settings
        most = raise_file_limit()
        self._addresses = ", ".join(map(str, settings.server.listen))
        metrics = Metrics(settings.upstreams)
        self._contents = Contents(settings, metrics, keep_open=min(512, most.requests // 2))
        self._parts.push_async_callback(self._contents.aclose)
        await self._contents.open(f"listening on {self._addresses}")
        await asyncio.to_thread(warn_of_network, self._contents.directory)
        self._retention = self._contents.retention

        self._fills = Fills(self._contents.partials, self._retention, metrics, terms(settings))
        self._retention.parts.filling = self._fills.digests
        self._stacks = Stacks(self._contents.shelf, self._fills, metrics)
        self._parts.push_async_callback(self._stacks.aclose)
        self._stacks.use(settings.upstreams)
        self._parts.push_async_callback(self._fills.aclose)

        self._checker = Checker(lambda: self._settings.scrub.rate)
        self._parts.push_async_callback(self._checker.aclose)
        self._scrub = Scrub(
            self._contents.directory,
            self._contents.blobs,
            self._checker,
            Quarantine(self._contents.directory / "quarantine", lambda: self._contents.ledger.limit),
            metrics,
            Refetch(self._contents.index, self._stacks.registry),
            every=settings.scrub.every,
            tidied=self._quarantined,
        )
        self._contents.shelf.suspect = self._scrub.suspect

        self._access = AccessLog(sys.stdout, human=not wants_json(settings.log, sys.stdout))
        self._parts.push_async_callback(self._access.aclose)
        self._access.enabled = settings.log.access
        self._app = App(
            self._stacks.registry,
            CachedCatalog(self._contents.index, self._names),
            self._names,
            metrics,
            self._access,
            self._probes,
            settings.server.write_timeout,
            most.requests,
            shows_metrics=not settings.server.metrics_listen,
        )
        self._parts.push_async_callback(self._app.aclose)
        self._contents.changed = self._app.forget
        self._certificate = None if settings.server.tls is None else Certificate(settings.server.tls)
        self._observe(metrics)

        self._listening = Listening(self._app.server(), self._certificate, most.connections, "server.listen, --listen")
        self._parts.push_async_callback(self._app.drained, _FAREWELL)
        self._parts.push_async_callback(self._listening.aclose)
        # Answers while draining, too: that is when one looks.
        pages = Listening(self._app.page_server(), None, _PAGES, "server.metrics_listen")
        self._parts.push_async_callback(pages.aclose)
        await pages.start(settings.server.metrics_listen)
        if self._inherited:
            log.info("%s: handed over to this process; server.listen is not used", self._addresses)
        await self._listening.start(settings.server.listen, self._inherited)
        self._addresses = ", ".join(self._listening.addresses)
        await self._listen_to_commands()

        self._parts.push_async_callback(self._tasks.aclose)
        self._tasks.start(self._retention.run(), name="retention")
        self._tasks.start(self._housekeeping(), name="housekeeping")
        self._tasks.start(self._scrub.run(), name="scrub")
        if self._certificate is not None:
            self._tasks.start(self._certificate.watch(), name="certificate")
        self._probes.state = State.READY
        log.info("mirrorproxy %s %s", __version__, self.status)
        if settings.server.metrics_listen:
            log.info("metrics and health pages are on %s", ", ".join(pages.addresses))

    @property
    def status(self) -> str:
        """What it does, in one line."""
        return f"serves {', '.join(self._settings.upstreams)} on {self._addresses}"

    @property
    def grace(self) -> float:
        """Seconds that running transfers get at the end."""
        return self._settings.server.grace

    def reload(self, settings: Settings) -> None:
        """Take over what can be while running, and say what cannot."""
        found = changes(self._settings, settings)
        if found.needs_restart:
            log.warning("these changes wait for a restart: %s", ", ".join(found.needs_restart))
        set_up(settings.log)
        self._stacks.use(settings.upstreams)
        self._fills.use(terms(settings))
        self._contents.use(settings)
        self._app.forget()
        self._scrub.every = settings.scrub.every
        self._app.allow(settings.server.write_timeout)
        self._access.enabled = settings.log.access
        if self._certificate is not None and settings.server.tls is not None:
            self._certificate.use(settings.server.tls)
        self._settings = settings
        log.info("loaded anew: %s", ", ".join(found.reloaded) or "nothing changed")

    async def stop(self) -> None:
        """Drain: not ready, no new connections, running transfers get `server.grace` seconds."""
        self._probes.state = State.DRAINING
        log.info("stopping; %d requests get %.0f s to end", self._app.inflight, self._settings.server.grace)
        await self._listening.close()
        await asyncio.sleep(_LAST_REQUESTS)
        await self._app.drained(self._settings.server.grace)

    async def aclose(self) -> None:
        """End everything. Downloads keep what they have."""
        await self._parts.aclose()

    def _names(self) -> Names:
        return Names(self._settings.default_registry, frozenset(self._settings.upstreams))

    async def _listen_to_commands(self) -> None:
        admin = AdminServer(self._contents.desk(lambda: self._settings, self._stacks.refresh))
        self._parts.push_async_callback(admin.aclose)
        try:
            await admin.start()
        except CacheFailed as error:  # a full disk: commands wait, pulls do not
            log.error("%s; commands cannot reach this service", error)

    def _quarantined(self, size: int) -> None:
        self._contents.ledger.aside = size

    def _observe(self, metrics: Metrics) -> None:
        ledger = self._contents.ledger
        metrics.observe("cache_size_bytes", "Bytes of cached content on the disk.", lambda: ledger.used)
        done = "When the last pass of the scrub ended (Unix time)."
        metrics.observe("scrub_last_completed_timestamp_seconds", done, lambda: self._scrub.last_ended)
        metrics.observe("cache_limit_bytes", "The most that cached content may take.", lambda: ledger.limit)
        metrics.observe("cache_objects", "Pieces of cached content.", lambda: ledger.objects)
        metrics.observe("filesystem_free_bytes", "What the cache's file system has free.", lambda: ledger.free)
        metrics.observe(
            "filesystem_size_bytes", "The size of the cache's file system.", lambda: self._contents.filesystem
        )
        metrics.observe(
            "http_requests_inflight", "Requests that are being answered, this one included.", lambda: self._app.inflight
        )
        metrics.observe(
            "tls_certificate_expiry_timestamp_seconds",
            "Until when the certificate for clients is good.",
            lambda: None if self._certificate is None else self._certificate.expires,
        )

    def _troubles(self) -> Iterator[str]:
        """What is not as it should be, for `/readyz?verbose`."""
        if self._contents.ledger.room <= 0:
            yield "disk: there is no room; what is not cached passes through"
        if not self._contents.index.is_open:
            yield "index: it cannot be opened; what is cached is not found"
        if self._fills.trouble is not None:
            yield f"cache: downloads pass through and are not kept: {self._fills.trouble}"
        yield from map(str, self._retention.pins.missing)
        if self._contents.index.rebuild_needed:
            yield "index: being rebuilt from the disk"
        yield from self._stacks.troubles()

    async def _housekeeping(self) -> None:
        """Look at the free space, and close what a reload replaced when nobody uses it any more."""
        while True:
            with contextlib.suppress(CacheFailed):
                await self._contents.ledger.refresh()
            if self._contents.index.rebuild_needed and not self._rebuilding:
                self._rebuilding = True
                self._tasks.start(self._rebuild(), name="rebuild of the index")
            if not self._app.inflight and not len(self._fills):
                await self._stacks.retire()
            await asyncio.sleep(_LOOK_EVERY)

    async def _rebuild(self) -> None:
        try:
            await self._contents.rebuild()
        finally:
            self._rebuilding = False
