"""Fixtures: a cache directory, opened as the service does, and the socket over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mirrorproxy.admin.desk import Desk
from mirrorproxy.audit import Fate
from mirrorproxy.config import Settings, load
from mirrorproxy.config.sources import Overrides
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.registry import Resolved
from mirrorproxy.service.contents import Contents
from mirrorproxy.web.admin import AdminServer


async def _nobody(repository: Repository, tag: Tag) -> Resolved:
    raise AssertionError(f"nobody is to be asked about {repository}:{tag}")


async def _never(digest: Digest) -> Fate:
    raise AssertionError(f"{digest} is not to be fetched")


def settings_for(directory: Path) -> Settings:
    """The built-in settings with this cache directory."""
    overrides = Overrides(listen=(), cache_dir=str(directory), upstreams=())
    return load(None, {"HOME": "/nowhere"}, overrides).settings


@pytest.fixture
async def parts() -> AsyncIterator[AsyncExitStack]:
    """What the test opens, closed after it."""
    async with AsyncExitStack() as stack:
        yield stack


async def desk_in(directory: Path, parts: AsyncExitStack) -> Desk:
    """A desk over the directory."""
    settings = await asyncio.to_thread(settings_for, directory)
    contents = Contents(settings, Metrics(settings.upstreams))
    parts.push_async_callback(contents.aclose)
    await contents.open("testing")
    return contents.desk(lambda: settings, _nobody, _never)


async def server_on(directory: Path, parts: AsyncExitStack) -> AdminServer:
    """A socket over the directory."""
    server = AdminServer(await desk_in(directory, parts))
    parts.push_async_callback(server.aclose)
    await server.start()
    return server


@pytest.fixture
async def desk(tmp_path: Path, parts: AsyncExitStack) -> Desk:
    """A desk over an empty cache."""
    return await desk_in(tmp_path / "cache", parts)
