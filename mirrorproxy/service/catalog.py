"""What `_catalog` shows: the repositories of which something is cached."""

from collections.abc import Callable

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store.index import Index
from mirrorproxy.web.routes import Names


class CachedCatalog:
    """The repositories in the index, as far as their registry is configured still: a `Catalog`."""

    def __init__(self, index: Index, names: Callable[[], Names]) -> None:
        self._index = index
        self._names = names

    async def catalog(self, registry: str | None, n: int, last: str | None) -> tuple[list[str], bool]:
        """See `Catalog`. Nothing, where the index cannot be read."""
        registries = self._names().registries if registry is None else {registry}
        cut = 0 if registry is None else len(registry) + 1
        after = last or ""
        if registry is not None:
            after = f"{registry}/{after}"
        found: list[str] = []
        while len(found) <= n:
            try:
                page = await self._index.repositories(after, n + 1)
            except CacheFailed:
                break
            if not page:
                break
            after = str(page[-1])
            found += [str(each)[cut:] for each in page if each.registry in registries]
            if registry is not None and page[-1].registry > registry:
                break
        return found[:n], len(found) > n
