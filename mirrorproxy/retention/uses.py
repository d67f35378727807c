"""What was served, noted without waiting, and written to the index in batches."""

import asyncio
import logging
from collections.abc import Callable
from itertools import islice

from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Digest
from mirrorproxy.retention.account import Account
from mirrorproxy.retention.images import Images
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.queues import ContentQueues

log = logging.getLogger(__name__)

_BATCH = 500


class Uses:
    """The uses since the last write. A manifest's is one of all that it names."""

    def __init__(
        self, blobs: BlobStore, index: Index, images: Images, account: Account, clock: Callable[[], float]
    ) -> None:
        self.lost = False  # a write failed: what came meanwhile may be unknown to the index
        self._blobs = blobs
        self._index = index
        self._images = images
        self._account = account
        self._clock = clock
        self._uses: dict[Digest, float] = {}
        self._manifests: dict[Digest, float] = {}
        self._gone: set[Digest] = set()
        self._writing = asyncio.Lock()

    def note(self, digest: Digest, *, manifest: bool) -> None:
        """It was served now."""
        (self._manifests if manifest else self._uses)[digest] = self._clock()

    def note_gone(self, digest: Digest) -> None:
        """Its file was removed."""
        self._gone.add(digest)

    def is_gone(self, digest: Digest) -> bool:
        """Was its file removed, and does the index not know yet?"""
        return digest in self._gone

    async def noted(self) -> set[Digest]:
        """What was used since the last write."""
        manifests = set(self._manifests)
        return manifests | self._uses.keys() | await self._images.all_named(manifests)

    async def write(self) -> None:
        """Put all that was noted into the index. Raises `CacheFailed`."""
        async with self._writing:
            manifests, self._manifests = self._manifests, {}
            for digest, when in manifests.items():
                self._uses[digest] = when
                for named in await self._images.all_named([digest]):
                    self._uses[named] = max(when, self._uses.get(named, when))
            try:
                if gone := tuple(self._gone):
                    await self._index.content(ContentQueues.forget, gone)
                    self._gone.difference_update(gone)
                while self._uses:
                    batch = {digest: self._uses.pop(digest) for digest in list(islice(self._uses, _BATCH))}
                    unknown = await self._index.content(ContentQueues.touch, batch)
                    if unknown:
                        here = await asyncio.to_thread(lambda: list(self._blobs.stat(unknown)))  # noqa: B023 - awaited
                        await self._account.enter(each._replace(modified=batch[each.digest]) for each in here)
            except CacheFailed:
                self.lost = True
                raise
