"""A Hub-like upstream, and a registry connected to it."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
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


@pytest.fixture
def deaf() -> Iterator[str]:
    """The origin of a host that takes no connections, as behind a firewall that drops: its backlog is full."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.3", 0), backlog=0))
        for _ in range(3):  # more than the kernel lets in without anybody accepting
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.3:{listener.getsockname()[1]}"
