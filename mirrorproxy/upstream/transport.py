"""One HTTP exchange with a host upstream: aiohttp, its sessions and settings, and its errors made ours.

The only module that knows what goes wrong in aiohttp. An exchange is one request on the wire: redirects, authentication
and second tries are decided above.
"""

import asyncio
import contextlib
import functools
import logging
import os
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import aiohttp
from yarl import URL

from mirrorproxy import __version__, tracing
from mirrorproxy.config import UpstreamSettings
from mirrorproxy.errors import BadAnswer, TimedOut, Unreachable, UpstreamError
from mirrorproxy.metrics import Metrics, code_label
from mirrorproxy.tasks import Tasks
from mirrorproxy.upstream.proxies import Proxies
from mirrorproxy.upstream.resolver import Resolver

log = logging.getLogger(__name__)

_MAX_HEADER = 64 << 10  # bytes of a line: signed redirect URLs and tokens pass aiohttp's 8,190
_READ_AHEAD = 256 << 10  # bytes a response may buffer before its connection is paused
_KEEP_ALIVE = 45.0  # seconds: less than the 60 to 75 that load balancers and nginx keep an idle connection
_DNS_TTL = 30
_FAR = 0.05  # seconds of round trip from which on connections are worth making ahead
_MOST_AHEAD = 16  # connections
_HEADERS = {"User-Agent": f"mirrorproxy/{__version__}", "Accept-Encoding": "identity"}


class Transport:
    """The connections of one upstream. Nothing is dialled, and no certificate read, before the first request.

    One pool: a blob goes over the connection that its manifest came over, since a new one costs one to three round
    trips. Nothing waits behind layers all the same: whoever has a response open holds one of the `places`, of which
    there are `max_connections` for blobs (`bulk`), and as many for all the rest, given out in order. Requests for
    tokens need none, since they are made by somebody who holds one.
    """

    def __init__(self, registry: str, settings: UpstreamSettings, metrics: Metrics) -> None:
        self.idle_timeout = settings.idle_timeout
        self.header_timeout = settings.header_timeout
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._proxies = Proxies(settings.proxy, os.environ)
        self._resolver = Resolver()
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self.places = {bulk: asyncio.Semaphore(settings.max_connections) for bulk in (False, True)}
        self._closed = False
        self._took: deque[float] = deque(maxlen=8)  # seconds that the last exchanges took
        self._tasks = Tasks()

    def dial(self, url: URL, count: int) -> None:
        """Have `count` idle connections to the host of `url`, or so many as may be, where it is far away.

        Each saves the request that uses it one round trip, two or three with TLS. Nothing is sent over them; so there
        are none through a proxy, which would have to be asked for each.
        """
        count = min(count, _MOST_AHEAD, self._settings.max_connections)
        is_far = bool(self._took) and min(self._took) >= _FAR
        if self._session is not None and is_far and self._proxies.of(url) is None:
            self._tasks.start(self._dial(self._session, url, count), name=f"dial {host_of(url)} ahead")

    async def _dial(self, session: aiohttp.ClientSession, url: URL, count: int) -> None:
        connector = session.connector
        assert connector is not None
        begun = asyncio.Event()

        async def one() -> None:
            request = aiohttp.ClientRequest("GET", url, loop=asyncio.get_running_loop())
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):  # a request will meet it, and tell
                connection = await connector.connect(request, [], session.timeout)
                await begun.wait()  # what is idle already is held until all have begun: else each would get that one
                connection.release()

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
            await asyncio.sleep(0)
            begun.set()

    async def exchange(
        self,
        method: str,
        url: URL,
        *,
        kind: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
        traced: bool = False,
    ) -> aiohttp.ClientResponse:
        """Send one request and return its response as soon as its headers are there; the caller closes it.

        `kind` is the metrics' label. `traced`: the server may know of the trace that this is part of; storage behind
        signed URLs may refuse headers that it does not expect. Raises `Unreachable`, `TimedOut`, and `BadAnswer` for
        what is not HTTP.
        """
        told = {"server.address": url.host, "http.request.method": method, "mirrorproxy.registry": self._registry}
        with tracing.span(f"{method} {kind}", "CLIENT", told):
            if traced:
                headers = {**headers, **tracing.carried()}
            response = await self._exchange(method, url, kind, headers, form)
            tracing.note({"http.response.status_code": response.status}, failed=response.status >= 400)
            return response

    async def _exchange(
        self, method: str, url: URL, kind: str, headers: Mapping[str, str], form: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        session = await self._opened()
        proxy = self._proxies.of(url)
        send = functools.partial(
            session.request, method, url, headers=headers, data=form, proxy=proxy, allow_redirects=False
        )
        try:
            async with asyncio.timeout(self._settings.header_timeout):
                try:
                    return await self._once(send, kind)
                except _StaleConnection:
                    return await self._once(send, kind)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise translated(error, host_of(url), proxy) from None  # aiohttp's own words may hold a signed URL

    async def _once(self, send: Callable[..., Awaitable[aiohttp.ClientResponse]], kind: str) -> aiohttp.ClientResponse:
        """One request on the wire, counted. Raises `_StaleConnection` where it deserves another one at once."""
        connection, code = SimpleNamespace(reused=False), "0"
        began = asyncio.get_running_loop().time()
        try:
            response = await send(trace_request_ctx=connection)
            code = code_label(response.status)
            self._took.append(asyncio.get_running_loop().time() - began)
            self._metrics.round_trip.labels(self._registry, kind).observe(self._took[-1])
            return response
        except _Broken as broken:
            raise (_StaleConnection() if connection.reused else broken.error) from None
        finally:
            self._metrics.upstream_requests.labels(self._registry, kind, code).inc()

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._closed:
                raise Unreachable("mirrorproxy is stopping")
            if self._session is None:
                self._session = self._open(await asyncio.to_thread(_trust, self._settings.ca_file))
            return self._session

    def _open(self, trust: ssl.SSLContext) -> aiohttp.ClientSession:
        connect = self._settings.connect_timeout
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=trust,
                limit=0,  # by `places`, whose waiting does not count as connecting
                keepalive_timeout=_KEEP_ALIVE,
                ttl_dns_cache=_DNS_TTL,
                resolver=self._resolver,
            ),
            # No total timeout: an honest slow download takes hours. Bodies have an idle one, see `Answer.chunk`.
            timeout=aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            trust_env=False,  # see `proxies`
            read_bufsize=_READ_AHEAD,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
            middlewares=(_no_second_try,),
            trace_configs=[_tracing()],
        )

    async def aclose(self) -> None:
        """Close all connections."""
        self._closed = True
        await self._tasks.aclose()
        async with self._opening:
            session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._resolver.close()  # a connector closes none but its own


def host_of(url: URL) -> str:
    """The host of an URL with its port where that is not the usual one: all of an URL that a message may show."""
    return url.host_port_subcomponent or "?"


def translated(error: Exception, host: str, proxy: URL | None = None) -> UpstreamError:
    """What an exception of aiohttp or the system means, in words that hold no more of an URL than its host."""
    through, by = "", ""
    if proxy is not None:
        by = host_of(proxy)
        through = f" (through the proxy {by})"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return TimedOut(f"{host} did not accept a connection in time{through}")
        case TimeoutError():
            return TimedOut(f"{host} did not answer in time{through}")
        case aiohttp.ClientConnectorDNSError():
            return Unreachable(f"the name of {by or host} cannot be resolved")
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", None) or type(error.certificate_error).__name__
            return Unreachable(f"the certificate of {host} is not trusted{through}: {reason}")
        case aiohttp.ClientSSLError():
            return Unreachable(f"TLS with {host} failed{through}")
        case aiohttp.ClientHttpProxyError():
            return Unreachable(f"the proxy {by} refuses to connect to {host}: status {error.status}")
        case aiohttp.ClientProxyConnectionError():
            return Unreachable(f"no connection to the proxy {by}: {_reason(error)}")
        case aiohttp.ClientConnectorError():
            return Unreachable(f"no connection to {host}{through}: {_reason(error)}")
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL() | ValueError():
            return BadAnswer(f"{host} sent what is not proper HTTP{through}")
        case _:
            return Unreachable(f"{host} broke the connection{through}")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "refused"


@functools.cache
def _system_trust() -> ssl.SSLContext:
    """Shared by all upstreams: reading the system's certificates takes 30 ms each time."""
    return ssl.create_default_context()


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    """Whom to trust: the system's certificates, and those in `ca_file`. Blocks. Raises `Unreachable`."""
    if ca_file is None:
        return _system_trust()
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as error:
        log.error("the ca_file %s cannot be used: %s", ca_file, getattr(error, "strerror", None) or error)
        raise Unreachable("the ca_file that is configured for this registry cannot be used; the log says why") from None
    return context


class _StaleConnection(aiohttp.ServerDisconnectedError):
    """A connection kept from before turned out to be closed as it was used again (RFC 9112, 9.3.1)."""


class _Broken(Exception):
    """A connection broke before the answer. Not an aiohttp error, so that aiohttp does not ask again by itself."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        self.error = error


async def _no_second_try(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Let a break be seen: aiohttp would ask a second time whatever the connection, and nobody would count it."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken(error) from None


def _tracing() -> aiohttp.TraceConfig:
    """Notes in a request's `trace_request_ctx` whether its connection was kept from before."""

    async def reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _parameters: object) -> None:
        context.trace_request_ctx.reused = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(reused)
    return tracing
