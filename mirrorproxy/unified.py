"""Several registries as one: each repository is asked of the registry that its name begins with."""

from collections.abc import Mapping

from mirrorproxy.errors import NameUnknown
from mirrorproxy.names import Digest, Reference, Repository
from mirrorproxy.registry import Blob, Listing, Manifest, Registry, Resolved


class Unified:
    """A `Registry` of registries, by their configured names. A closed world: any other name is `NameUnknown`."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self._registries = dict(registries)

    def replace(self, registries: Mapping[str, Registry]) -> None:
        """From now on, these. Requests under way keep what they have."""
        self._registries = dict(registries)

    def _of(self, repository: Repository) -> Registry:
        try:
            return self._registries[repository.registry]
        except KeyError:
            raise NameUnknown(f"{repository.registry} is not one of the configured registries") from None

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """See `Registry.resolve`."""
        return await self._of(repository).resolve(repository, reference, fresh=fresh)

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """See `Registry.manifest`."""
        return await self._of(repository).manifest(repository, reference, fresh=fresh)

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry.stat`."""
        return await self._of(repository).stat(repository, digest)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """See `Registry.blob`."""
        return await self._of(repository).blob(repository, digest, start, end)

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry.tags`."""
        return await self._of(repository).tags(repository, query)

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry.referrers`."""
        return await self._of(repository).referrers(repository, digest, query)
