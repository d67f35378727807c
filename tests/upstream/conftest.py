"""A Hub-like upstream, and a registry connected to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Repository, repository
from mirrorproxy.upstream import Failover, connect
from tests.fakes.hub import Hub

Connect = Callable[..., Failover]

ALPINE: Repository = repository("docker.io", "library/alpine")


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Docker Hub on loopback, with tokens and a storage of its own."""
    async with Hub() as hub:
        yield hub


@pytest.fixture
def metrics() -> Metrics:
    """The metrics that a test looks at."""
    return Metrics(["docker.io"])


@pytest.fixture
async def connected(metrics: Metrics) -> AsyncIterator[Connect]:
    """`connected(hub, **settings)`: the upstream `docker.io` at that hub, closed at the end."""
    async with AsyncExitStack() as stack:

        def connect_to(hub: Hub, registry: str = "docker.io", **settings: Any) -> Failover:
            upstream = connect(registry, hub.settings(**settings), metrics)
            stack.push_async_callback(upstream.aclose)
            return upstream

        yield connect_to


@pytest.fixture
def upstream(hub: Hub, connected: Connect) -> Failover:
    """The upstream `docker.io` at `hub`."""
    return connected(hub)
