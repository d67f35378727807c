"""What an upstream answered: its body, and the one translation of statuses to the errors of the contract."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDictProxy

from mirrorproxy.errors import (
    BadAnswer,
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    NotFound,
    RateLimited,
    ServerFailed,
    TimedOut,
    Unauthorized,
    Unreachable,
    UpstreamError,
)
from mirrorproxy.manifests import bare_media_type
from mirrorproxy.registry import Kind
from mirrorproxy.upstream.retry import parse_retry_after
from mirrorproxy.upstream.transport import host_of, translated

ACCESS = "token"
"""A request for a token, beside the contract's kinds: a label of the metrics."""

_AT_ONCE = 512 << 10  # bytes read from a socket at a time: 6 to 9 % less processor time for a blob than with 256 KiB
_AT_FIRST = 64 << 10  # while the first are on their way to a client: 1 ms earlier there than behind two large reads
_MAX_ERROR_BODY = 8 << 10
_MAX_DRAINED = 16 << 10  # bytes: less than a new connection costs
_DRAIN_TIME = 2.0  # seconds
_FINAL_FAILURES = frozenset({501, 505, 510, 511})  # 5xx that another try does not change; 511 is a captive portal's
_API_VERSION = "Docker-Distribution-Api-Version"
_ERROR_CODE = re.compile(r"[A-Z][A-Z_]{0,63}")
_UNKNOWN_NAMES = frozenset({"NAME_UNKNOWN", "NAME_INVALID", "REPOSITORY_UNKNOWN"})
_NOT_FOUND: dict[str, tuple[type[NotFound], str]] = {
    Kind.MANIFEST: (ManifestUnknown, "has no such manifest"),
    Kind.BLOB: (BlobUnknown, "has no such blob"),
    Kind.TAGS: (NameUnknown, "has no such repository"),
    Kind.REFERRERS: (NotFound, "has no referrers API for this repository"),
    ACCESS: (NotFound, "is no token service at this URL"),
}


class Answer:
    """A response, open until `close`. `home`: from the endpoint itself, and not from where it redirected to."""

    def __init__(self, response: aiohttp.ClientResponse, *, home: bool, idle_timeout: float) -> None:
        self._response = response
        self._transport = None if response.connection is None else response.connection.transport
        self._begun = False
        self._read(_AT_FIRST)
        self._idle_timeout = idle_timeout
        self._places = contextlib.ExitStack()
        self.home = home
        self.host = host_of(response.url)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers."""
        return self._response.headers

    @property
    def length(self) -> int | None:
        """Content-Length, or None where there is none or the body is chunked."""
        return self._response.content_length

    @property
    def media_type(self) -> str:
        """Content-Type without parameters, empty where there is none."""
        return bare_media_type(self.headers.get("Content-Type", ""))

    @property
    def is_html(self) -> bool:
        """A web page: a login form, a captive portal, a proxy's own error."""
        return self.media_type in ("text/html", "application/xhtml+xml")

    async def chunk(self) -> bytes:
        """The next bytes of the body as they come, or nothing at its end.

        Raises `TimedOut` where none come within the idle timeout, `Unreachable` where the connection broke. What had
        arrived before a break is returned first: aiohttp would keep that back.
        """
        if self._begun:
            self._read(_AT_ONCE)
        self._begun = True
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await self._response.content.readany()
        except TimeoutError:
            raise TimedOut(f"{self.host} sent nothing for {self._idle_timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if left := _left(self._response.content, error):
                return left
            raise _broken_body(error, self) from None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises `BadAnswer` where it is more than `limit` bytes, else as `chunk`."""
        if self.length is not None and self.length > limit:
            raise BadAnswer(f"{self.host} sent {self.length} bytes, more than the {limit} that are allowed here")
        chunks, size = [], 0
        while data := await self.chunk():
            size += len(data)
            if size > limit:
                raise BadAnswer(f"{self.host} sent more than the {limit} bytes that are allowed here")
            chunks.append(data)
        return b"".join(chunks)

    async def drain(self) -> None:
        """Read the little that is left, so that the connection can be used again, and close."""
        with contextlib.closing(self), contextlib.suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(_DRAIN_TIME):
                await self.body(_MAX_DRAINED)

    def holding(self, places: contextlib.ExitStack) -> Self:
        """Let go of `places` too when this is closed."""
        self._places = places
        return self

    def close(self) -> None:
        """Let go of the connection: for good, unless the body came to its end, and with that was free already."""
        self._read(_AT_FIRST)  # of the next answer over this connection, whose body comes with its headers
        self._response.close()
        self._places.close()

    def _read(self, size: int) -> None:
        """Read so much from the socket at a time."""
        if self._transport is not None and hasattr(self._transport, "max_size"):  # asyncio's own, and not over TLS
            self._transport.max_size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _left(content: aiohttp.StreamReader, error: BaseException) -> bytes:
    """What `content` holds although its connection broke with `error`."""
    content.set_exception(None)  # type: ignore[arg-type]  # None is what it is before an error
    try:
        return content.read_nowait()
    finally:
        content.set_exception(error)


def _broken_body(error: Exception, answer: Answer) -> UpstreamError:
    if isinstance(error, aiohttp.ClientPayloadError):
        return Unreachable(f"{answer.host} broke the connection before the end of its answer")
    return translated(error, answer.host)


def is_final_head(answer: Answer) -> bool:
    """Does this answer to a HEAD, other than 200, settle it, or should a GET ask again?

    Some servers have no HEAD (405, 501), a 404 without a body does not say whose it is, and signed URLs may be good
    for a GET alone.
    """
    if answer.status == 404:
        return answer.home and (_API_VERSION in answer.headers or answer.media_type == "application/json")
    return answer.status not in (400, 405, 501) and (answer.home or answer.status >= 429)


async def refusal(answer: Answer, kind: str) -> NotFound | UpstreamError:
    """The error that an answer other than 200 and 206 means, for the `kind` of thing that was asked for. Closes it."""
    with contextlib.closing(answer):
        status, host = answer.status, answer.host
        retry_after = parse_retry_after(answer.headers.get("Retry-After"))
        if status == 404:
            return await _not_found(answer, kind)
        if status == 408:
            return TimedOut(f"{host} waited too long for our request")
        if status == 407:
            return Unreachable(f"the proxy on the way to {host} wants other credentials, or some")
        if status == 429:
            return RateLimited(f"{host} says: too many requests", retry_after=retry_after)
        if status >= 500 and status not in _FINAL_FAILURES:
            return ServerFailed(f"{host} failed with status {status}", retry_after=retry_after)
        if not answer.home and status >= 400:
            # A signed URL that expired or was spoilt, mostly: asking the registry again gets a new one.
            return ServerFailed(f"{host}, where the registry keeps its content, answered with status {status}")
        if status in (401, 403):
            return Unauthorized(f"{host} does not allow this with the credentials that it was given, or without any")
        return BadAnswer(f"{host} answered with status {status}")


async def _not_found(answer: Answer, kind: str) -> NotFound | UpstreamError:
    """What a 404 means: only a registry can say that it has no such thing."""
    codes: set[str] = set()
    with contextlib.suppress(UpstreamError):
        codes = set(_codes(await answer.body(_MAX_ERROR_BODY)))
    if not codes:
        if not answer.home:
            return ServerFailed(f"{answer.host}, where the registry keeps its content, does not have it")
        if answer.is_html and _API_VERSION not in answer.headers:
            return BadAnswer(f"{answer.host} answered with a web page (status 404): is this a registry?")
    error, words = (NameUnknown, "has no such repository") if codes & _UNKNOWN_NAMES else _NOT_FOUND[kind]
    return error(f"{answer.host} {words}")


def _codes(body: bytes) -> Iterator[str]:
    """The codes in the JSON of an error (distribution specification, "Error Codes")."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    errors = document.get("errors") if isinstance(document, dict) else None
    for entry in errors if isinstance(errors, list) else ():
        code = entry.get("code") if isinstance(entry, dict) else None
        if isinstance(code, str) and _ERROR_CODE.fullmatch(code):
            yield code
