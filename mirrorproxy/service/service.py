"""The service: all parts put together, started, reloaded and stopped."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack

from mirrorproxy import __version__, heap
from mirrorproxy.audit import Checker, Quarantine, Refetch, Scrub
from mirrorproxy.config import Settings, changes
from mirrorproxy.errors import CacheFailed
from mirrorproxy.fill import Fills
from mirrorproxy.listening.certificate import Certificate, Files
from mirrorproxy.listening.listening import Clients, Listening, raise_file_limit
from mirrorproxy.logs import set_up, wants_json
from mirrorproxy.metrics import Metrics
from mirrorproxy.service.catalog import CachedCatalog
from mirrorproxy.service.contents import Contents
from mirrorproxy.service.sockets import Sockets
from mirrorproxy.service.stack import Stacks, terms
from mirrorproxy.store.directory import warn_of_network
from mirrorproxy.tasks import Tasks
from mirrorproxy.web.access import AccessLog
from mirrorproxy.web.admin import AdminServer
from mirrorproxy.web.app import LAST_REQUESTS, App
from mirrorproxy.web.probes import OwnPages, Probes, State
from mirrorproxy.web.routes import Names
from mirrorproxy.workers.hub import Hub
from mirrorproxy.workers.pool import Workers, processes
from mirrorproxy.workers.template import Template
from mirrorproxy.workers.totals import Totals
from mirrorproxy.workers.words import Orders

log = logging.getLogger(__name__)

_KEPT = 256  # files that a worker keeps open for a second
_PAGES = 64  # connections for health pages and metrics, where these have an address of their own
_LOOK_EVERY = 5.0  # seconds
_FAREWELL = 1.0  # seconds for requests that were cut off to be put down in the log


class Service:
    """One running mirrorproxy. `start` it, `reload` it, `stop` it; `aclose` in any case."""

    def __init__(
        self, settings: Settings, inherited: Sequence[socket.socket] = (), template: Template | None = None
    ) -> None:
        """`inherited` are listening sockets to serve on, instead of those that `server.listen` asks for. Workers are
        copies of `template`.
        """
        self._template = template
        self._settings = self._started = settings
        self._served = _names(settings)  # one for all requests: what is remembered of their targets keeps it
        self._inherited = inherited
        self._parts = AsyncExitStack()  # closed in the opposite order of their making
        self._tasks = Tasks()
        self._rebuilding = False
        self._probes = Probes(self._troubles)
        self._listening: Listening | None = None  # where clients are answered here,
        self._workers: Workers | None = None  # and in processes of their own

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

        self._refetch = Refetch(self._contents.index, self._stacks.registry, self._contents.blobs)
        self._checker = Checker(lambda: self._settings.scrub.rate)
        self._parts.push_async_callback(self._checker.aclose)
        self._scrub = Scrub(
            self._contents.directory,
            self._contents.blobs,
            self._checker,
            Quarantine(self._contents.directory / "quarantine", lambda: self._contents.ledger.limit),
            metrics,
            self._refetch,
            every=settings.scrub.every,
            tidied=self._quarantined,
        )
        self._contents.shelf.suspect = self._scrub.suspect

        human, shared = not wants_json(settings.log.format, sys.stdout), processes(settings.server.workers) > 1
        self._access = AccessLog(sys.stdout, human=human, shared=shared)
        self._parts.push_async_callback(self._access.aclose)
        self._access.enabled = settings.log.access
        catalog = CachedCatalog(self._contents.index, self._names)
        totals = Totals(metrics)
        pages = OwnPages(self._probes, totals, self._count)
        self._app = App(
            self._stacks.registry,
            catalog,
            self._names,
            metrics,
            self._access,
            self._probes,
            settings.server.write_timeout,
            most.requests,
            pages=pages,
            shows_metrics=not settings.server.metrics_listen,
        )
        self._parts.push_async_callback(self._app.aclose)
        self._contents.changed = self._forget
        self._certificate = _certificate(settings)
        self._observe(metrics)

        self._parts.push_async_callback(self._app.drained, _FAREWELL)
        # Answers while draining, too: that is when one looks.
        watched = await Sockets.open(settings.server.metrics_listen, "server.metrics_listen")
        self._parts.callback(watched.close)
        page_server = Listening(self._app.page_server(), None, _PAGES)
        self._parts.push_async_callback(page_server.aclose)
        await page_server.start(watched.sets[0])
        await self._listen_to_commands()
        await self._listen(most, lambda: Hub(self._stacks.registry, catalog, pages), totals)

        self._parts.push_async_callback(self._tasks.aclose)
        self._tasks.start(self._retention.run(), name="retention")
        self._tasks.start(self._housekeeping(), name="housekeeping")
        self._tasks.start(heap.keep_giving_back(), name="memory")
        self._tasks.start(self._scrub.run(), name="scrub")
        if self._certificate is not None:
            self._tasks.start(self._certificate.watch(), name="certificate")
        self._probes.state = State.READY
        log.info("mirrorproxy %s %s", __version__, self.status)
        if settings.server.metrics_listen:
            log.info("metrics and health pages are on %s", ", ".join(watched.addresses))

    async def _listen(self, most: Clients, hub: Callable[[], Hub], totals: Totals) -> None:
        """Let clients in: here, or in processes of their own where there shall be several."""
        count = processes(self._settings.server.workers)
        if self._inherited:
            log.info("%s: handed over to this process; server.listen is not used", self._addresses)
            self._sockets = Sockets.inherited(self._inherited, count)
        else:
            self._sockets = await Sockets.open(self._settings.server.listen, "server.listen, --listen", count)
        self._parts.callback(self._sockets.close)
        self._addresses = ", ".join(self._sockets.addresses)
        if count == 1:
            self._listening = Listening(self._app.server(), self._certificate, most.connections)
            self._parts.push_async_callback(self._listening.aclose)
            await self._listening.start(self._sockets.sets[0])
            return
        template = self._template or await Template.anew()
        self._keep_open = min(_KEPT, most.requests // (2 * count))
        orders, registries = _orders(self._settings, self._keep_open), list(self._settings.upstreams)
        self._workers = Workers(self._sockets.sets, hub, totals, orders, registries, template)
        self._parts.push_async_callback(self._workers.aclose)
        await self._workers.start()

    @property
    def status(self) -> str:
        """What it does, in one line."""
        how = "" if self._certificate is None else " over HTTPS"
        workers = processes(self._started.server.workers)
        how += f" with {workers} workers" if workers > 1 else ""
        return f"serves {', '.join(self._settings.upstreams)}{how} on {self._addresses}"

    @property
    def grace(self) -> float:
        """Seconds that running transfers get at the end."""
        return self._settings.server.grace

    def reload(self, settings: Settings) -> None:
        """Take over what can be while running, and say what cannot."""
        found, waiting = changes(self._settings, settings), changes(self._started, settings).needs_restart
        if waiting:
            log.warning("these changes wait for a restart: %s", ", ".join(waiting))
        set_up(settings.log.level, settings.log.format)
        self._stacks.use(settings.upstreams)
        self._fills.use(terms(settings))
        self._contents.use(settings)
        self._app.forget()
        self._scrub.every = settings.scrub.every
        self._app.allow(settings.server.write_timeout)
        self._access.enabled = settings.log.access
        if self._certificate is not None and settings.server.tls is not None:
            self._certificate.use(Files(settings.server.tls.cert, settings.server.tls.key))
        if self._workers is not None:
            self._workers.use(_orders(settings, self._keep_open))
        self._settings = settings
        self._served = _names(settings)
        log.info("loaded anew: %s", ", ".join(found.reloaded) or "nothing changed")

    async def stop(self) -> None:
        """Drain: not ready, no new connections, running transfers get `server.grace` seconds."""
        self._probes.state = State.DRAINING
        grace = self._settings.server.grace
        await self._count()
        requests = self._app.inflight + (0 if self._workers is None else self._workers.totals.requests)
        log.info("stopping; %d requests get %.0f s to end", requests, grace)
        if self._listening is not None:
            await self._listening.close()
            await asyncio.sleep(LAST_REQUESTS)
        self._sockets.close()
        if self._workers is not None:
            await self._workers.drain(grace)
        await self._app.drained(grace)

    async def aclose(self) -> None:
        """End everything. Downloads keep what they have."""
        await self._parts.aclose()

    def _names(self) -> Names:
        return self._served

    @property
    def _inflight(self) -> int:
        return self._app.inflight + (0 if self._workers is None else len(self._workers))

    def _forget(self) -> None:
        self._app.forget()
        if self._workers is not None:
            self._workers.forget()

    async def _count(self) -> None:
        if self._workers is not None:
            await self._workers.count()

    async def _listen_to_commands(self) -> None:
        admin = AdminServer(self._contents.desk(lambda: self._settings, self._stacks.refresh, self._refetch))
        self._parts.push_async_callback(admin.aclose)
        try:
            await admin.start()
        except CacheFailed as error:  # a full disk: commands wait, pulls do not
            log.error("%s; commands cannot reach this service", error)
            self._contents.thawed = self._listen_to_commands

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
            if not self._inflight and not len(self._fills):
                await self._stacks.retire()
            await asyncio.sleep(_LOOK_EVERY)

    async def _rebuild(self) -> None:
        try:
            await self._contents.rebuild()
        finally:
            self._rebuilding = False


def _names(settings: Settings) -> Names:
    return Names(settings.default_registry, frozenset(settings.upstreams))


def _certificate(settings: Settings) -> Certificate | None:
    tls = settings.server.tls
    return None if tls is None else Certificate(Files(tls.cert, tls.key))


def _orders(settings: Settings, keep_open: int) -> Orders:
    tls = settings.server.tls
    return Orders(
        _names(settings),
        None if tls is None else Files(tls.cert, tls.key),
        settings.server.write_timeout,
        settings.log.level,
        settings.log.format,
        settings.log.access,
        shows_metrics=not settings.server.metrics_listen,
        keep_open=keep_open,
    )
