"""One endpoint of an upstream: asks it what a `Registry` is asked, and believes nothing that was not checked.

Source: OCI distribution specification ("Pulling manifests", "Pulling blobs", "Listing Tags", "Listing Referrers"). The
quirks of real registries stand beside the code that knows them.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from multidict import CIMultiDictProxy

from mirrorproxy.errors import BadAnswer, DigestMismatch, MirrorproxyError, NotFound, Unauthorized, UpstreamError
from mirrorproxy.manifests import ACCEPT, MAX_SIZE, OCI_INDEX
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Descriptor, Digest, Reference, Repository
from mirrorproxy.registry import Kind, Listing, Manifest, Outcome, Resolved, Result
from mirrorproxy.spans import format_range
from mirrorproxy.upstream import checks
from mirrorproxy.upstream.answers import is_final_head, refusal
from mirrorproxy.upstream.endpoint import Endpoint
from mirrorproxy.upstream.health import Health
from mirrorproxy.upstream.links import next_query
from mirrorproxy.upstream.transfer import BodyTransfer

T = TypeVar("T")

_BLOB = "application/octet-stream"
_JSON = "application/json"
_MAX_LISTING = 4 << 20  # bytes
_THREAD_FROM = 64 << 10  # bytes whose hash and JSON would take 0.5 ms and more of the event loop


class Upstream:
    """A registry as one endpoint of it has it, asked once: other tries and other endpoints are `Failover`'s."""

    def __init__(self, registry: str, endpoint: Endpoint, metrics: Metrics) -> None:
        self.name = endpoint.name
        self.health = Health()
        self.trouble: str | None = None
        self._registry = registry
        self._endpoint = endpoint
        self._metrics = metrics
        self._outcome = Outcome(Result.MISS, endpoint=self.name)
        self._received = metrics.upstream_bytes.labels(registry, Kind.BLOB)

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {'up' if self.health.up else 'down'}>"

    def report(self, kind: str, error: MirrorproxyError | None) -> None:
        """Note how a request ended, for the order of the endpoints and for the metrics."""
        if isinstance(error, DigestMismatch):
            self.health.blamed(time.monotonic())
        elif isinstance(error, UpstreamError):
            self.health.failed(kind, error, time.monotonic())
        else:
            self.health.answered()
        self.trouble = None if error is None or self.health.up else error.message
        if isinstance(error, Unauthorized):
            self._metrics.auth_failures.labels("upstream").inc()
        self._metrics.upstream_up.labels(self._registry, self.name).set(self.health.up)
        if error is None or isinstance(error, NotFound):
            self._metrics.last_success.labels(self._registry, self.name).set_to_current_time()

    async def resolve(self, repository: Repository, reference: Reference) -> Resolved:
        """See `Registry`. A HEAD; and a GET where that does not say all, or cannot be believed."""
        path = f"/manifests/{reference}"
        with await self._endpoint.open("HEAD", repository, path, kind=Kind.MANIFEST, accept=ACCEPT) as answer:
            if answer.status == 200:
                checks.check_encoding(answer)
                if descriptor := checks.described(answer, reference):
                    return Resolved(descriptor, self._outcome)
            elif is_final_head(answer):
                raise await refusal(answer, Kind.MANIFEST)
        return Resolved((await self.manifest(repository, reference)).descriptor, self._outcome)

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """See `Registry`."""
        path = f"/manifests/{reference}"
        body, headers = await self._document(Kind.MANIFEST, repository, path, accept=ACCEPT, limit=MAX_SIZE)
        try:
            manifest = await _off_loop(body, lambda: checks.manifest(body, headers, reference))
        except DigestMismatch:
            self._metrics.mismatches.labels(self._registry).inc()
            raise
        return replace(manifest, outcome=self._outcome)

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry`. A HEAD; where that does not say it, a GET of one byte.

        Harbor's proxy projects answer 404 to the HEAD of a blob that a GET would fetch (goharbor/harbor#22609).
        """
        path = f"/blobs/{digest}"
        with await self._endpoint.open("HEAD", repository, path, kind=Kind.BLOB) as answer:
            if answer.status == 200:
                checks.check_blob(answer, digest)
                if answer.length is not None:
                    return Resolved(Descriptor(_BLOB, digest, answer.length))
            elif answer.status != 404 and is_final_head(answer):
                raise await refusal(answer, Kind.BLOB)
        with await self._endpoint.open("GET", repository, path, kind=Kind.BLOB, span=format_range(0, 1)) as answer:
            if answer.status in (200, 206):
                checks.check_blob(answer, digest)
            elif answer.status != 416:
                raise await refusal(answer, Kind.BLOB)
            size = checks.size_of(answer)
        if size is None:
            raise BadAnswer(f"{self.name} does not say how large a blob is")
        return Resolved(Descriptor(_BLOB, digest, size))

    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> BodyTransfer:
        """See `Registry`. A GET at once, of no more than is asked for."""
        span, path = format_range(start, end) if start or end is not None else None, f"/blobs/{digest}"
        answer = await self._endpoint.open("GET", repository, path, kind=Kind.BLOB, span=span, bulk=True)
        try:
            if answer.status in (200, 206):
                checks.check_blob(answer, digest)
            elif answer.status != 416:
                raise await refusal(answer, Kind.BLOB)
            held, size = checks.received_span(answer, start, end)
        except BaseException:
            self._endpoint.forget(repository, path)
            answer.close()
            raise

        def report(error: UpstreamError) -> None:
            self._endpoint.forget(repository, path)
            self.report(Kind.BLOB, error)

        return BodyTransfer(
            digest,
            answer,
            held,
            size,
            self._outcome,
            count=self._received.inc,
            report=report,
        )

    def expect(self, blobs: int) -> None:
        """See `Origin`."""
        self._endpoint.dial(blobs)

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry`."""
        body, headers = await self._document(Kind.TAGS, repository, "/tags/list", query, accept=_JSON)
        await _off_loop(body, lambda: checks.check_tags(self.name, body))
        return Listing(body, _JSON, next_query(headers.getall("Link", [])))

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry`."""
        path = f"/referrers/{digest}"
        body, headers = await self._document(Kind.REFERRERS, repository, path, query, accept=OCI_INDEX)
        await _off_loop(body, lambda: checks.check_referrers(self.name, body, headers.get("Content-Type", "")))
        filters = headers.get("OCI-Filters-Applied")
        return Listing(body, OCI_INDEX, next_query(headers.getall("Link", [])), filters)

    async def _document(
        self,
        kind: Kind,
        repository: Repository,
        path: str,
        query: str = "",
        *,
        accept: str,
        limit: int = _MAX_LISTING,
    ) -> tuple[bytes, CIMultiDictProxy[str]]:
        with await self._endpoint.open("GET", repository, path, kind=kind, query=query, accept=accept) as answer:
            if answer.status != 200:
                raise await refusal(answer, kind)
            checks.check_encoding(answer)
            body = await answer.body(limit)
            self._metrics.upstream_bytes.labels(self._registry, kind).inc(len(body))
            return body, answer.headers


async def _off_loop(body: bytes, work: Callable[[], T]) -> T:
    """`work` over `body`: in a thread where that is large."""
    return work() if len(body) < _THREAD_FROM else await asyncio.to_thread(work)
