"""The access log: whole lines, in time, whatever the clients and the disk do."""

import asyncio
import io
import json
import logging
import re
import threading
import time

import pytest

from mirrorproxy.names import Tag, repository
from mirrorproxy.registry import Kind, Result
from mirrorproxy.web.access import AccessLog, Entry, RequestIds
from mirrorproxy.web.probes import State
from tests.contracts.registry_contract import SAMPLE
from tests.web.conftest import Served

ENTRY = Entry(
    request_id="abc-1",
    client="127.0.0.1",
    method="GET",
    path="/v2/a/manifests/1?ns=docker.io",
    repository=repository("docker.io", "a"),
    reference=Tag("1"),
    kind=Kind.MANIFEST,
    cache=Result.HIT,
    status=200,
    bytes=980,
    duration=0.0123456,
    first_byte=0.01,
    user_agent="docker/27",
    aborted=False,
    error=None,
)


async def written(*entries: Entry, human: bool = False) -> list[str]:
    """The lines of these entries."""
    stream = io.StringIO()
    access = AccessLog(stream, human=human)
    for entry in entries:
        access.write(entry)
    await access.aclose()
    text = stream.getvalue()
    assert text.endswith("\n")
    return text.split("\n")[:-1]


async def test_a_line() -> None:
    """JSON, with every field."""
    (line,) = await written(ENTRY)
    found = json.loads(line)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "info",
        "msg": "request",
        "request_id": "abc-1",
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/v2/a/manifests/1?ns=docker.io",
        "registry": "docker.io",
        "repository": "library/a",
        "reference": "1",
        "kind": "manifest",
        "cache": "hit",
        "status": 200,
        "bytes": 980,
        "duration_ms": 12.346,
        "ttfb_ms": 10.0,
        "user_agent": "docker/27",
        "aborted": False,
    }


async def test_a_line_for_people() -> None:
    """One that fits a terminal."""
    broken = ENTRY._replace(aborted=True, error='upstream said "no"')
    line, second = await written(ENTRY, broken, human=True)
    assert line[8:] == (
        " 200 GET /v2/a/manifests/1?ns=docker.io hit 980 B in 12.3 ms, first byte 10.0 ms 127.0.0.1 docker/27"
    )
    assert second.endswith(r" ABORTED (upstream said \"no\")")


@pytest.mark.parametrize("human", [False, True])
@pytest.mark.parametrize(
    "text", ["\n", "\r\n", "\0", "\x1b[2J", "\u2028", '"', "\\", "\udcff\udcc3", "\ud800", "é", "x" * 10_000]
)
async def test_no_client_breaks_a_line(text: str, human: bool) -> None:
    """Whatever it sends as path and user agent: one line, printable ASCII, of bounded length."""
    entry = ENTRY._replace(path=f"/{text}", user_agent=text, error=text[:100], client=text[:100])
    (line,) = await written(entry, human=human)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 3000
    if not human:
        assert json.loads(line)["user_agent"] == text[:200].encode("utf-8", "backslashreplace").decode()


async def test_a_line_does_not_wait_for_others() -> None:
    """It is written after a moment, though no other follows."""
    stream = io.StringIO()
    access = AccessLog(stream)
    access.write(ENTRY)
    assert stream.getvalue() == ""
    async with asyncio.timeout(2):
        while not stream.getvalue():
            await asyncio.sleep(0.01)
    await access.aclose()


async def test_many_lines_come_in_order_and_whole() -> None:
    """More than one batch of them."""
    lines = await written(*(ENTRY._replace(status=number) for number in range(1000)))
    assert [json.loads(line)["status"] for line in lines] == list(range(1000))


class Stuck(io.StringIO):
    """A stream that nobody reads for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def write(self, text: str) -> int:
        """Wait."""
        self.let_go.wait()
        return super().write(text)


@pytest.mark.parametrize("human", [False, True])
async def test_a_stuck_stream_stops_nothing(human: bool) -> None:
    """Writing never waits; what is too much is dropped, counted, and told when it goes on."""
    stream = Stuck()
    access = AccessLog(stream, human=human)
    began, longest = time.perf_counter(), 0.0
    for _ in range(40_000):
        access.write(ENTRY)
        now = time.perf_counter()
        longest, began = max(longest, now - began), now
    assert longest < 1.0
    dropped = access.dropped
    assert 20_000 < dropped < 40_000
    stream.let_go.set()
    async with asyncio.timeout(5):
        while len(stream.getvalue().splitlines()) < 40_000 - dropped:
            await asyncio.sleep(0.01)
    access.write(ENTRY)
    await access.aclose()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 40_000 - dropped + 1 + 1
    note = f"{dropped} lines of the access log were dropped" if human else f'"dropped":{dropped}}}'
    assert len([line for line in lines if note in line]) == 1


async def test_a_broken_stream_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and written to again when it works."""

    class Broken(io.StringIO):
        broken = True

        def write(self, text: str) -> int:
            if self.broken:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Broken()
    access = AccessLog(stream)
    for _ in range(3):
        access.write(ENTRY)
        access._hand_over()
    async with asyncio.timeout(5):
        while "No space left" not in caplog.text:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    stream.broken = False
    access.write(ENTRY)
    await access.aclose()
    assert len(stream.getvalue().splitlines()) == 1
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_a_clients_id_is_kept(given: str) -> None:
    """So that its log and ours can be laid side by side."""
    assert RequestIds().choose(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", 'a"', "a\n", "é", "a/b"])
def test_another_is_made_for_a_client(given: str | None) -> None:
    """Unlike any other, of this process or the next."""
    ids = RequestIds()
    made = {ids.choose(given), ids.choose(given), RequestIds().choose(given)}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", one) for one in made)


async def test_probes_and_scrapes_are_not_told(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Unless something is wrong, or with `log.level: debug`."""
    pages = ("/livez", "/readyz?verbose", "/healthz", "/metrics")
    caplog.set_level(logging.INFO, "mirrorproxy")
    for page in pages:
        assert (await served.ask(page)).status == 200
    served.probes.state = State.DRAINING
    await served.ask("/readyz")
    await served.ask("/")
    caplog.set_level(logging.DEBUG, "mirrorproxy")
    for page in pages:
        await served.ask(page)
    told = [(line["path"], line["status"]) for line in await served.logged()]
    assert told == [
        ("/readyz", 503),
        ("/", 200),
        ("/livez", 200),
        ("/readyz", 503),
        ("/healthz", 200),
        ("/metrics", 200),
    ]


async def test_what_is_told_of_requests(served: Served) -> None:
    """Digests and tags, ns but no other part of a query, no credentials."""
    image = SAMPLE.tags["latest"]
    await served.ask(
        "/v2/sample/manifests/latest?ns=docker.io&token=secret", headers={"Authorization": "Bearer secret"}
    )
    await served.ask(f"/v2/sample/manifests/{image}", "HEAD", {"X-Request-ID": "mine-1", "User-Agent": "containerd/2"})
    await served.ask("/v2/sample/tags/list?n=1&last=secret")
    await served.ask("/v2/sample/manifests/latest?ns=evil.example&token=secret")
    lines = await served.logged()
    assert "secret" not in json.dumps(lines)
    told = [(line["path"], line["reference"], line["bytes"], line["status"], line["cache"]) for line in lines]
    assert told == [
        ("/v2/sample/manifests/latest?ns=docker.io", "latest", len(SAMPLE.manifests[image][1]), 200, "hit"),
        (f"/v2/sample/manifests/{image}", image, 0, 200, "hit"),
        ("/v2/sample/tags/list", None, lines[2]["bytes"], 200, "hit"),
        ("/v2/sample/manifests/latest", None, lines[3]["bytes"], 404, None),
    ]
    assert (lines[1]["request_id"], lines[1]["user_agent"], lines[1]["ttfb_ms"]) == ("mine-1", "containerd/2", None)
    assert "evil.example" in lines[3]["error"]
