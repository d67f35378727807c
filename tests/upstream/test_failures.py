"""What an upstream's failures become, how often it is asked, and what is left in peace."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mirrorproxy.errors import (
    BadAnswer,
    NotFound,
    RateLimited,
    ServerFailed,
    TimedOut,
    Unauthorized,
    Unreachable,
    UpstreamError,
)
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Tag
from mirrorproxy.upstream import Failover
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

BLOB = Digest.of(b"layer")

Call = Callable[[Failover], Awaitable[object]]
CALLS: dict[str, tuple[str, Call]] = {
    "resolve": ("manifest", lambda upstream: upstream.resolve(ALPINE, Tag("3.20"))),
    "manifest": ("manifest", lambda upstream: upstream.manifest(ALPINE, Tag("3.20"))),
    "stat": ("blob", lambda upstream: upstream.stat(ALPINE, BLOB)),
    "blob": ("blob", lambda upstream: upstream.blob(ALPINE, BLOB)),
    "tags": ("tags", lambda upstream: upstream.tags(ALPINE)),
    "referrers": ("referrers", lambda upstream: upstream.referrers(ALPINE, BLOB)),
}


@pytest.fixture
async def hub() -> Hub:
    """A registry without tokens, so that requests are easy to count."""
    hub = Hub(auth="none", redirects=False)
    hub.add_image(ALPINE.name, "3.20", b"layer")
    return hub


@pytest.fixture(autouse=True)
async def _running(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr("mirrorproxy.upstream.retry._FIRST_DELAY", 0.02)
    async with hub:
        yield


def up(metrics: Metrics, hub: Hub) -> float | None:
    """Does it work, by the metrics?"""
    labels = {"registry": "docker.io", "endpoint": hub.url.partition("//")[2]}
    return metrics.collectors.get_sample_value("mirrorproxy_upstream_up", labels)


def requests(metrics: Metrics, kind: str, code: str) -> float | None:
    """How many there were, by the metrics."""
    labels = {"registry": "docker.io", "kind": kind, "code": code}
    return metrics.collectors.get_sample_value("mirrorproxy_upstream_requests_total", labels)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [
        (401, Unauthorized, 1),
        (403, Unauthorized, 1),
        (408, TimedOut, 3),
        (429, RateLimited, 1),
        (500, ServerFailed, 3),
        (502, ServerFailed, 3),
        (503, ServerFailed, 3),
        (504, ServerFailed, 3),
        (522, ServerFailed, 3),
    ],
)
async def test_statuses(
    hub: Hub, upstream: Failover, name: str, status: int, error: type[UpstreamError], asked: int
) -> None:
    """The same for everything that can be asked: an error of the contract, and as many tries as make sense."""
    kind, call = CALLS[name]
    hub.script.always(kind, Quirk(status=status))
    with pytest.raises(error) as caught:
        await call(upstream)
    assert type(caught.value) is error
    assert hub.count(kind) == asked
    assert "127.0.0.1" in caught.value.message


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("status", [402, 406, 409, 418, 451, 505, 511])
async def test_statuses_that_mean_nothing(hub: Hub, upstream: Failover, name: str, status: int) -> None:
    """`BadAnswer`, and no other try."""
    kind, call = CALLS[name]
    hub.script.always(kind, Quirk(status=status))
    with pytest.raises(BadAnswer):
        await call(upstream)
    assert hub.count(kind) == 1


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("quirk", [Quirk(status=503), Quirk(reset=True)])
async def test_what_passes_is_not_noticed(hub: Hub, upstream: Failover, name: str, quirk: Quirk) -> None:
    """Two failures, then an answer."""
    kind, call = CALLS[name]
    hub.script.next(kind, quirk, quirk)
    answer = await call(upstream)
    if name == "blob":
        await answer.aclose()  # type: ignore[attr-defined]  # it is a transfer
    assert hub.count(kind) == 3


@pytest.mark.parametrize("name", CALLS)
async def test_a_registry_that_is_down(hub: Hub, upstream: Failover, metrics: Metrics, name: str) -> None:
    """Never "not found"; and it says what is wrong, as long as it is."""
    await hub.stop()
    with pytest.raises(Unreachable, match=r"no connection to 127\.0\.0\.1:\d+: connection refused"):
        await CALLS[name][1](upstream)
    assert up(metrics, hub) == 0
    (trouble,) = upstream.troubles()
    assert "connection refused" in trouble
    await hub.start()
    with pytest.raises(NotFound):
        await upstream.manifest(ALPINE, Tag("absent"))
    assert up(metrics, hub) == 1
    assert list(upstream.troubles()) == []


async def test_requests_are_counted_by_their_outcome(hub: Hub, upstream: Failover, metrics: Metrics) -> None:
    """Code 0 is no answer."""
    hub.script.next("tags", Quirk(status=503), Quirk(reset=True))
    await upstream.tags(ALPINE)
    counted = {code: requests(metrics, "tags", code) for code in ("503", "0", "200")}
    assert counted == {"503": 1, "0": 1, "200": 1}
    assert hub.count("tags") == 3


@pytest.mark.parametrize("status", [429, 503])
async def test_a_short_retry_after_is_waited_for(hub: Hub, upstream: Failover, status: int) -> None:
    """Not a moment less."""
    hub.script.next("manifest", Quirk(status=status, headers={"Retry-After": "1"}))
    began = time.monotonic()
    await upstream.manifest(ALPINE, Tag("3.20"))
    assert 1.0 <= time.monotonic() - began < 2.0
    assert hub.count("manifest") == 2


@pytest.mark.parametrize(("status", "error"), [(429, RateLimited), (503, ServerFailed)])
async def test_a_long_retry_after_leaves_it_in_peace(
    hub: Hub, upstream: Failover, status: int, error: type[UpstreamError]
) -> None:
    """Not asked again for that kind of thing before; other kinds go on, since limits count manifests alone."""
    hub.script.next("manifest", Quirk(status=status, headers={"Retry-After": "60"}))
    with pytest.raises(error) as caught:
        await upstream.manifest(ALPINE, Tag("3.20"))
    assert caught.value.retry_after == 60
    for _ in range(20):
        with pytest.raises(RateLimited) as embargoed:
            await upstream.manifest(ALPINE, Tag("3.20"))
        assert 59 < (embargoed.value.retry_after or 0) <= 60
    assert hub.count("manifest") == 1
    assert (await upstream.stat(ALPINE, BLOB)).descriptor.size == 5


@pytest.mark.parametrize("header", ["soon", "-1", ""])
async def test_a_retry_after_that_says_nothing(hub: Hub, upstream: Failover, header: str) -> None:
    """Changes nothing."""
    hub.script.next("manifest", Quirk(status=429, headers={"Retry-After": header}))
    with pytest.raises(RateLimited) as caught:
        await upstream.manifest(ALPINE, Tag("3.20"))
    assert caught.value.retry_after is None
    await upstream.manifest(ALPINE, Tag("3.20"))


async def test_a_hanging_registry_is_given_up_in_time(hub: Hub, connected: Connect) -> None:
    """Each try ends after the header timeout."""
    hub.script.always("manifest", Quirk(hold=asyncio.Event()))
    upstream = connected(hub, header_timeout=0.1)
    began = time.monotonic()
    with pytest.raises(TimedOut, match="did not answer in time"):
        await upstream.manifest(ALPINE, Tag("3.20"))
    assert time.monotonic() - began < 2
    assert hub.count("manifest") == 3


async def test_no_more_tries_when_patience_is_over(
    hub: Hub, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client waits 30 s for headers at most: what takes long is not tried three times."""
    monkeypatch.setattr("mirrorproxy.upstream.retry.PATIENCE", 0.05)
    hub.script.always("manifest", Quirk(hold=asyncio.Event()))
    with pytest.raises(TimedOut):
        await connected(hub, header_timeout=0.1).manifest(ALPINE, Tag("3.20"))
    assert hub.count("manifest") == 1


async def test_a_caller_that_leaves_takes_its_connection_along(hub: Hub, connected: Connect) -> None:
    """And frees its place at once."""
    upstream = connected(hub, max_connections=1)
    hub.script.next("manifest", Quirk(hold=asyncio.Event()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await upstream.manifest(ALPINE, Tag("3.20"))
    await upstream.manifest(ALPINE, Tag("3.20"))


async def test_after_the_end(hub: Hub, upstream: Failover) -> None:
    """A closed upstream asks nothing."""
    await upstream.manifest(ALPINE, Tag("3.20"))
    await upstream.aclose()
    with pytest.raises(Unreachable, match="stopping"):
        await upstream.manifest(ALPINE, Tag("3.20"))
    assert hub.count() == 1
