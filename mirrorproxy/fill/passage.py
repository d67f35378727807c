"""A blob passed through without being kept: what happens where the disk can take no more."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from mirrorproxy.errors import BadAnswer, DigestMismatch, UpstreamError
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Outcome, Result, Source, Transfer

if TYPE_CHECKING:
    from hashlib import _Hash

HELD = 64 << 10
"""Bytes at the end of a blob that wait for the digest."""


class Passage:
    """A blob of a source that is read through and not kept: a `Blob` for one reader.

    `hasher` has seen the first `hashed` bytes. The end of the blob is held back until the digest is known to be right.
    A range that begins where no hash reaches cannot be checked here: its bytes go as they come, and its reader checks.
    """

    first = 0
    outcome = Outcome(Result.BYPASS)

    def __init__(
        self,
        source: Source,
        repository: Repository,
        digest: Digest,
        size: int | None,
        *,
        hasher: "_Hash | None" = None,
        hashed: int = 0,
    ) -> None:
        self.digest = digest
        self.size = size
        self._source = source
        self._repository = repository
        self._hash = hasher or digest.hasher()
        self._hashed = hashed
        self._transfer: Transfer | None = None

    async def open(self, start: int = 0) -> "Passage":
        """Ask the source now, so that its "no" comes before any byte. Raises what the source raises."""
        self._transfer = await self._ask(start)
        return self

    async def aclose(self) -> None:
        """End the transfer."""
        if self._transfer is not None:
            await self._transfer.aclose()
            self._transfer = None

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """See `Blob.chunks`."""
        checked = self._hashed > 0 or start == 0
        position = min(start, self._hashed) if checked else start
        held = b""
        async with aclosing(self._unbroken(position)) as chunks:
            async for chunk in chunks:
                if checked and position + len(chunk) > self._hashed:
                    self._hash.update(chunk[max(0, self._hashed - position) :])
                    self._hashed = position + len(chunk)
                held += chunk[max(0, start - position) : None if end is None else max(0, end - position)]
                position += len(chunk)
                free = not checked or (end is not None and self.size is not None and end <= self.size - HELD)
                ready = len(held) if free else max(0, len(held) - HELD)
                if ready:
                    yield held[:ready]
                    held = held[ready:]
                if free and end is not None and position >= end:
                    return
        if checked and self._hash.hexdigest() != self.digest.hex:
            raise DigestMismatch(f"the bytes that upstream sent are not {self.digest}")
        if held:
            yield held

    async def _unbroken(self, position: int) -> AsyncGenerator[bytes, None]:
        """All bytes from `position` on; a transfer that breaks is continued as long as each brings some."""
        while True:
            began = position
            try:
                if self._transfer is None or self._transfer.first > position:
                    await self.aclose()
                    self._transfer = await self._ask(position)
                offset = self._transfer.first
                async for chunk in self._transfer.chunks(offset, None):
                    new = chunk[max(0, position - offset) :]
                    offset += len(chunk)
                    position += len(new)
                    if new:
                        yield new
                return
            except UpstreamError:
                if position == began:
                    raise
            finally:
                await self.aclose()

    async def _ask(self, position: int) -> Transfer:
        transfer = await self._source.blob(self._repository, self.digest, position)
        if transfer.size is not None and self.size is not None and transfer.size != self.size:
            error = BadAnswer(f"upstream speaks of {transfer.size} bytes where the manifest says {self.size}")
            transfer.blame(error)
            await transfer.aclose()
            raise error
        self.size = transfer.size if self.size is None else self.size
        return transfer
