"""Fixtures: a cache with real content, and commands as processes of their own beside its service or without one."""

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from mirrorproxy.cli import main
from mirrorproxy.names import Digest
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.content import Image
from tests.fakes.hub import Hub

TIMEOUT = 60.0


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `--json` said."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Stocked:
    """Three images of which two share a layer; of the third one the layer `lacks` was not pulled."""

    alpine: Image
    one: Image
    two: Image
    base: bytes
    lacks: Digest


@dataclass
class Cache:
    """A hub, a service, and commands on its cache."""

    hub: Hub
    proxy: Proxy
    stocked: Stocked | None = None

    async def pull(self, name: str, tag: str, *, but: frozenset[Digest] = frozenset()) -> None:
        """Pull a tag of one manifest as a client does, without the blobs `but`. `name` has the registry."""
        answer = await self.proxy.ask(f"/v2/{name}/manifests/{tag}")
        assert answer.status == 200
        manifest = json.loads(answer.body)
        for each in [manifest["config"], *manifest["layers"]]:
            if each["digest"] not in but:
                assert (await self.proxy.ask(f"/v2/{name}/blobs/{each['digest']}")).status == 200
        await self.proxy.idle()

    async def start(self, *words: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
        """Begin a command on the cache."""
        first, *rest = words
        return await self._start(first, "--config", str(self.proxy.config), *rest, stdin=stdin)

    async def _start(self, *words: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mirrorproxy", *words),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"NO_COLOR": "1"},
        )

    async def run(self, *words: str) -> Ran:
        """Run a command on the cache to its end, without a terminal."""
        return await _ended(await self.start(*words))

    async def call(self, *words: str) -> Ran:
        """The same in this process, for the many: a process of its own takes 0.3 s to begin."""
        first, *rest = words
        arguments = [first, "--config", str(self.proxy.config), *rest]

        def work() -> Ran:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    status = main(arguments)
                except SystemExit as end:  # argparse
                    status = int(end.code or 0)
            return Ran(status, out.getvalue(), err.getvalue())

        return await asyncio.to_thread(work)

    async def run_plain(self, *words: str) -> Ran:
        """Run a command that knows of no cache."""
        return await _ended(await self._start(*words))


async def _ended(process: asyncio.subprocess.Process) -> Ran:
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@pytest.fixture(autouse=True)
def _no_task_left() -> None:
    """The service has a process of its own; what runs here is the hub, which serves a module's tests one by one."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Hub]:
    """Docker Hub on loopback."""
    async with Hub() as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cache(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cache]:
    """A running service for docker.io and ghcr.io, empty at first, for all tests of a module."""
    upstreams = {"docker.io": upstream(hub, tag_ttl="1h"), "ghcr.io": upstream(hub)}
    async with Proxy(tmp_path_factory.mktemp("proxy"), settings(upstreams)) as proxy:
        yield Cache(hub, proxy)


async def stock(cache: Cache) -> Stocked:
    """Pull three images, the same ones each time for a cache."""
    if cache.stocked is None:
        base, lacks = os.urandom(200_000), os.urandom(50_000)
        hub = cache.hub
        cache.stocked = Stocked(
            hub.add_image("library/alpine", "3.20", base, config=b'{"os":"linux","architecture":"amd64"}'),
            hub.add_image("team/app", "1", base, os.urandom(100_000), config=b'{"os":"linux","architecture":"arm64"}'),
            hub.add_image("team/app", "2", lacks, config=b"{}"),
            base,
            Digest.of(lacks),
        )
    await cache.pull("docker.io/library/alpine", "3.20")
    await cache.pull("ghcr.io/team/app", "1")
    await cache.pull("ghcr.io/team/app", "2", but=frozenset({cache.stocked.lacks}))
    return cache.stocked
