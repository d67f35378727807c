"""The endpoints of one upstream as one `Registry`: in order, within one request, until one has an answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from mirrorproxy.errors import NotFound, UpstreamError
from mirrorproxy.names import Digest, Reference, Repository
from mirrorproxy.registry import Kind, Listing, Manifest, Resolved
from mirrorproxy.upstream import retry
from mirrorproxy.upstream.client import Upstream
from mirrorproxy.upstream.transfer import BodyTransfer

T = TypeVar("T")

_PART = "part of a blob"


class Failover:
    """A `Registry` that asks `upstreams` in their order, those that fail last, and all of them again after a while.

    "Not found" counts where the first of them says so, or one whose every predecessor said so too: a mirror further
    down may lack what the first would have had. Where nobody has an answer, the first one's error is raised.
    For a part of a blob, whose other parts somebody had, all are asked before one is believed.
    """

    def __init__(self, upstreams: Sequence[Upstream], aclose: Callable[[], Awaitable[None]]) -> None:
        self._upstreams = upstreams
        self._aclose = aclose

    def __repr__(self) -> str:
        return f"<Failover {' '.join(map(repr, self._upstreams))}>"

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:  # noqa: ARG002 - nothing is stale here
        """See `Registry`."""
        return await self._ask(Kind.MANIFEST, lambda upstream: upstream.resolve(repository, reference))

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:  # noqa: ARG002 - as above
        """See `Registry`."""
        return await self._ask(Kind.MANIFEST, lambda upstream: upstream.manifest(repository, reference))

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry`."""
        return await self._ask(Kind.BLOB, lambda upstream: upstream.stat(repository, digest))

    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> BodyTransfer:
        """See `Registry`. What breaks after the first byte is the caller's to continue, by asking for the rest."""
        # A part has an embargo of its own: a 429 to one more connection for a large blob must not shut out other pulls.
        kind = _PART if start or end is not None else Kind.BLOB
        return await self._ask(kind, lambda upstream: upstream.blob(repository, digest, start, end))

    def expect(self, blobs: int) -> None:
        """See `Origin`: connections to the endpoint that is asked first."""
        first = next((upstream for upstream in self._upstreams if upstream.health.up), self._upstreams[0])
        first.expect(blobs)

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry`."""
        return await self._ask(Kind.TAGS, lambda upstream: upstream.tags(repository, query))

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry`."""
        return await self._ask(Kind.REFERRERS, lambda upstream: upstream.referrers(repository, digest, query))

    @property
    def names(self) -> list[str]:
        """What the endpoints are called, in the metrics too."""
        return [upstream.name for upstream in self._upstreams]

    def troubles(self) -> Iterator[str]:
        """What is wrong with the endpoints, a line each; by their last answers."""
        for upstream in self._upstreams:
            if upstream.trouble is not None:
                yield f"upstream {upstream.name}: {upstream.trouble}"

    async def aclose(self) -> None:
        """Close all connections, and forget tokens."""
        await self._aclose()

    async def _ask(self, kind: str, call: Callable[[Upstream], Awaitable[T]]) -> T:
        began = time.monotonic()
        for attempt in range(1, retry.ATTEMPTS + 1):
            try:
                return await self._once(kind, call)
            except _NoAnswerError as nothing:
                delays = [retry.verdict(attempt, error) for error in nothing.errors]
                delay = min((delay for delay in delays if delay is not None), default=retry.PATIENCE)
                if time.monotonic() - began + delay >= retry.PATIENCE:
                    raise _together(nothing.errors) from None
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, kind: str, call: Callable[[Upstream], Awaitable[T]]) -> T:
        """Ask each upstream once, until one has an answer. Raises `NotFound`, or `_NoAnswerError`."""
        failures: dict[Upstream, UpstreamError] = {}
        denied: set[Upstream] = set()
        believed: NotFound | None = None
        for upstream in self._in_order():
            error: UpstreamError | None = upstream.health.embargo(kind, time.monotonic())
            if error is None:
                try:
                    answer = await call(upstream)
                    upstream.report(kind, None)
                    return answer
                except NotFound as denial:
                    upstream.report(kind, denial)
                    denied.add(upstream)
                    if self._denied_up_to(upstream, denied):
                        if kind != _PART:
                            raise
                        believed = believed or denial
                    continue
                except UpstreamError as failure:
                    upstream.report(kind, failure)
                    error = failure
            failures[upstream] = error
        if believed is not None:
            raise believed
        raise _NoAnswerError([failures[upstream] for upstream in self._upstreams if upstream in failures])

    def _in_order(self) -> Iterator[Upstream]:
        """As configured, those that are cooling down after the others."""
        cooling = []
        for upstream in self._upstreams:
            if upstream.health.admits(time.monotonic()):
                yield upstream
            else:
                cooling.append(upstream)
        yield from cooling

    def _denied_up_to(self, upstream: Upstream, denied: set[Upstream]) -> bool:
        """Did this one and all configured before it say "not found"?"""
        return denied.issuperset(self._upstreams[: self._upstreams.index(upstream) + 1])


class _NoAnswerError(Exception):
    """No endpoint had an answer: what each of them said instead, in their order."""

    def __init__(self, errors: list[UpstreamError]) -> None:
        self.errors = errors


def _together(errors: list[UpstreamError]) -> UpstreamError:
    """The first error, with the words of all, and no longer a wait than until the first endpoint may be asked again."""
    first = errors[0]
    if len(errors) == 1:
        return first
    soonest = min((error.retry_after or 0.0 for error in errors if isinstance(error, retry.PASSING)), default=0.0)
    words = "; ".join(error.message for error in errors)
    return type(first)(words, detail=first.detail, retry_after=soonest or None)
