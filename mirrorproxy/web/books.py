"""What is put down of a request when it is over: metrics, and a line in the access log."""

import asyncio
import logging
from functools import cache
from typing import NamedTuple

from aiohttp import web
from prometheus_client import Counter, Histogram

from mirrorproxy import tracing
from mirrorproxy.errors import MirrorproxyError, NotFound
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Reference, Repository
from mirrorproxy.registry import Kind, Result
from mirrorproxy.web import routes
from mirrorproxy.web.access import AccessLog, Entry
from mirrorproxy.web.routes import BlobRoute, ManifestRoute, Route
from mirrorproxy.web.stream import Reply

log = logging.getLogger(__name__)

_KINDS = {
    routes.ManifestRoute: Kind.MANIFEST,
    routes.BlobRoute: Kind.BLOB,
    routes.TagsRoute: Kind.TAGS,
    routes.ReferrersRoute: Kind.REFERRERS,
}
_ENDPOINTS = {
    routes.Base: "base",
    routes.ManifestRoute: "manifest",
    routes.BlobRoute: "blob",
    routes.TagsRoute: "tags",
    routes.ReferrersRoute: "referrers",
    routes.CatalogRoute: "catalog",
    routes.Push: "push",
    routes.PageRoute: "page",
    routes.Unknown: "unknown",
}
_WATCHED = frozenset({routes.Page.LIVEZ, routes.Page.READYZ, routes.Page.HEALTHZ, routes.Page.METRICS})
_METHODS = frozenset({"GET", "HEAD"})
_GONE = 499  # in the books alone: the client left before it got a status


class Account(NamedTuple):
    """What all requests that get the same answer have in common."""

    method: str
    path: str
    repository: Repository
    reference: Reference
    kind: Kind
    size: int
    durations: Histogram
    requests: Counter
    sent: Counter
    first_bytes: Histogram


class Books:
    """Keeps `metrics` and the `access` log."""

    def __init__(self, metrics: Metrics, access: AccessLog) -> None:
        self._metrics = metrics
        self._access = access
        self._duration = cache(metrics.duration.labels)
        self._series = cache(self._series_of)

    def put(self, reply: Reply, route: Route | None, error: MirrorproxyError | None, began: float) -> None:
        """Metrics and the line in the access log."""
        request = reply.request
        duration = asyncio.get_running_loop().time() - began
        first_byte = None if reply.first_byte is None else reply.first_byte - began
        status = reply.status or _GONE
        method = request.method if request.method in _METHODS else "other"
        endpoint = "unknown" if route is None else _ENDPOINTS[type(route)]
        self._duration(method, endpoint, str(status)).observe(duration)
        if endpoint == "push":
            self._metrics.pushes.inc()
        kind = None if route is None else _KINDS.get(type(route))
        repository: Repository | None = getattr(route, "repository", None)
        result = None if kind is None else _result(reply, error)
        if kind is not None and repository is not None and result is not None:
            requests, sent, first_bytes = self._series(repository.registry, kind, result)
            requests.inc()
            sent.inc(reply.sent)
            if first_byte is not None:
                first_bytes.observe(first_byte)
        if tracing.is_on():
            _trace(request.method, endpoint, repository, result, status, reply.sent, error)
        if status == 200 and isinstance(route, routes.PageRoute) and route.page in _WATCHED and not _is_talkative():
            return  # probes and scrapes: 29,000 lines a day for a pod in Kubernetes, at rest too
        self._access.write(
            Entry(
                reply.request_id,
                request.remote,
                request.method,
                _told_path(request.raw_path, route),
                repository,
                getattr(route, "reference", None) or getattr(route, "digest", None),
                kind,
                result,
                status,
                reply.sent,
                duration,
                first_byte,
                request.headers.get("User-Agent"),
                not reply.complete,
                None if error is None else error.message,
                tracing.trace_id(),
            )
        )

    def account(self, reply: Reply, route: ManifestRoute | BlobRoute) -> Account:
        """Of a hit that will be given again."""
        request, kind = reply.request, _KINDS[type(route)]
        return Account(
            request.method,
            _told_path(request.raw_path, route),
            route.repository,
            route.digest if isinstance(route, BlobRoute) else route.reference,
            kind,
            reply.sent,
            self._duration(request.method, _ENDPOINTS[type(route)], "200"),
            *self._series(route.repository.registry, kind, Result.HIT),
        )

    def again(self, account: Account, request_id: str, client: str | None, agent: str | None, duration: float) -> None:
        """Put down a hit that was given again, in one write."""
        method, path, repository, reference, kind, size, durations, requests, sent, first_bytes = account
        durations.observe(duration)
        requests.inc()
        if size:
            sent.inc(size)
            first_bytes.observe(duration)
        self._access.write(
            Entry(
                request_id,
                client,
                method,
                path,
                repository,
                reference,
                kind,
                Result.HIT,
                200,
                size,
                duration,
                duration if size else None,
                agent,
                False,
                None,
            )
        )

    def _series_of(self, registry: str, kind: Kind, result: Result) -> tuple[Counter, Counter, Histogram]:
        """The series that content of this kind counts in; kept, since to look one up costs more than to count."""
        metrics = self._metrics
        labels = (registry, kind, result)
        return (
            metrics.requests.labels(*labels),
            metrics.response_bytes.labels(*labels),
            metrics.first_byte.labels(kind, result),
        )

    def malformed(self, request: web.BaseRequest, request_id: str) -> None:
        """Put down what did not parse: nothing of what was sent, which nobody understood."""
        self._duration("other", "unknown", "400").observe(0)
        self._access.write(
            Entry(
                request_id, request.remote, "-", "-", None, None, None, None, 400, 0, 0, None, None, False, "malformed"
            )
        )


def _is_talkative() -> bool:
    return log.isEnabledFor(logging.DEBUG)


def _trace(
    method: str,
    endpoint: str,
    repository: Repository | None,
    result: Result | None,
    status: int,
    sent: int,
    error: MirrorproxyError | None,
) -> None:
    """What the span of a request says (OpenTelemetry's semantic conventions for HTTP servers)."""
    method = method if method in _METHODS else "_OTHER"
    tracing.note(
        {
            "http.request.method": method,
            "http.response.status_code": status,
            "http.response.body.size": sent,
            "mirrorproxy.registry": repository and repository.registry,
            "mirrorproxy.repository": repository and repository.name,
            "mirrorproxy.cache": result and str(result),
            "error.type": None if error is None else type(error).__name__,
        },
        name=f"{method} {endpoint}",
        failed=status >= 500,
    )


def _result(reply: Reply, error: MirrorproxyError | None) -> Result | None:
    """The label of a request: None where it came to nothing, since the client left before there was an answer."""
    if error is None:
        return None if reply.outcome is None else reply.outcome.result
    if error.negative:
        return Result.NEGATIVE
    return Result.MISS if isinstance(error, NotFound) else Result.ERROR


def _told_path(target: str, route: Route | None) -> str:
    """The path as it came, and `ns`; the rest of a query may hold what is nobody's business."""
    if "?" not in target and target.startswith("/"):
        return target
    path = routes.split(target)[0]
    form = getattr(route, "form", routes.BARE)
    return path if form.ns is None else f"{path}?ns={form.ns}"
