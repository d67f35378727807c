"""The registry protocol, pull side, over any `Registry`.

Distribution specification, "Pull", "Content Discovery"; RFC 9110 for conditions and ranges, RFC 9211 for Cache-Status.
"""

import json
from contextlib import aclosing
from typing import Protocol, assert_never
from urllib.parse import quote

from multidict import CIMultiDictProxy

from mirrorproxy import __version__
from mirrorproxy.errors import NotFound, Unsupported
from mirrorproxy.names import Digest
from mirrorproxy.registry import Blob, Listing, Outcome, Registry, Result
from mirrorproxy.spans import RangeRequest, Span, parse_range
from mirrorproxy.web import errors
from mirrorproxy.web.routes import (
    Base,
    BlobRoute,
    CatalogRoute,
    ManifestRoute,
    Push,
    ReferrersRoute,
    TagsRoute,
    Unknown,
    unparse,
)
from mirrorproxy.web.stream import Reply

Headers = CIMultiDictProxy[str]
V2Route = Base | ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute | CatalogRoute | Push | Unknown

_CATALOG_LIMIT = 1000  # entries on a page

_FOR_EVER = "private, max-age=31536000, immutable"
"""What a digest names never changes. Private, since a cache between would not ask whether the next one may see it."""

_ASK_AGAIN = "private, no-cache"
"""What a tag names may. A max-age would be added to our own `tag_ttl`; the ETag makes asking again cheap."""

_CACHE_STATUS = {
    Result.HIT: "mirrorproxy; hit",
    Result.MISS: "mirrorproxy; fwd=miss",
    Result.COALESCED: "mirrorproxy; fwd=miss; collapsed",
    Result.REVALIDATED: "mirrorproxy; hit; detail=revalidated",
    Result.STALE: "mirrorproxy; fwd=stale",
    Result.NEGATIVE: "mirrorproxy; hit; detail=negative",
    Result.BYPASS: "mirrorproxy; fwd=bypass",
    Result.ERROR: "mirrorproxy; fwd=miss",
}
_FROM_CACHE = frozenset({Result.HIT, Result.REVALIDATED, Result.STALE, Result.NEGATIVE})


class Catalog(Protocol):
    """Who knows what is cached."""

    async def catalog(self, registry: str | None, n: int, last: str | None) -> tuple[list[str], bool]:
        """Up to `n` names after `last`, sorted, and whether there are more: of one registry, or `registry/name` of all.

        None of the errors of a `Registry`: nothing is asked upstream.
        """
        ...


class V2:
    """Answers each kind of route from `registry`. Raises as that does: the one table of errors is elsewhere."""

    def __init__(self, registry: Registry, catalog: Catalog) -> None:
        self._registry = registry
        self._catalog = catalog

    async def answer(self, reply: Reply, route: V2Route) -> None:
        """Send the response to a request for `route`."""
        match route:
            case ManifestRoute():
                await self._manifest(reply, route)
            case BlobRoute():
                await self._blob(reply, route)
            case TagsRoute():
                listing = await self._registry.tags(route.repository, route.query)
                await self._list(reply, route, listing)
            case ReferrersRoute():
                listing = await self._registry.referrers(route.repository, route.digest, route.query)
                await self._list(reply, route, listing)
            case CatalogRoute():
                await self._names(reply, route)
            case Base():
                await reply.send(200, {"Content-Type": "application/json"}, b"{}")
            case Push():
                raise Unsupported("this is a pull-through cache: push to the registry itself")
            case Unknown():
                raise NotFound("there is no such page here; registries are under /v2/")
            case _:
                assert_never(route)

    async def _manifest(self, reply: Reply, route: ManifestRoute) -> None:
        headers = reply.request.headers
        fresh = asks_upstream(headers)
        body = b""
        if reply.request.method == "HEAD":
            resolved = await self._registry.resolve(route.repository, route.reference, fresh=fresh)
            descriptor, outcome = resolved.descriptor, resolved.outcome
        else:
            manifest = await self._registry.manifest(route.repository, route.reference, fresh=fresh)
            descriptor, outcome, body = manifest.descriptor, manifest.outcome, manifest.body
        reply.outcome = outcome
        fields = content_fields(outcome, descriptor.digest, immutable=isinstance(route.reference, Digest))
        if has_already(headers, descriptor.digest):
            await reply.send(304, fields)
        else:
            fields["Content-Type"] = descriptor.media_type
            await reply.send(200, fields, body, length=len(body) or descriptor.size)

    async def _blob(self, reply: Reply, route: BlobRoute) -> None:
        headers = reply.request.headers
        unchanged = has_already(headers, route.digest)
        if unchanged or reply.request.method == "HEAD":
            resolved = await self._registry.stat(route.repository, route.digest)
            reply.outcome = resolved.outcome
            fields = content_fields(resolved.outcome, route.digest, immutable=True) | {"Accept-Ranges": "bytes"}
            if unchanged:
                await reply.send(304, fields)
            else:
                fields["Content-Type"] = "application/octet-stream"
                await reply.send(200, fields, length=resolved.descriptor.size)
            return
        wanted = wanted_range(headers, route.digest)
        if wanted is not None and wanted.start is None:  # the last bytes: to ask for them takes the size
            size = (await self._registry.stat(route.repository, route.digest)).descriptor.size
            span = wanted.resolve(size)
            wanted = RangeRequest(size, None) if span is None else RangeRequest(span.start, span.end)
        async with aclosing(await self._open(route, wanted)) as blob:
            reply.outcome = blob.outcome
            await self._send(reply, route, blob, wanted)

    async def _open(self, route: BlobRoute, wanted: RangeRequest | None) -> Blob:
        if wanted is None or wanted.start is None:
            return await self._registry.blob(route.repository, route.digest)
        blob = await self._registry.blob(route.repository, route.digest, wanted.start, wanted.end)
        if blob.size is None:  # no Content-Range without a size: the client gets the whole, which this may not have
            await blob.aclose()
            return await self._registry.blob(route.repository, route.digest)
        return blob

    async def _send(self, reply: Reply, route: BlobRoute, blob: Blob, wanted: RangeRequest | None) -> None:
        fields = content_fields(blob.outcome, route.digest, immutable=True)
        fields["Content-Type"] = "application/octet-stream"
        if blob.size is None:
            await reply.stream(200, fields, blob, None)
            return
        fields["Accept-Ranges"] = "bytes"
        if wanted is None:
            await reply.stream(200, fields, blob, Span(0, blob.size))
        elif span := wanted.resolve(blob.size):
            fields["Content-Range"] = span.content_range(blob.size)
            await reply.stream(206, fields, blob, span)
        else:
            body = errors.body("RANGE_INVALID", "the range begins after the end of the blob", {"size": blob.size})
            fields = {"Content-Type": "application/json", "Content-Range": f"bytes */{blob.size}"}
            await reply.send(416, fields, body)

    async def _list(self, reply: Reply, route: TagsRoute | ReferrersRoute, listing: Listing) -> None:
        reply.outcome = listing.outcome
        fields = content_fields(listing.outcome) | {"Content-Type": listing.media_type}
        if listing.filters is not None:
            fields["OCI-Filters-Applied"] = listing.filters
        if listing.next_query is not None:
            # In the client's own form: it follows the link as it stands. Upstream's text may hold what ends a link.
            query = quote(listing.next_query, safe="%=&+-._~:/,;@!*'()")
            fields["Link"] = f'<{unparse(route._replace(query=query))}>; rel="next"'
        await reply.send(200, fields, listing.body)

    async def _names(self, reply: Reply, route: CatalogRoute) -> None:
        n = _CATALOG_LIMIT if route.n is None else min(route.n, _CATALOG_LIMIT)
        names, more = await self._catalog.catalog(route.registry, n, route.last)
        fields = {"Content-Type": "application/json", "Cache-Control": _ASK_AGAIN}
        if more and names:
            fields["Link"] = f'<{unparse(route._replace(n=n, last=names[-1]))}>; rel="next"'
        await reply.send(200, fields, json.dumps({"repositories": names}).encode())


def content_fields(outcome: Outcome, digest: Digest | None = None, *, immutable: bool = False) -> dict[str, str]:
    """The fields that tell what content is, and how it came about."""
    status = _CACHE_STATUS[outcome.result]
    fields = {
        "Cache-Control": _FOR_EVER if immutable else _ASK_AGAIN,
        "Cache-Status": f"{status}; stored" if outcome.stored and outcome.result not in _FROM_CACHE else status,
    }
    if digest is not None:
        fields["Docker-Content-Digest"] = digest
        fields["ETag"] = f'"{digest}"'
    if outcome.result in _FROM_CACHE:
        fields["Age"] = str(int(max(0, outcome.age)))
    return fields


def has_already(headers: Headers, digest: Digest) -> bool:
    """If-None-Match names this digest: quoted, bare or weak, alone or in a list, or `*` (distribution, etagMatch)."""
    if "If-None-Match" not in headers:
        return False
    for line in headers.getall("If-None-Match"):
        for tag in line.split(","):
            tag = tag.strip()
            if tag == "*" or tag.removeprefix("W/").strip('"') == digest:
                return True
    return False


def wanted_range(headers: Headers, digest: Digest) -> RangeRequest | None:
    """The one range that is asked for, None for the whole; also where If-Range names something else (or a date)."""
    wanted = parse_range(headers.get("Range"))
    if wanted is None or headers.get("If-Range", digest).strip().strip('"') != digest:
        return None
    return wanted


def asks_upstream(headers: Headers) -> bool:
    """The client wants no answer that upstream was not asked for: `Cache-Control: no-cache`, or `Pragma` alone."""
    if "Cache-Control" in headers:
        return any(
            directive.strip().lower() == "no-cache"
            for line in headers.getall("Cache-Control")
            for directive in line.split(",")
        )
    return headers.get("Pragma", "").strip().lower() == "no-cache"


INDEX = (
    f"mirrorproxy {__version__}: a pull-through cache for container images.\n"
    "Registries are under /v2/; health under /livez and /readyz; metrics under /metrics.\n"
).encode()
