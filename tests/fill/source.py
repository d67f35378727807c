"""A source of blobs whose misbehaviour is scripted, answer by answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from mirrorproxy.errors import Unreachable, UpstreamError
from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import MISS


@dataclass
class Answer:
    """What one request gets. The default is what an honest upstream sends."""

    error: Exception | None = None  # instead of an answer
    cut: int | None = None  # bytes after which the connection breaks
    body: bytes | None = None  # instead of the blob's
    total: int | None = -1  # the size it speaks of; -1: the body's
    whole: bool = False  # 200 for a Range
    gate: asyncio.Event | None = None  # opened before the bytes after `cut`, or after the first chunk, come
    held: asyncio.Event | None = None  # opened before the answer's headers come


@dataclass
class ScriptedTransfer:
    """One answer on its way."""

    digest: Digest
    size: int | None
    first: int
    data: bytes
    answer: Answer
    chunk: int
    source: "ScriptedSource"
    outcome = MISS

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        assert start == self.first
        data = self.data if self.answer.cut is None else self.data[: self.answer.cut]
        for offset in range(0, len(data), self.chunk):
            if self.answer.gate is not None and offset:
                await self.answer.gate.wait()
            yield data[offset : offset + self.chunk]
            await asyncio.sleep(0)
        if self.answer.cut is not None:
            raise Unreachable("the connection broke")

    def blame(self, error: UpstreamError) -> None:
        self.source.blamed.append(str(error))

    async def aclose(self) -> None:
        self.source.closed += 1


@dataclass
class ScriptedSource:
    """Answers requests for `blob` by the script; honestly once that is used up. Counts what was asked."""

    blob_bytes: bytes
    script: list[Answer] = field(default_factory=list)
    chunk: int = 64 << 10
    asked: list[int] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    closed: int = 0
    otherwise: Callable[[], Answer] = Answer

    @property
    def digest(self) -> Digest:
        """The digest of the honest bytes."""
        return Digest.of(self.blob_bytes)

    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> ScriptedTransfer:
        """As `Registry.blob`."""
        self.asked.append(start)
        answer = self.script.pop(0) if self.script else self.otherwise()
        if answer.held is not None:
            await answer.held.wait()
        if answer.error is not None:
            raise answer.error
        body = self.blob_bytes if answer.body is None else answer.body
        first, last = (0, None) if answer.whole else (start, end)
        total = len(body) if answer.total == -1 else answer.total
        return ScriptedTransfer(digest, total, first, body[first:last], answer, self.chunk, self)
