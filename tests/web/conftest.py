"""A running server before a registry in memory."""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
import trustme
from aiohttp import web

from mirrorproxy.metrics import Metrics
from mirrorproxy.web.access import AccessLog
from mirrorproxy.web.app import App
from mirrorproxy.web.probes import Probes, State
from mirrorproxy.web.routes import Names
from tests.fakes.memory import MemoryRegistry
from tests.web.test_memory import serving_sample
from tests.web.wire import Answer, connect

NAMES = Names("docker.io", frozenset({"docker.io", "ghcr.io", "reg.local:5000"}))


class Served:
    """A server, and all around it."""

    def __init__(
        self, registry: MemoryRegistry, app: App, metrics: Metrics, probes: Probes, access: AccessLog, log: io.StringIO
    ) -> None:
        self.registry = registry
        self.app = app
        self.metrics = metrics
        self.probes = probes
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self.runner: web.ServerRunner | None = None
        self._access = access
        self._log = log

    async def ask(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, *, version: str = "1.1"
    ) -> Answer:
        """One request over a connection of its own."""
        async with connect(self.port, self.tls) as wire:
            return await wire.ask(target, method, headers, version=version)

    async def raw(self, data: bytes) -> Answer:
        """One request, as it is."""
        async with connect(self.port, self.tls) as wire:
            wire.writer.write(data)
            return await wire.answer()

    async def idle(self) -> None:
        """Wait until nothing is being answered and every blob is closed."""
        async with asyncio.timeout(5):
            while self.app.inflight or self.registry.opened["open"]:
                await asyncio.sleep(0.005)

    async def logged(self) -> list[dict[str, Any]]:
        """The access log. The last thing to ask for: it is closed."""
        await self.idle()
        await self._access.aclose()
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        found = self.metrics.collectors.get_sample_value(f"mirrorproxy_{name}", labels)
        assert found is not None, f"{name}{labels} is not there"
        return found


class Serve(Protocol):
    """Starts a server."""

    def __call__(
        self,
        registry: MemoryRegistry | None = None,
        *,
        write_timeout: float = 5.0,
        handler_cancellation: bool = True,
        tls: bool = False,
        names: Names = NAMES,
    ) -> Awaitable[Served]: ...


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers on free ports, over real sockets, by `web.ServerRunner` as the service does; ends them."""
    async with AsyncExitStack() as stack:

        async def start(
            registry: MemoryRegistry | None = None,
            *,
            write_timeout: float = 5.0,
            handler_cancellation: bool = True,
            tls: bool = False,
            names: Names = NAMES,
        ) -> Served:
            registry = MemoryRegistry() if registry is None else registry
            log, metrics, probes = io.StringIO(), Metrics(names.registries), Probes()
            access = AccessLog(log)
            stack.push_async_callback(access.aclose)
            app = App(registry, registry, lambda: names, metrics, access, probes, write_timeout)
            stack.push_async_callback(app.aclose)
            served = Served(registry, app, metrics, probes, access, log)
            server_tls = None
            if tls:
                authority = trustme.CA()
                server_tls, served.tls = (
                    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
                    ssl.create_default_context(),
                )
                authority.issue_cert("localhost").configure_cert(server_tls)
                authority.configure_trust(served.tls)
            runner = web.ServerRunner(app.server(handler_cancellation=handler_cancellation), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls)
            await site.start()
            served.runner = runner
            served.port = runner.addresses[0][1]
            probes.state = State.READY
            return served

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server that serves the sample."""
    return await serve(serving_sample(MemoryRegistry()))
