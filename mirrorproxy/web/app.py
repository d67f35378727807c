"""One handler for every request: parse, answer, keep the books."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from aiohttp import web

from mirrorproxy import tracing
from mirrorproxy.errors import Denied, MirrorproxyError, NotFound, Overloaded
from mirrorproxy.metrics import Metrics
from mirrorproxy.registry import Registry
from mirrorproxy.web import errors, routes
from mirrorproxy.web.access import AccessLog, RequestIds
from mirrorproxy.web.again import Again
from mirrorproxy.web.books import Books
from mirrorproxy.web.client import ClientGone
from mirrorproxy.web.probes import TEXT, OwnPages, Pages, Probes, State
from mirrorproxy.web.routes import Names, Page, PageRoute, Push, Route
from mirrorproxy.web.server import Server
from mirrorproxy.web.stream import CLOSED, FEW, KEPT, Delivery, Reply
from mirrorproxy.web.v2 import INDEX, V2, Catalog

log = logging.getLogger(__name__)

LAST_REQUESTS = 0.2
"""Seconds between the last connection and the last request: who was let in at the last moment has yet to ask."""

_PAGES = frozenset(page.value for page in Page)

_REMEMBERED = 2048  # parsed targets
_REMEMBERED_LENGTH = 512  # characters of each: 2 MB in all
_DISK_READERS = 8  # threads


class App:
    """Everything that is answered over HTTP.

    `names` gives the configured registries at each request, so that a reload counts at once. `inflight` is the number
    of requests being answered; beyond `limit` of them the answer is 503, but for health pages and metrics. `pages` says
    what is on these, where it is not this process alone. `shows_metrics`: clients may see them, since there is no
    `page_server` for those who watch. Closed by `aclose`, after the servers.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        names: Callable[[], Names],
        metrics: Metrics,
        access: AccessLog,
        probes: Probes,
        write_timeout: float = 60.0,
        limit: int = 10_000,
        *,
        pages: Pages | None = None,
        shows_metrics: bool = True,
    ) -> None:
        self.inflight = 0
        self._limit = limit
        self._shows_metrics = shows_metrics
        self._idle = asyncio.Event()
        self._v2 = V2(registry, catalog)
        self._names = names
        self._metrics = metrics
        self._books = Books(metrics, access)
        self._probes = probes
        self._pages = OwnPages(probes, metrics.collectors) if pages is None else pages
        self._readers = ThreadPoolExecutor(_DISK_READERS, thread_name_prefix="cold pages")
        self._delivery = Delivery(write_timeout, self._readers, asyncio.Semaphore(FEW))
        self._ids = RequestIds()
        self._again = Again(self._books, self._ids, probes)
        self._parse = lru_cache(_REMEMBERED)(_parse)

    def server(self, *, handler_cancellation: bool = True) -> Server:
        """The server, for `web.ServerRunner`. `handler_cancellation`: stop answering as soon as the client is gone."""
        again = None if tracing.is_on() else self._again.give  # which no span would tell of
        return Server(self.handle, self._malformed, again, handler_cancellation=handler_cancellation)

    def page_server(self) -> Server:
        """A server of health pages and metrics alone, for an address that clients need not reach."""
        return Server(self._handle_page, self._malformed, None, handler_cancellation=True)

    def allow(self, write_timeout: float) -> None:
        """How many seconds a client may take nothing, from the next request on."""
        self._delivery = self._delivery._replace(write_timeout=write_timeout)

    def forget(self) -> None:
        """Answer nothing from memory alone that was answered before: what is cached, or served, has changed."""
        self._again.forget()

    async def drained(self, grace: float) -> None:
        """Return when no request is being answered, or after `grace` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.inflight:
                    self._idle.clear()
                    await self._idle.wait()

    async def aclose(self) -> None:
        """Let the threads go."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: whole, or broken off if it could not be. Raises nothing but a cancellation."""
        if not tracing.is_on() or request.raw_path.partition("?")[0] in _PAGES:
            return await self._handle(request, self._route)
        with tracing.span("request", "SERVER", headers=request.headers):
            return await self._handle(request, self._route)

    async def _handle_page(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handle(request, self._page_route)

    async def _handle(
        self, request: web.BaseRequest, route_of: Callable[[web.BaseRequest], Route]
    ) -> web.StreamResponse:
        began = asyncio.get_running_loop().time()
        reply = Reply(request, self._ids.choose(request.headers.get("X-Request-ID")), self._delivery)
        if self._probes.state is State.DRAINING:
            reply.keep_alive = False
        self.inflight += 1
        route: Route | None = None
        error: MirrorproxyError | None = None
        generation = self._again.generation
        try:
            route = route_of(request)
            await self._answer(reply, route)
            self._again.keep(reply, route, began, generation)
        except ClientGone:
            pass  # the books tell
        except MirrorproxyError as caught:
            error = caught
            await self._refuse(reply, error)
        except Exception:
            log.exception("request %s failed", reply.request_id)
            error = MirrorproxyError("an error of mirrorproxy's own; its log says more")
            await self._refuse(reply, error)
        finally:
            self.inflight -= 1
            if not self.inflight:
                self._idle.set()
            if not reply.complete:
                reply.abort()
            self._books.put(reply, route, error, began)
        return KEPT if reply.keep_alive else CLOSED

    def _route(self, request: web.BaseRequest) -> Route:
        route = self._parsed(request)
        if isinstance(route, PageRoute) and route.page is Page.METRICS and not self._shows_metrics:
            raise NotFound("the metrics are at another address: server.metrics_listen in the configuration")
        return route

    def _page_route(self, request: web.BaseRequest) -> Route:
        route = self._parsed(request)
        if not isinstance(route, PageRoute | Push):
            raise NotFound("here are health pages and metrics alone; registries are at server.listen")
        return route

    def _parsed(self, request: web.BaseRequest) -> Route:
        target = request.raw_path
        parse = self._parse if len(target) <= _REMEMBERED_LENGTH else _parse
        return parse(request.method, target, self._names())

    async def _answer(self, reply: Reply, route: Route) -> None:
        if isinstance(route, PageRoute):
            await self._page(reply, route)
            return
        if self.inflight > self._limit:
            raise Overloaded("too many requests at once; try again shortly", limit="requests")
        if isinstance(route, Push) and "Expect" in reply.request.headers:
            reply.keep_alive = False  # whether the body will come is the client's to decide
        form = getattr(route, "form", routes.BARE)
        if form.ns is not None:
            reply.common["OCI-Namespace"] = form.ns
        await self._v2.answer(reply, route)

    async def _refuse(self, reply: Reply, error: MirrorproxyError) -> None:
        """Say what went wrong; where the response has begun, nothing can be said any more."""
        if isinstance(error, Denied):
            self._metrics.auth_failures.labels("client").inc()
        if isinstance(error, Overloaded) and error.limit:
            self._metrics.refused.labels(error.limit).inc()
        if reply.status:
            return
        try:
            body = errors.body(error.code, error.message, error.detail)
            await reply.send(errors.status(error), errors.fields(error), body)
        except ClientGone:
            pass  # the books tell

    async def _page(self, reply: Reply, route: PageRoute) -> None:
        status, content_type, body = 200, TEXT, INDEX
        match route.page:
            case Page.LIVEZ | Page.HEALTHZ:
                status, content_type, body = await self._pages.live()
            case Page.READYZ:
                verbose = any(part.partition("=")[0] == "verbose" for part in route.query.split("&"))
                status, content_type, body = await self._pages.ready(verbose=verbose)
            case Page.METRICS:
                accept = ",".join(reply.request.headers.getall("Accept", ()))
                status, content_type, body = await self._pages.metrics(accept)
            case Page.INDEX:
                pass
        await reply.send(status, {"Content-Type": content_type, "Cache-Control": "no-store"}, body)

    def _malformed(self, request: web.BaseRequest) -> str:
        """Put down what did not parse. Returns its name."""
        request_id = self._ids.choose(None)
        self._books.malformed(request, request_id)
        return request_id


def _parse(method: str, target: str, names: Names) -> Route:
    path, query = routes.split(target)
    return routes.parse(method, path, query, names)
