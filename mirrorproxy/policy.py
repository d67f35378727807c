"""Which repositories of a registry are served at all.

An upstream that is asked with credentials would show private images to whoever reaches our port. So its `repositories:`
patterns say what is served with them, and nothing else is, from upstream or from the cache.
Every method is spelled out: one that is added to the contract later fails closed.
"""

import re
from collections.abc import Iterable

from mirrorproxy.errors import Denied
from mirrorproxy.names import Digest, Reference, Repository
from mirrorproxy.patterns import expression
from mirrorproxy.registry import Blob, Listing, Manifest, Registry, Resolved


class Guarded:
    """A `Registry` that knows only the repositories whose name matches one of `patterns`; others are `Denied`.

    A pattern is a name with `*` for anything but a slash and `**` for anything: `team/*`, `team/**`, `library/alpine`.
    """

    def __init__(self, registry: Registry, patterns: Iterable[str]) -> None:
        self._registry = registry
        self._allowed = allowed(patterns)

    def _check(self, repository: Repository) -> Repository:
        if not self._allowed.fullmatch(repository.name):
            raise Denied(f"{repository} is not among the repositories that this mirror serves")
        return repository

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """See `Registry.resolve`."""
        return await self._registry.resolve(self._check(repository), reference, fresh=fresh)

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """See `Registry.manifest`."""
        return await self._registry.manifest(self._check(repository), reference, fresh=fresh)

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry.stat`."""
        return await self._registry.stat(self._check(repository), digest)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """See `Registry.blob`."""
        return await self._registry.blob(self._check(repository), digest, start, end)

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry.tags`."""
        return await self._registry.tags(self._check(repository), query)

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry.referrers`."""
        return await self._registry.referrers(self._check(repository), digest, query)


def allowed(patterns: Iterable[str]) -> re.Pattern[str]:
    """What matches the names that these patterns let through."""
    return re.compile("|".join(f"(?:{expression(pattern)})" for pattern in patterns) or r"(?!)")
