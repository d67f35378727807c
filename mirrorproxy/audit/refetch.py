"""Content that was taken away because it was wrong is asked for again, as a client would ask for it."""

import asyncio
import logging
from contextlib import aclosing

from mirrorproxy.errors import CacheFailed, MirrorproxyError
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Registry
from mirrorproxy.store.index import Index
from mirrorproxy.store.records import Fact

log = logging.getLogger(__name__)

_ASKED = 5  # repositories; a base layer may be known in thousands of them, and the first is as good as any


class Refetch:
    """Fetches through `registry`, in the name of a repository that the index knows to have the content."""

    def __init__(self, index: Index, registry: Registry) -> None:
        self._index = index
        self._registry = registry

    async def __call__(self, digest: Digest) -> bool:
        """Whether it is here again. It is not where nobody is known to have it, or no upstream gives it."""
        try:
            owners = await asyncio.to_thread(self._owners, digest)
        except CacheFailed as error:
            log.warning("%s is not fetched again before a client asks for it: %s", digest, error)
            return False
        for repository, fact in owners:
            try:
                await self._fetch(repository, digest, fact)
            except MirrorproxyError as error:
                log.info("%s cannot be had from %s: %s", digest, repository, error)
            else:
                log.info("%s was fetched again from %s", digest, repository)
                return True
        return False

    def _owners(self, digest: Digest) -> list[tuple[Repository, Fact]]:
        found = []
        for repository, known, fact in self._index.walk_facts():
            if known == digest:
                found.append((repository, fact))
                if len(found) == _ASKED:
                    break
        return found

    async def _fetch(self, repository: Repository, digest: Digest, fact: Fact) -> None:
        if fact.media_type in MEDIA_TYPES:
            await self._registry.manifest(repository, digest)
            return
        blob = await self._registry.blob(repository, digest)
        async with aclosing(blob):
            async for _ in blob.chunks(0, None):
                pass
