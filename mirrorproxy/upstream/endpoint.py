"""One host of an upstream: requests with authorization and redirects, up to an answer worth reading.

Redirects are followed here, since registries keep blobs elsewhere: the URL they name is asked as it stands, byte for
byte (it is signed), our `Authorization` stays with the endpoint's own origin (storage refuses it, and it is not meant
for it), and TLS is not left once it was there. Source: RFC 9110, 15.4.
"""

import asyncio
import contextlib
import string
from urllib.parse import quote

from yarl import URL

from mirrorproxy.errors import BadAnswer, Overloaded, UpstreamError
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Repository
from mirrorproxy.upstream.answers import Answer
from mirrorproxy.upstream.authorization import Authorization, Authorizer
from mirrorproxy.upstream.transport import Transport, host_of

_MAX_REDIRECTS = 5
_TARGETS = 256  # redirects that are remembered
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AS_IT_STANDS = "".join(sorted(set(string.printable) - set(string.whitespace)))
_QUERY = _AS_IT_STANDS.replace("#", "")


class Endpoint:
    """The registry at the URL `base`, which may have a path: `http://site-cache:5000/docker.io`."""

    def __init__(
        self, registry: str, base: str, transport: Transport, authorizer: Authorizer, metrics: Metrics
    ) -> None:
        self.name = base.partition("://")[2]
        self._base = base.rstrip("/")
        self._origin = _origin(URL(base, encoded=True))
        self._registry = registry
        self._transport = transport
        self._authorizer = authorizer
        self._metrics = metrics
        self._targets: dict[URL, URL] = {}
        self._storage: URL | None = None  # where the last redirect of a blob led to: its origin

    def __repr__(self) -> str:
        return f"<Endpoint {self.name}>"

    async def open(
        self,
        method: str,
        repository: Repository,
        path: str,
        *,
        kind: str,
        query: str = "",
        accept: str = "*/*",
        span: str | None = None,
        bulk: bool = False,
    ) -> Answer:
        """Ask for `/v2/<repository><path>?<query>`; the answer is open, and holds a place, until it is closed.

        `span` is the value of a Range header. Whatever the final status is, it is an answer. Raises an `UpstreamError`
        where there is none, `Overloaded` where there was no place to ask for it.
        """
        url = f"{self._base}/v2/{repository.name}{path}"
        if query:
            url += "?" + quote(query, safe=_QUERY)
        headers = {"Accept": accept}
        if span is not None:
            headers["Range"] = span
        with contextlib.ExitStack() as places:
            await self._place(bulk=bulk)
            places.callback(self._transport.places[bulk].release)
            answer = await self._answer(method, repository, URL(url, encoded=True), headers, kind, bulk=bulk)
            return answer.holding(places.pop_all())

    def dial(self, count: int) -> None:
        """Make connections ahead, to the registry and to where it keeps its blobs."""
        for url in {URL(self._base, encoded=True).origin(), self._storage or URL(self._base, encoded=True).origin()}:
            self._transport.dial(url, count)

    async def _place(self, *, bulk: bool) -> None:
        """Wait for one of the places of the transport: a download for as long as it takes, since there are only so many
        of those; others as long as for an answer. Raises `Overloaded`.
        """
        seconds = self._transport.header_timeout
        try:
            async with asyncio.timeout(None if bulk else seconds):
                await self._transport.places[bulk].acquire()
        except TimeoutError:
            message = f"too many requests to {self.name} are under way, and none ended in {seconds:g} s"
            raise Overloaded(message, limit="connections") from None

    def forget(self, repository: Repository, path: str) -> None:
        """Where a redirect led did not hold what it promised: ask the registry again next time."""
        self._targets.pop(URL(f"{self._base}/v2/{repository.name}{path}", encoded=True), None)

    async def _answer(
        self, method: str, repository: Repository, url: URL, headers: dict[str, str], kind: str, *, bulk: bool
    ) -> Answer:
        """From where the last redirect led, as long as that answers; else by the registry.

        The parts of a blob then cost one round trip each and not two. Signatures in such URLs end; then there is a new
        redirect to ask for.
        """
        target = self._targets.get(url) if "Range" in headers else None
        if target is not None:
            with contextlib.suppress(UpstreamError):
                answer, _ = await self._followed(method, target, headers, None, kind)
                if answer.status in (200, 206):
                    return answer
                await answer.drain()
            self._targets.pop(url, None)
        answer, led_to = await self._authorized(method, repository, url, headers, kind)
        if bulk and not answer.home and answer.status in (200, 206):
            self._storage = led_to.origin()
            self._targets[url] = led_to
            if len(self._targets) > _TARGETS:
                del self._targets[next(iter(self._targets))]
        return answer

    async def _authorized(
        self, method: str, repository: Repository, url: URL, headers: dict[str, str], kind: str
    ) -> tuple[Answer, URL]:
        used = await self._authorizer.known(repository)
        answer, led_to = await self._followed(method, url, headers, used, kind)
        if answer.home and answer.status in (401, 403):
            try:
                renewed = await self._authorizer.renewed(repository, answer, used)
            except BaseException:
                answer.close()
                raise
            if renewed is not None:
                await answer.drain()
                answer, led_to = await self._followed(method, url, headers, renewed, kind)
        return answer, led_to

    async def _followed(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        authorization: Authorization | None,
        kind: str,
    ) -> tuple[Answer, URL]:
        """The answer at the end of the redirects, and where that was."""
        home = True
        for _ in range(_MAX_REDIRECTS + 1):
            home = home and _origin(url) == self._origin
            own = {"Authorization": authorization.value} if home and authorization is not None else {}
            response = await self._transport.exchange(method, url, kind=kind, headers=headers | own, traced=home)
            answer = Answer(response, home=home, idle_timeout=self._transport.idle_timeout)
            if home:
                self._note_limits(answer)
            if answer.status not in _REDIRECTS:
                return answer, url
            location = answer.headers.get("Location", "")
            await answer.drain()
            url = _target(url, location)
        raise BadAnswer(f"{self.name} redirects more than {_MAX_REDIRECTS} times")

    def _note_limits(self, answer: Answer) -> None:
        """Docker Hub: `ratelimit-limit: 100;w=21600`, pulls in a window of seconds."""
        for name, gauge in (
            ("ratelimit-limit", self._metrics.rate_limit),
            ("ratelimit-remaining", self._metrics.rate_remaining),
        ):
            number = answer.headers.get(name, "").partition(";")[0].strip()
            if number.isascii() and number.isdigit():
                gauge.labels(self._registry).set(float(number[:15]))


def _target(url: URL, location: str) -> URL:
    """Where a redirect from `url` leads. Raises `BadAnswer`."""
    # Only what cannot stand in a request is quoted (blanks, other alphabets): the rest may be part of a signature.
    text = quote(location.encode("utf-8", "surrogateescape"), safe=_AS_IT_STANDS)
    try:
        target = url.join(URL(text, encoded=True))
        usable = location and target.scheme in ("http", "https") and target.host and target.port
    except ValueError:
        raise BadAnswer(f"{host_of(url)} redirects to something that is not an URL") from None
    if not usable or target.raw_user is not None:
        raise BadAnswer(f"{host_of(url)} redirects to something that is not an http or https URL")
    if url.scheme == "https" and target.scheme == "http":
        raise BadAnswer(f"{host_of(url)} redirects from TLS to plain HTTP at {host_of(target)}")
    return target.with_fragment(None) if target.raw_fragment else target


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, (url.host or "").lower(), url.port
