"""Fixtures: as in `tests.e2e`, a hub for all tests of a module; a service for all of them, or one of a test's own."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mirrorproxy.spans import RangeRequest, Spans, parse_range
from tests.e2e.conftest import (
    Place,
    _no_task_left,
    hub,
    numbers,
    place,
    places,
    pytest_generate_tests,
    pytest_runtest_makereport,
    settings,
    upstream,
    workers,
)
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Seen

__all__ = [
    "_no_task_left",
    "hub",
    "numbers",
    "place",
    "places",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "workers",
]

MIB = 1 << 20
BUDGET = "20s"
"""Seconds without progress: what a test takes when a download does not go on."""

UNDER_WAY = MIB
"""What sockets may hold of an answer that is not wanted any more."""

Serve = Callable[..., Proxy]


def asked(seen: list[Seen]) -> list[RangeRequest | None]:
    """The ranges that requests were for; None: the whole."""
    return [parse_range(each.range) for each in seen]


def starts(seen: list[Seen]) -> list[int]:
    """Where the requests wanted to begin."""
    return [0 if wanted is None else wanted.start or 0 for wanted in asked(seen)]


def check_sent_once(seen: list[Seen], size: int) -> None:
    """The answers together were all of it, and no byte was sent twice but for what was under way."""
    got = Spans()
    for each, start in zip(seen, starts(seen), strict=True):
        got.add(start, start + each.sent)
    assert got.front >= size
    assert sum(each.sent for each in seen) <= size + len(seen) * UNDER_WAY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(
    hub: Hub, workers: int, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Proxy]:
    """The service for all tests of a module, each of which has an upstream of its own: see `tests.e2e`. The module's
    `UPSTREAM` has what is different in their settings, `FILLS` in those of downloads, `PLACES` how many it takes.
    """
    changes = getattr(request.module, "UPSTREAM", {})
    fills = {"budget": BUDGET, **getattr(request.module, "FILLS", {})}
    upstreams = {f"r{number}.test": upstream(hub, **changes) for number in range(getattr(request.module, "PLACES", 20))}
    async with Proxy(tmp_path_factory.mktemp("proxy"), settings(upstreams, fills=fills)) as proxy:
        yield proxy


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service of the test's own in front of the hub: `serve(fills={..}, cache={..}, partials={..}, **upstream)`."""
    hub.script.clear()
    hub.log.clear()

    def make(
        fills: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        partials: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Proxy:
        others = {"fills": {"budget": BUDGET, **(fills or {})}, "cache": cache or {}, "partials": partials or {}}
        return Proxy(tmp_path, settings({"docker.io": upstream(hub, **changes)}, **others))

    return make


def at(hub: Hub, proxy: Proxy, repository: str = "team/image") -> Place:
    """A repository behind a service that `serve` made."""
    return Place(hub, proxy, "docker.io", repository)
