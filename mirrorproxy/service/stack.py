"""From settings to the registries that are served, and from one set of them to the next."""

import asyncio
import logging
from collections.abc import Iterator, Mapping

from mirrorproxy.cache import Cached, Mode, Rules, Shelf
from mirrorproxy.config import Settings, UpstreamSettings
from mirrorproxy.errors import NameUnknown
from mirrorproxy.fill import Fills, Limits, Terms
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Repository, Tag
from mirrorproxy.policy import Guarded
from mirrorproxy.registry import Registry, Resolved
from mirrorproxy.unified import Unified
from mirrorproxy.upstream import Failover, connect

log = logging.getLogger(__name__)


def terms(settings: Settings) -> Terms:
    """The terms of all downloads, as the settings have them."""

    def limits(registry: str) -> Limits:
        upstream = settings.upstreams.get(registry)
        if upstream is None:  # a reload took it away in mid-flight
            return Limits()
        return Limits(
            fills=upstream.max_fills,
            connections=upstream.connections,
            parallel_from=upstream.parallel_from,
            min_rate=upstream.min_rate,
            min_rate_over=upstream.idle_timeout,
        )

    fills = settings.fills
    return Terms(fills.budget, fills.max_active, fills.abandoned_after, limits, fills.max_waiting, fills.max_readers)


class _Stack:
    """One registry: its endpoints, the cache before them, the policy before that."""

    def __init__(self, name: str, settings: UpstreamSettings, shelf: Shelf, fills: Fills, metrics: Metrics) -> None:
        self.settings = settings
        self.upstream: Failover = connect(name, settings, metrics)
        rules = Rules(settings.tag_ttl, settings.negative_ttl, settings.revalidate_timeout, Mode(settings.prefetch))
        self.cached = Cached(self.upstream, shelf, fills, rules)
        self.registry: Registry = self.cached
        if settings.repositories:
            self.registry = Guarded(self.cached, settings.repositories)

    async def aclose(self) -> None:
        await self.cached.aclose()
        await self.upstream.aclose()


class Stacks:
    """The configured registries. `registry` is all of them as one."""

    def __init__(self, shelf: Shelf, fills: Fills, metrics: Metrics) -> None:
        self._shelf = shelf
        self._fills = fills
        self._metrics = metrics
        self._stacks: dict[str, _Stack] = {}
        self._retired: list[_Stack] = []
        self.registry = Unified({})

    def use(self, upstreams: Mapping[str, UpstreamSettings]) -> None:
        """Serve these from now on. What did not change keeps its connections, tokens and memory."""
        self._metrics.prepare(upstreams)
        before, self._stacks = self._stacks, {}
        for name, settings in upstreams.items():
            old = before.pop(name, None)
            if old is not None and old.settings == settings:
                self._stacks[name] = old
                continue
            if old is not None:
                self._retired.append(old)
            self._stacks[name] = _Stack(name, settings, self._shelf, self._fills, self._metrics)
        self._retired += before.values()
        self._show_no_others()
        self.registry.replace({name: stack.registry for name, stack in self._stacks.items()})

    async def refresh(self, repository: Repository, tag: Tag) -> Resolved:
        """See `Cached.refresh`; for the operator, whom `repositories:` does not bind. Raises `NameUnknown`."""
        if (stack := self._stacks.get(repository.registry)) is None:
            raise NameUnknown(f"{repository.registry} is not one of the configured registries")
        return await stack.cached.refresh(repository, tag)

    async def retire(self) -> None:
        """Close what was replaced. For a moment in which no request and no download uses it."""
        retired, self._retired = self._retired, []
        await asyncio.gather(*(stack.aclose() for stack in retired))
        if retired:
            self._show_no_others()  # their last requests ended after they were replaced

    def _show_no_others(self) -> None:
        self._metrics.retain({name: stack.upstream.names for name, stack in self._stacks.items()})

    def troubles(self) -> Iterator[str]:
        """What is wrong with upstreams now, a line each."""
        for stack in self._stacks.values():
            yield from stack.upstream.troubles()

    async def aclose(self) -> None:
        """Close all."""
        self._retired += self._stacks.values()
        self._stacks = {}
        await self.retire()
