"""A registry like Docker Hub on loopback, and what goes wrong with one.

Three origins, each a real HTTP server: the registry (127.0.0.1), its token service (127.0.0.2), and the storage
(127.0.0.3) to which it redirects for blobs, with signed URLs that are good only byte for byte. Content is added by
calls; what goes wrong is scripted (`script.Quirk`) for each kind of request: `token`, `manifest`, `blob`, `cdn`,
`tags`, `referrers`, `base`. Every request is in `log`.

    async with Hub() as hub:
        image = hub.add_image("library/alpine", "3.20", b"a layer")
        hub.script.next("cdn", Quirk(cut=3))
        registry = connect("docker.io", hub.settings(), Metrics(["docker.io"]))
        ...
        assert hub.count("token") == 1
"""

import base64
import itertools
import json
import re
import secrets
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from aiohttp import web
from multidict import CIMultiDict

from mirrorproxy.config import UpstreamSettings
from mirrorproxy.names import Digest
from mirrorproxy.spans import parse_range
from tests.fakes.content import Content, Stock, referrers_page, tags_page
from tests.fakes.script import GOOD, Quirk, Script, Seen, error_body, send

_API = {"Docker-Distribution-Api-Version": "registry/2.0"}
_PATH = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs|tags|referrers)/(?P<reference>[^/]+)")
_KINDS = {"manifests": "manifest", "blobs": "blob", "tags": "tags", "referrers": "referrers"}


@dataclass(frozen=True)
class _Token:
    scope: str
    account: str | None
    until: float


class _Server:
    """One origin: a port that stays the same when the server goes down and comes back. `name` is its host in URLs."""

    def __init__(self, host: str, tls: ssl.SSLContext | None) -> None:
        self.host = self.name = host
        self.port = 0
        self._tls = tls
        self._runner: web.AppRunner | None = None

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.name}:{self.port}"

    async def start(self, handler: Any) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{rest:.*}", handler)
        # Signed URLs are longer than a server allows by itself; a handler ends by itself when its client leaves.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=False, shutdown_timeout=0.01, max_line_size=1 << 17
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


class Hub(Content):
    """The three origins, their content and their script. `async with`, or `start` and `stop`.

    `auth`: what the registry wants; `redirects`: blobs are at the storage, else at the registry itself. `users` are the
    passwords by name; `private` the repositories that only they may pull; `hides`: as Docker Hub does, 401 and not 404
    for a repository that does not exist.
    """

    def __init__(
        self,
        *,
        auth: Literal["bearer", "basic", "none"] = "bearer",
        redirects: bool = True,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        identity_token: str | None = None,
        hides: bool = False,
    ) -> None:
        super().__init__()
        self.script = Script()
        self.log: list[Seen] = []
        self.auth = auth
        self.redirects = redirects
        self.users = dict(users or {})
        self.identity_token = identity_token
        self.hides = hides
        self.private: set[str] = set()
        self.expires_in: float | None = 300
        self.token_field = "token"
        self.ratelimit: tuple[int, int] | None = None
        self._tokens: dict[str, _Token] = {}
        self._signed: dict[str, Digest] = {}
        self._serial = itertools.count(1)
        self.registry, self.token_service, self.storage = (_Server(f"127.0.0.{number}", tls) for number in (1, 2, 3))

    # Starting, stopping.

    async def start(self) -> None:
        """Listen on all three origins, on the ports of before if there were any."""
        await self.registry.start(self._at_registry)
        await self.token_service.start(self._at_token_service)
        await self.storage.start(self._at_storage)

    async def stop(self) -> None:
        """Refuse connections, and end those that are there."""
        for server in (self.registry, self.token_service, self.storage):
            await server.stop()

    async def stop_token_service(self) -> None:
        """Only the token service is down."""
        await self.token_service.stop()

    async def start_token_service(self) -> None:
        """And is back."""
        await self.token_service.start(self._at_token_service)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The registry's origin."""
        return self.registry.origin

    def settings(self, **changes: Any) -> UpstreamSettings:
        """What to configure for this upstream, with short timeouts; `changes` as in the configuration."""
        settings = {
            "endpoints": [self.url],
            "token_realms": [self.token_service.origin],
            "connect_timeout": 2.0,
            "header_timeout": 2.0,
            "idle_timeout": 2.0,
        }
        return UpstreamSettings.model_validate(settings | changes)

    # What was asked.

    def seen(self, kind: str | None = None, method: str | None = None) -> list[Seen]:
        """The requests of this kind and method (None: any), in order."""
        return [seen for seen in self.log if kind in (None, seen.kind) and method in (None, seen.method)]

    def count(self, kind: str | None = None, method: str | None = None) -> int:
        """How many there were."""
        return len(self.seen(kind, method))

    def sent(self, kind: str | None = None) -> int:
        """How many bytes of bodies were sent."""
        return sum(seen.sent for seen in self.seen(kind))

    # Tokens and signatures.

    def revoke_tokens(self) -> None:
        """No token that was given out is good any more."""
        self._tokens.clear()

    def expire_signatures(self) -> None:
        """No signed URL that was given out is good any more."""
        self._signed.clear()

    def secrets(self) -> set[str]:
        """Every token and every signature that was given out and is good, for tests that nothing shows them."""
        return {*self._tokens, *(parse_qs(urlsplit(target).query)["X-Signature"][0] for target in self._signed)}

    # The registry.

    async def _at_registry(self, request: web.Request) -> web.StreamResponse:
        match = _PATH.fullmatch(request.raw_path.partition("?")[0])
        seen = self._note(request, _KINDS[match["kind"]] if match else "base")
        name = match["name"] if match else ""
        if not self._allowed(request.headers.get("Authorization", ""), name):
            headers = _API | {"WWW-Authenticate": self._challenge(name), "Content-Type": "application/json"}
            return await send(request, seen, GOOD, 401, headers, error_body("UNAUTHORIZED", "authentication required"))
        quirk = self.script.quirk(seen)
        if quirk.status == 401 and self.auth != "none":
            quirk = replace(quirk, headers={"WWW-Authenticate": self._challenge(name), **quirk.headers})
        if match is None:
            return await send(request, seen, quirk, 200, _API | {"Content-Type": "application/json"}, b"{}")
        status, headers, body = self._answer(seen, name, match["reference"], request)
        if seen.kind == "blob" and status == 200 and not self.redirects:
            return await self._send_range(request, seen, quirk, headers | _API, body)
        return await send(request, seen, quirk, status, headers | _API, body)

    def _answer(self, seen: Seen, name: str, reference: str, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body where nothing is scripted."""
        repository = self.repositories.get(name)
        if repository is None:
            return _error(404, "NAME_UNKNOWN", "repository name not known to registry")
        match seen.kind:
            case "manifest":
                return self._manifest(repository, reference, request.headers)
            case "blob":
                return self._blob(repository, reference)
            case "tags":
                return tags_page(name, sorted(repository.tags), request.raw_path.partition("?")[2])
            case _:
                return referrers_page(repository, reference, parse_qs(request.raw_path.partition("?")[2]))

    def _manifest(
        self, repository: Stock, reference: str, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        digest = repository.tags.get(reference) or reference
        found = repository.manifests.get(digest)  # type: ignore[call-overload]  # a Digest, or found nowhere
        if found is None or found[0] not in headers.get("Accept", ""):
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        sent = {"Content-Type": found[0], "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        if self.ratelimit:
            sent |= {
                "ratelimit-limit": f"{self.ratelimit[0]};w=21600",
                "ratelimit-remaining": f"{self.ratelimit[1]};w=21600",
            }
        return 200, sent, found[1]

    def _blob(self, repository: Stock, reference: str) -> tuple[int, dict[str, str], bytes]:
        data = repository.blobs.get(reference)  # type: ignore[call-overload]  # as above
        if data is None:
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if not self.redirects:
            return 200, {"Content-Type": "application/octet-stream", "Docker-Content-Digest": reference}, data
        # What a careless client would re-encode: %2B and %2F, a lower-case %7e, a bare ~ and a doubled slash.
        target = (
            f"/docker//sha256~{reference[7:9]}/{reference[7:]}/data%2F{next(self._serial)}"
            f"?X-Signature={secrets.token_hex(12)}%2B%2f~&X-Credential=hub%2Fus-east-1%7e{next(self._serial)}&x=a+b"
        )
        self._signed[target] = Digest(reference)
        return (
            307,
            {"Location": self.storage.origin + target, "Content-Type": "text/html"},
            b"<a>Temporary Redirect</a>",
        )

    def _allowed(self, authorization: str, name: str) -> bool:
        """May a request with this authorization have the repository `name` (empty: the base)?"""
        if self.auth == "none":
            return True
        if self.auth == "basic":
            return self._account(authorization) is not None
        token = self._tokens.get(authorization.removeprefix("Bearer "))
        if token is None or token.until <= time.monotonic():
            return False
        if not name:
            return True
        known = name in self.repositories or not self.hides
        return token.scope == _scope(name) and known and (name not in self.private or token.account is not None)

    def _challenge(self, name: str) -> str:
        if self.auth == "basic":
            return 'Basic realm="hub, \\"quoted\\""'
        return f'Bearer realm="{self.token_service.origin}/token",service="registry.hub",scope="{_scope(name)}"'

    def _account(self, authorization: str) -> str | None:
        """The user that a Basic authorization is of, if the password is right."""
        for name, password in self.users.items():
            if authorization == "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode():
                return name
        return None

    # The token service.

    async def _at_token_service(self, request: web.Request) -> web.StreamResponse:
        seen = self._note(request, "token")
        quirk = self.script.quirk(seen)
        form = parse_qs((await request.read()).decode()) if request.method == "POST" else parse_qs(request.query_string)
        authorization, account = request.headers.get("Authorization"), None
        if request.method == "POST":
            account = "identity" if form.get("refresh_token") == [self.identity_token] else None
        elif authorization is not None:
            account = self._account(authorization)
        refused = account is None and (authorization is not None or request.method == "POST")
        if refused or form.get("service") != ["registry.hub"]:
            return await send(request, seen, quirk, *_error(401, "UNAUTHORIZED", "incorrect username or password"))
        value = secrets.token_urlsafe(24)
        lifetime = 60 if self.expires_in is None else self.expires_in
        self._tokens[value] = _Token(form.get("scope", [""])[0], account, time.monotonic() + lifetime)
        answer: dict[str, object] = {self.token_field: value}
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        return await send(request, seen, quirk, 200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    # The storage.

    async def _at_storage(self, request: web.Request) -> web.StreamResponse:
        seen = self._note(request, "cdn")
        quirk = self.script.quirk(seen)
        digest = self._signed.get(request.raw_path)
        if "Authorization" in request.headers:
            return await send(request, seen, quirk, 400, *_xml("InvalidArgument", "Only one auth mechanism allowed"))
        if digest is None:
            return await send(request, seen, quirk, 403, *_xml("AccessDenied", "Request has expired or is not signed"))
        data = next(found.blobs[digest] for found in self.repositories.values() if digest in found.blobs)
        return await self._send_range(request, seen, quirk, {"Content-Type": "application/octet-stream"}, data)

    async def _send_range(
        self, request: web.Request, seen: Seen, quirk: Quirk, headers: Mapping[str, str], data: bytes
    ) -> web.StreamResponse:
        """A blob, or the part of it that was asked for."""
        headers = dict(headers) | {"Accept-Ranges": "bytes"}
        wanted = None if quirk.ignore_range else parse_range(request.headers.get("Range"))
        if wanted is None:
            return await send(request, seen, quirk, 200, headers, data)
        span = wanted.resolve(len(data))
        if span is None:
            status, xml, body = 416, *_xml("InvalidRange", "The requested range is not satisfiable")
            return await send(request, seen, quirk, status, xml | {"Content-Range": f"bytes */{len(data)}"}, body)
        headers["Content-Range"] = quirk.content_range or span.content_range(len(data))
        return await send(request, seen, quirk, 206, headers, memoryview(data)[span.start : span.end])

    def _note(self, request: web.Request, kind: str) -> Seen:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        seen = Seen(kind, request.method, request.raw_path, CIMultiDict(request.headers), peer[1] if peer else 0)
        seen.wire = request.transport.get_extra_info("socket") if request.transport else None
        self.log.append(seen)
        return seen


def _scope(name: str) -> str:
    return f"repository:{name}:pull" if name else ""


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, error_body(code, message)


def _xml(code: str, message: str) -> tuple[dict[str, str], bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return {"Content-Type": "application/xml"}, body.encode()
