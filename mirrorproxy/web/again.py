"""Answers that are given again: what a moment ago came from the cache, in one write, goes out once more as it was.

To answer a hit the ordinary way takes three times as long as to read the request and to write the response: a task, a
request and a response object, the way through the registries, the head. Nodes that start the same image at once ask the
same things in the same second. So an answer is remembered for a second, with its head made, and given from the
connection's own callback. Everything else happens in the ordinary way, once a second for each thing asked for: is a tag
still fresh, is the file still there, who may see it, which layers come next, when was it used last.
"""

import asyncio

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage

from mirrorproxy.registry import Result
from mirrorproxy.web.access import RequestIds
from mirrorproxy.web.books import Account, Books
from mirrorproxy.web.head import head
from mirrorproxy.web.probes import Probes, State
from mirrorproxy.web.routes import BlobRoute, ManifestRoute, Route
from mirrorproxy.web.stream import Reply

_FOR = 1.0  # seconds; `Date` and `Age` count them too, and a file removed behind our back is noticed no later
_LARGEST = 32 << 10  # bytes of a body; with its head it never fills a transport's buffer
_LONGEST = 512  # characters of a target: what it may have after `?` is the client's choice
_LIMIT = 8 << 20  # bytes of all answers; a node's start of an image asks for some 20 KiB of manifests and configs
_OVERHEAD = 2 << 10  # bytes of one beside its head and body, its target among them


class _Kept:
    """An answer: what stands before the request's id, and what comes after it; good `until`, by the loop's clock."""

    __slots__ = ("account", "before", "body", "until")

    def __init__(self, before: bytes, body: bytes, account: Account, until: float) -> None:
        self.before = before
        self.body = body
        self.account = account
        self.until = until

    def __len__(self) -> int:
        return len(self.before) + len(self.body) + _OVERHEAD


class Again:
    """The answers of the last second, by method and target as they stood on the wire.

    `forget` whenever what is cached, or who is served, has changed. `generation` is then another: an answer that was
    sought in an older one is not kept.
    """

    def __init__(self, books: Books, ids: RequestIds, probes: Probes) -> None:
        self.generation = 0
        self._books = books
        self._ids = ids
        self._probes = probes
        self._loop = asyncio.get_running_loop()
        self._answers: dict[tuple[str, str], _Kept] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Give none of the answers again that are remembered now."""
        self.generation += 1
        self._answers.clear()
        self._bytes = 0

    def keep(self, reply: Reply, route: Route, began: float, generation: int) -> None:
        """Remember the answer to a request that began at `began`, in `generation`, where others may get the same."""
        request, outcome = reply.request, reply.outcome
        if (
            reply.whole is None
            or not isinstance(route, ManifestRoute | BlobRoute)
            or outcome is None
            or outcome.result is not Result.HIT
            or len(reply.whole.body) > _LARGEST
            or len(request.raw_path) > _LONGEST
            or generation != self.generation
            or not reply.keep_alive
            or request.version != HttpVersion11
            or _is_special(request)
        ):
            return
        fields = reply.whole.fields
        del fields["X-Request-ID"]
        before = head(200, fields, None).removesuffix(b"\r\n") + b"X-Request-ID: "
        kept = _Kept(before, reply.whole.body, self._books.account(reply, route), began + _FOR)
        key = request.method, request.raw_path
        if (old := self._answers.pop(key, None)) is not None:
            self._bytes -= len(old)
        if self._bytes + len(kept) > _LIMIT:
            self.forget()  # most of them are older than a second
        self._answers[key] = kept
        self._bytes += len(kept)

    def give(self, message: RawRequestMessage, transport: asyncio.Transport, client: str | None) -> bool:
        """Answer a request, where its answer is one of those that are given again."""
        kept = self._answers.get((message.method, message.path))
        if kept is None:
            return False
        began = self._loop.time()
        if (
            began >= kept.until
            or message.should_close
            or message.upgrade
            or message.version != HttpVersion11
            or _is_special(message)
            or self._probes.state is State.DRAINING
        ):
            return False
        headers = message.headers
        request_id = self._ids.choose(headers.get("X-Request-ID"))
        transport.write(b"%b%b\r\n\r\n%b" % (kept.before, request_id.encode(), kept.body))
        self._books.again(kept.account, request_id, client, headers.get("User-Agent"), self._loop.time() - began)
        return True


def _is_special(request: web.BaseRequest | RawRequestMessage) -> bool:
    """Whether it has a field that makes its answer another one than that of a request without."""
    headers = request.headers
    return "Range" in headers or "If-None-Match" in headers or "Cache-Control" in headers or "Pragma" in headers
