"""The pages beside the protocol, and the books."""

import asyncio
import re

import pytest

from mirrorproxy.errors import Denied, Unauthorized
from mirrorproxy.registry import Outcome, Result
from mirrorproxy.web.probes import Probes, State
from tests.contracts.registry_contract import SAMPLE
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, Served
from tests.web.wire import connect

LAYER = max(SAMPLE.blobs, key=lambda digest: len(SAMPLE.blobs[digest]))


async def test_the_front_page_says_what_this_is(served: Served) -> None:
    """For whoever looks at the port with a browser."""
    answer = await served.ask("/")
    assert answer.status == 200
    assert b"pull-through cache" in answer.body
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("state", list(State))
async def test_alive_while_the_loop_runs(served: Served, state: State) -> None:
    """Whatever else: a cache must not be restarted for being busy, or for its upstream."""
    served.probes.state = state
    for page in ("/livez", "/healthz"):
        answer = await served.ask(page)
        assert (answer.status, answer.body) == (200, b"ok\n")


@pytest.mark.parametrize(("state", "status"), [(State.STARTING, 503), (State.READY, 200), (State.DRAINING, 503)])
async def test_ready_when_started_and_not_stopping(served: Served, state: State, status: int) -> None:
    """503 takes a node out of service."""
    served.probes.state = state
    answer = await served.ask("/readyz")
    assert (answer.status, answer.body) == (status, f"{state}\n".encode())


def test_troubles_are_told_and_take_nobody_out() -> None:
    """A line for each, where it is asked for."""
    probes = Probes(lambda: ["disk: nearly full", "docker.io: unreachable for 10 s"])
    probes.state = State.READY
    assert probes.readyz(verbose=True) == (200, "ready\ndisk: nearly full\ndocker.io: unreachable for 10 s\n")
    assert probes.readyz(verbose=False) == (200, "ready\n")


async def test_metrics(served: Served) -> None:
    """The text format, with what was counted."""
    await served.ask("/v2/sample/manifests/latest")
    answer = await served.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    line = 'mirrorproxy_cache_requests_total{kind="manifest",registry="docker.io",result="hit"} 1.0'
    assert line in answer.body.decode().splitlines()


async def test_metrics_in_the_format_that_is_asked_for(served: Served) -> None:
    """OpenMetrics, as Prometheus asks."""
    accept = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"
    )
    answer = await served.ask("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=a", "text/plain;version=1.x", "\xff", "*/*", ","]
)
async def test_metrics_whatever_is_asked_for(served: Served, accept: str) -> None:
    """A strange Accept gets the text format, and breaks nothing."""
    answer = await served.ask("/metrics", headers={"Accept": accept})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")


async def test_the_books_of_content(served: Served) -> None:
    """Requests, bytes, time to the first byte by registry, kind and result; durations by what was asked."""
    served.registry.outcome = Outcome(Result.MISS)
    await served.ask(f"/v2/sample/blobs/{LAYER}")
    await served.ask(f"/v2/sample/blobs/{LAYER}", headers={"Range": "bytes=0-99"})
    await served.ask(f"/v2/sample/blobs/{LAYER}", "HEAD")
    await served.ask(f"/v2/sample/blobs/{LAYER}", headers={"If-None-Match": "*"})
    labels = {"registry": "docker.io", "kind": "blob", "result": "miss"}
    assert served.value("cache_requests_total", **labels) == 4
    assert served.value("response_bytes_total", **labels) == len(SAMPLE.blobs[LAYER]) + 100
    assert served.value("http_time_to_first_byte_seconds_count", kind="blob", result="miss") == 2
    durations = {("GET", "200"), ("GET", "206"), ("HEAD", "200"), ("GET", "304")}
    for method, code in durations:
        assert served.value("http_request_duration_seconds_count", method=method, endpoint="blob", code=code) == 1


async def test_labels_are_of_a_closed_set(served: Served) -> None:
    """However many names, methods and paths clients think of, the number of series stays."""

    def series() -> int:
        return sum(len(family.samples) for family in served.metrics.collectors.collect())

    async def ask(word: str) -> None:
        for target in (f"/{word}", f"/v2/{word}/manifests/{word}", f"/v2/{word}.example/a/manifests/1", f"/v2/{word}"):
            await served.ask(target)
            await served.ask(f"{target}?ns={word}.example")
        await served.ask("/v2/", "PROPFIND")
        await served.ask("/v2/", "REPORT")

    await ask("word0")
    before = series()
    for number in range(1, 10):
        await ask(f"word{number}")
    assert series() == before


async def test_who_was_refused_is_counted(served: Served) -> None:
    """What our policy denies; what an upstream does is counted there."""
    served.registry.fail("manifest", Denied("not for you"))
    assert (await served.ask("/v2/sample/manifests/latest")).status == 403
    assert served.value("auth_failures_total", direction="client") == 1
    served.registry.fail("manifest", Unauthorized("upstream says no"))
    assert (await served.ask("/v2/sample/manifests/latest")).status == 403
    assert served.value("auth_failures_total", direction="client") == 1


async def test_requests_have_names(served: Served) -> None:
    """Each its own, or the client's, in every response: of success, of failure, of what does not parse."""
    answers = [await served.ask(target) for target in ("/v2/", "/v2/a", "/v2/A/tags/list")]
    answers.append(await served.raw(b"x\r\n\r\n"))
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 4
    answer = await served.ask("/v2/", headers={"X-Request-ID": "my-id"})
    assert answer.headers["X-Request-ID"] == "my-id"
    answer = await served.ask("/v2/", headers={"X-Request-ID": "my id"})
    assert re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", answer.headers["X-Request-ID"])


async def test_draining(served: Served) -> None:
    """Requests under way end well, connections are not kept, and it is known when all is done."""
    growth = served.registry.put_growing(SAMPLE.repository, b"x" * 100_000, available=100)
    async with connect(served.port) as wire, connect(served.port) as other:
        assert "Connection" not in (await other.ask("/v2/")).headers
        wire.send(f"/v2/sample/blobs/{growth.digest}")
        await wire.head()
        served.probes.state = State.DRAINING
        assert served.app.inflight == 1
        assert (await other.ask("/v2/")).headers["Connection"] == "close"
        assert await other.ended()
        draining = asyncio.get_running_loop().create_task(served.app.drained(5))
        await asyncio.sleep(0.01)
        assert not draining.done()
        growth.finish()
        assert await wire.reader.readexactly(100_000) == b"x" * 100_000
        await draining
        assert served.app.inflight == 0


async def test_draining_ends_in_time(served: Served) -> None:
    """Though a transfer does not."""
    growth = served.registry.put_growing(SAMPLE.repository, b"x" * 100_000, available=100)
    async with connect(served.port) as wire:
        wire.send(f"/v2/sample/blobs/{growth.digest}")
        await wire.head()
        async with asyncio.timeout(1):
            await served.app.drained(0.05)
        assert served.app.inflight == 1


async def test_stopping_breaks_what_still_runs_off(serve: Serve) -> None:
    """A client of a transfer that did not end in time sees a broken one."""
    registry = MemoryRegistry()
    growth = registry.put_growing(SAMPLE.repository, b"x" * 100_000, available=100)
    served = await serve(registry)
    async with connect(served.port) as wire:
        wire.send(f"/v2/sample/blobs/{growth.digest}")
        await wire.head()
        assert served.runner is not None
        await served.runner.cleanup()
        assert await wire.reader.read() == b"x" * 100
    await served.idle()


async def test_the_time_that_a_client_may_take_nothing_can_be_changed(serve: Serve) -> None:
    """From the next request on."""
    registry = MemoryRegistry()
    digest = registry.put_blob(SAMPLE.repository, b"x" * 30_000_000)
    served = await serve(registry, write_timeout=60)
    served.app.allow(0.1)
    async with connect(served.port, limit=1000) as wire:
        wire.send(f"/v2/sample/blobs/{digest}")
        await wire.head()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport is a read transport, too
        await served.idle()
    (line,) = await served.logged()
    assert line["aborted"]
