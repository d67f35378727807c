"""What is not HTTP, or is meant to be two things at once: 4xx in the protocol's words, and the connection ends."""

import asyncio
import logging
from collections.abc import Coroutine

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.web.conftest import Served
from tests.web.wire import Answer, connect

SECRET = "hunter2hunter2"
BODY = "GET /v2/sample/manifests/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

GET = "GET /v2/ HTTP/1.1\r\nHost: x\r\n"
PUT = "PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
MALFORMED = {
    "length and chunks": f"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n{CHUNKED}\r\n0\r\n\r\n{BODY}",
    "chunks and length": f"{GET}{CHUNKED}Content-Length: 5\r\n\r\n0\r\n\r\n{BODY}",
    "two lengths": f"{GET}Content-Length: 0\r\nContent-Length: 57\r\n\r\n{BODY}",
    "a list of lengths": f"{GET}Content-Length: 0, 57\r\n\r\n{BODY}",
    "the same length twice": f"{GET}Content-Length: 57\r\nContent-Length: 57\r\n\r\n{BODY}",
    "a signed length": f"{GET}Content-Length: +57\r\n\r\n{BODY}",
    "a negative length": f"{GET}Content-Length: -1\r\n\r\n{BODY}",
    "a hexadecimal length": f"{GET}Content-Length: 0x39\r\n\r\n{BODY}",
    "an endless length": f"{GET}Content-Length: {'9' * 40}\r\n\r\n{BODY}",
    "another coding": f"{GET}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{BODY}",
    "chunks and then another coding": f"{GET}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{BODY}",
    "a coding of a vertical tab": f"{GET}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{BODY}",
    "a field that goes on in the next line": f"{GET}X: {SECRET}\r\n y\r\n\r\n",
    "a line that goes on at once": f"GET /v2/ HTTP/1.1\r\n Host: {SECRET}\r\n\r\n",
    "a space before the colon": f"{GET}Authorization : {SECRET}\r\n\r\n",
    "a bare line feed": f"GET /v2/ HTTP/1.1\nHost: x\nAuthorization: {SECRET}\n\n",
    "a bare line feed in the middle": f"GET /v2/ HTTP/1.1\r\nHost: x\nAuthorization: {SECRET}\r\n\r\n",
    "a bare carriage return": f"{GET}A: b\rAuthorization: {SECRET}\r\n\r\n",
    "NUL in a field": f"{GET}Authorization: {SECRET}\0\r\n\r\n",
    "NUL in the path": "GET /v2/\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no name of a field": f"{GET}: {SECRET}\r\n\r\n",
    "a field without a colon": f"{GET}{SECRET}\r\n\r\n",
    "no host": "GET /v2/ HTTP/1.1\r\n\r\n",
    "two hosts": "GET /v2/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no version": "GET /v2/a\r\n\r\n",
    "another protocol": f"GET /v2/{SECRET} HTTPS/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 9": "GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
    "an unknown method": f"{SECRET} /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the path": f"GET /v2/ {SECRET} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a path of 64 KiB": f"GET /v2/{'a' * 65_536} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a field of 64 KiB": f"{GET}Authorization: {SECRET * 5000}\r\n\r\n",
    "a field's name of 64 KiB": f"{GET}{'a' * 65_536}: {SECRET}\r\n\r\n",
    "a thousand fields": GET + "A: b\r\n" * 1000 + "\r\n",
    "an authority without a path": "GET mirror:5000 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_does_not_parse(served: Served, data: str, caplog: pytest.LogCaptureFixture) -> None:
    """An OCI error without a byte of what was sent, the end of the connection, nothing asked, nothing logged of it."""
    async with connect(served.port) as wire:
        wire.writer.write(data.encode("latin-1"))
        answer = await wire.answer()
        assert 400 <= answer.status < 500
        assert answer.error["code"]
        assert answer.headers["Connection"] == "close"
        assert answer.headers["X-Request-ID"]
        assert await wire.ended(), "something was answered that was smuggled in"
    assert served.registry.asked == []
    assert SECRET not in str(answer)
    assert "aiohttp" not in str(answer).lower()
    assert SECRET not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (line,) = await served.logged()
    assert line["status"] == answer.status
    assert SECRET not in str(line)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (f"{GET}Content-Length: {len(BODY)}\r\n\r\n{BODY}", 200),
        (
            f"{GET}{CHUNKED}\r\n{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n",
            200,
        ),
        (f"GET /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}", 404),
        (f"{PUT}Content-Length: {len(BODY)}\r\n\r\n{BODY}", 405),
        (
            f"{PUT}{CHUNKED}\r\n{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n",
            405,
        ),
        (
            f"{PUT}Content-Encoding: gzip\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
            405,
        ),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    ],
)
async def test_a_body_is_no_request(served: Served, data: str, status: int) -> None:
    """One that nobody asked for is thrown away; the next request on the connection is the next one sent."""
    async with connect(served.port) as wire:
        wire.writer.write(data.encode())
        assert (await wire.answer()).status == status
        answer = await wire.ask("/v2/sample/manifests/latest")
        assert answer.status == 200
    assert served.registry.asked == ["manifest docker.io/library/sample latest"]


async def test_a_push_that_waits_to_be_let_through(served: Served) -> None:
    """`Expect: 100-continue`: refused at once, and whether the body comes all the same is no riddle: it ends here."""
    async with connect(served.port) as wire:
        wire.send("/v2/a/blobs/uploads/1", "PATCH", {"Expect": "100-continue", "Content-Length": "1000000000"})
        answer = await wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (405, "close")


async def test_a_large_push_is_refused_while_it_comes(served: Served) -> None:
    """The answer does not wait for the body."""
    async with connect(served.port) as wire:
        wire.send("/v2/a/blobs/uploads/1", "PATCH", {"Content-Length": "1000000000"})
        wire.writer.write(b"x" * 1_000_000)
        assert (await wire.answer()).status == 405


async def test_a_malformed_request_after_good_ones(served: Served) -> None:
    """Ends the connection, whatever it was before."""
    async with connect(served.port) as wire:
        assert (await wire.ask("/v2/")).status == 200
        wire.writer.write(b"GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n")
        assert (await wire.answer()).status == 400
        assert await wire.ended()


PIECES = r"""
    / v2 .. %2e %2F \ %00 a A sample docker.io evil.example manifests blobs tags list referrers uploads _catalog
    sha256: ? & ns= n= last= % # : é livez metrics
""".split()


@given(
    target=st.lists(
        st.sampled_from(PIECES) | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=2), max_size=12
    ).map("".join),
    method=st.sampled_from(["GET", "HEAD", "PUT", "DELETE"]),
    headers=st.dictionaries(
        st.sampled_from(
            [
                "Range",
                "If-None-Match",
                "If-Range",
                "Cache-Control",
                "X-Request-ID",
                "Accept",
                "User-Agent",
                "Authorization",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12).map(
            str.strip
        ),
    ),
)
@example(target="metrics", method="GET", headers={"Accept": "application/openmetrics-text;version=a"})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_nothing_that_is_sent_is_a_5xx(fuzzed: "Fuzzed", target: str, method: str, headers: dict[str, str]) -> None:
    """Whatever the path and the fields; and what is refused with 4xx by its words alone was asked of nobody."""
    fuzzed.served.registry.asked.clear()
    answer = fuzzed.run(fuzzed.served.ask(f"/{target}", method, headers))
    assert answer.status < 500
    assert answer.complete
    if answer.status in (400, 405):
        assert fuzzed.served.registry.asked == []
    if answer.status >= 400 and method != "HEAD":
        assert answer.error["code"]


class Fuzzed:
    """A server in the test's loop, to which each example talks."""

    def __init__(self, served: Served, loop: asyncio.AbstractEventLoop) -> None:
        self.served = served
        self._loop = loop

    def run(self, asking: Coroutine[None, None, Answer]) -> Answer:
        """Run one exchange."""
        return self._loop.run_until_complete(asking)


@pytest.fixture
def fuzzed(served: Served) -> Fuzzed:
    """The sample, served."""
    return Fuzzed(served, asyncio.get_event_loop())
