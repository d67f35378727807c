"""The core's end of the line to one worker: answers what it asks, and holds open what it reads."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, cast

from mirrorproxy import tracing
from mirrorproxy.cache.shelf import StoredBlob
from mirrorproxy.errors import CacheFailed, MirrorproxyError
from mirrorproxy.fill.reader import Reader
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Blob, FileBlob, Registry
from mirrorproxy.tasks import within
from mirrorproxy.web.probes import Pages
from mirrorproxy.web.v2 import Catalog
from mirrorproxy.workers.line import Answer
from mirrorproxy.workers.words import Arguments, Opened, Progress

_SENT = 256 << 10  # bytes of a blob in one frame
_WORTH_IT = 1 << 20  # bytes of progress to tell of; for less it takes
_BREATH = 0.002  # seconds: at 1 Gbit/s, 500 answers a second in place of 2,000
_FIRST = 0.003  # seconds that headers wait for the first bytes, mostly less than 1 behind: a question more costs 2 to 3


class _Open:
    """A blob that a worker reads."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.chunks: AsyncIterator[bytes] | None = None
        self.rest = b""

    async def aclose(self) -> None:
        if isinstance(self.chunks, AsyncGenerator):
            with contextlib.suppress(RuntimeError):  # it is being read in this moment, by what is cancelled already
                await self.chunks.aclose()
        await self.blob.aclose()


class Hub:
    """What one worker may ask for. `aclose` when it is gone."""

    def __init__(self, registry: Registry, catalog: Catalog, pages: Pages) -> None:
        self._registry = registry
        self._blobs: dict[int, _Open] = {}
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "resolve": lambda repository, reference, fresh: registry.resolve(repository, reference, fresh=fresh),
            "manifest": lambda repository, reference, fresh: registry.manifest(repository, reference, fresh=fresh),
            "stat": registry.stat,
            "tags": registry.tags,
            "referrers": registry.referrers,
            "catalog": catalog.catalog,
            "live": pages.live,
            "ready": lambda verbose: pages.ready(verbose=verbose),
            "metrics": pages.metrics,
        }

    def __len__(self) -> int:
        """How many blobs are open."""
        return len(self._blobs)

    async def answer(self, name: str, arguments: Arguments) -> Answer:
        """See `Line`. The last argument is what has a trace go on."""
        *given, carried = arguments
        with tracing.going_on(carried):
            if name == "blob":
                return await self._open(*given)
            if name == "wait":
                return await self._wait(*given)
            if name == "chunk":
                return Answer(await self._chunk(*given))
            return Answer(await self._calls[name](*given))

    async def close(self, number: int) -> None:
        """The worker reads this blob no more."""
        if (opened := self._blobs.pop(number, None)) is not None:
            await opened.aclose()

    async def aclose(self) -> None:
        """Close all that it read."""
        for number in list(self._blobs):
            await self.close(number)

    async def _open(self, number: int, repository: Repository, digest: Digest, start: int, end: int | None) -> Answer:
        blob = await self._registry.blob(repository, digest, start, end)
        self._blobs[number] = _Open(blob)
        if isinstance(blob, StoredBlob):
            return Answer(Opened(blob.size, blob.first, blob.outcome), blob.fd)
        if not isinstance(blob, Reader):
            return Answer(Opened(blob.size, blob.first, blob.outcome))
        with contextlib.suppress(TimeoutError, MirrorproxyError):  # who waits for bytes gets the error
            await within(_FIRST, blob.wait(start))
        ready = blob.ready(start)
        opened = Opened(blob.size, blob.first, blob.outcome, blob.download, ready)
        return Answer(opened, blob.fd if ready > start else None)

    async def _wait(self, number: int, start: int, has_file: bool) -> Answer:
        blob = cast("FileBlob", self._found(number).blob)
        await blob.wait(start)
        if start and blob.ready(start) - start < _WORTH_IT:  # the first bytes go at once
            await asyncio.sleep(_BREATH)
        return Answer(Progress(blob.ready(start), blob.size), None if has_file or blob.fd < 0 else blob.fd)

    async def _chunk(self, number: int, start: int, end: int | None) -> bytes:
        """The next bytes of a blob, those from `start` on; none: it is over."""
        opened = self._found(number)
        if opened.chunks is None:
            opened.chunks = opened.blob.chunks(start, end)
        if not opened.rest:
            opened.rest = await anext(opened.chunks, b"")
        data, opened.rest = opened.rest[:_SENT], opened.rest[_SENT:]
        return data

    def _found(self, number: int) -> _Open:
        try:
            return self._blobs[number]
        except KeyError:
            raise CacheFailed("this blob was closed meanwhile") from None
