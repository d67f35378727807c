"""Content that was taken away because it was wrong is asked for again, as a client would ask for it."""

import asyncio
import enum
import logging
from contextlib import aclosing, suppress

from mirrorproxy.errors import CacheFailed, MirrorproxyError, NotFound
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Registry
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.records import Fact

log = logging.getLogger(__name__)

_ASKED = 5  # repositories; a base layer may be known in thousands of them, and the first is as good as any


_KEPT_WITHIN = 10.0  # seconds from the last byte, in which it is flushed and gets its name
_LOOK_EVERY = 0.02


class Fate(enum.StrEnum):
    """What became of it: here again, or why not."""

    REFETCHED = "refetched"
    GONE = "gone upstream"
    WITHHELD = "upstream does not give it now"
    NOT_KEPT = "refetched and not kept"
    NOBODYS = "nobody is known to have it"


class Refetch:
    """Fetches through `registry`, in the name of a repository that the index knows to have the content."""

    def __init__(self, index: Index, registry: Registry, blobs: BlobStore) -> None:
        self._index = index
        self._registry = registry
        self._blobs = blobs

    async def __call__(self, digest: Digest) -> Fate:
        """Ask those that are known to have it, one after the other."""
        try:
            owners = await asyncio.to_thread(self._owners, digest)
        except CacheFailed as error:
            log.warning("%s is not fetched again before a client asks for it: %s", digest, error)
            return Fate.NOBODYS
        fate = Fate.GONE if owners else Fate.NOBODYS
        for repository, fact in owners:
            try:
                await self._fetch(repository, digest, fact)
            except MirrorproxyError as error:
                log.info("%s cannot be had from %s: %s", digest, repository, error)
                if not isinstance(error, NotFound):
                    fate = Fate.WITHHELD
            else:
                log.info("%s was fetched again from %s", digest, repository)
                return Fate.REFETCHED if await self._is_kept(digest) else Fate.NOT_KEPT
        return fate

    async def _is_kept(self, digest: Digest) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(_KEPT_WITHIN):
                while await asyncio.to_thread(self._blobs.missing, [digest]):  # noqa: ASYNC110 - no event: the disk tells nobody
                    await asyncio.sleep(_LOOK_EVERY)
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
