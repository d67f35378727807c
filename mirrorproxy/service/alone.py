"""An operation in a command's own process, where no service runs on the directory."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import cache

from mirrorproxy.admin.events import Event
from mirrorproxy.admin.operations import carry_out, operation
from mirrorproxy.audit import Fate, Refetch
from mirrorproxy.config import Settings
from mirrorproxy.fill import Fills
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository, Tag
from mirrorproxy.registry import Resolved
from mirrorproxy.service.contents import Contents
from mirrorproxy.service.stack import Stacks, terms
from mirrorproxy.store.owner import COMMAND


def carry_out_alone(
    settings: Settings, name: str, arguments: Mapping[str, object], take: Callable[[Event], None]
) -> None:
    """Take the directory, run the operation, and give each event to `take`.

    Raises `CacheFailed`, as `InUse` where another process has the directory and keeps it; then nothing was taken.
    """
    asyncio.run(_carry_out(settings, name, arguments, take))


async def _carry_out(
    settings: Settings, name: str, arguments: Mapping[str, object], take: Callable[[Event], None]
) -> None:
    metrics = Metrics(settings.upstreams)
    async with AsyncExitStack() as parts:
        contents = Contents(settings, metrics)
        parts.push_async_callback(contents.aclose)
        await contents.open(f"{COMMAND}{name}", writing=operation(name).changes, patience=0)
        if contents.index.rebuild_needed:
            await contents.rebuild()

        @cache
        def upstreams() -> Stacks:
            """Made when they are needed: most commands ask nobody."""
            fills = Fills(contents.partials, contents.retention, metrics, terms(settings))
            stacks = Stacks(contents.shelf, fills, metrics)
            parts.push_async_callback(stacks.aclose)
            parts.push_async_callback(fills.aclose)
            stacks.use(settings.upstreams)
            return stacks

        async def refresh(repository: Repository, tag: Tag) -> Resolved:
            return await upstreams().refresh(repository, tag)

        async def refetch(digest: Digest) -> Fate:
            return await Refetch(contents.index, upstreams().registry, contents.blobs)(digest)

        desk = contents.desk(lambda: settings, refresh, refetch)
        events = await parts.enter_async_context(aclosing(carry_out(desk, name, arguments)))
        async for event in events:
            take(event)
