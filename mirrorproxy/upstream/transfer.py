"""The body of a blob on its way from an endpoint."""

from collections.abc import AsyncIterator, Callable

from mirrorproxy.errors import BadAnswer, UpstreamError
from mirrorproxy.names import Digest
from mirrorproxy.registry import MISS, Outcome
from mirrorproxy.spans import Span
from mirrorproxy.upstream.answers import Answer


class BodyTransfer:
    """A `Transfer`: the bytes of one answer, read once, from `first` on.

    `span` is what the answer said that it holds, None where its end is not known; `size` is the whole blob's. `count`
    is told the size of every bunch of bytes that came, `report` what broke.
    """

    def __init__(
        self,
        digest: Digest,
        answer: Answer,
        span: Span | None,
        size: int | None,
        outcome: Outcome = MISS,
        *,
        count: Callable[[int], None],
        report: Callable[[UpstreamError], None],
    ) -> None:
        self.digest = digest
        self.size = size
        self.outcome = outcome
        self.first = 0 if span is None else span.start
        self._last = None if span is None else span.end
        self._answer = answer
        self._count = count
        self._report = report
        self._at = self.first  # the offset of the next byte
        self._rest = b""  # what came together with bytes that were asked for, and was not asked for yet

    def __repr__(self) -> str:
        return f"<BodyTransfer {self.digest.hex[:12]} {self._at}..{self._last} from {self._answer.host}>"

    async def chunks(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """The bytes from `start` (none before what was read already) up to `end`, as they come.

        Raises `TimedOut` on a stall, `Unreachable` where the connection broke, and `BadAnswer` where there are fewer
        bytes than the answer said, or more.
        """
        if start < self._at:
            raise ValueError(f"the bytes from {start} on were read already: this is at {self._at}")
        stop = min((bound for bound in (end, self._last) if bound is not None), default=None)
        while stop is None or self._at < stop:
            data = self._rest or await self._next()
            if not data:
                if stop is None:
                    return
                raise self._broken(BadAnswer(f"{self._answer.host} ended a blob at {self._at} instead of {stop}"))
            taken = len(data) if stop is None else min(len(data), stop - self._at)
            wanted = data[max(0, start - self._at) : taken]
            self._at, self._rest = self._at + taken, data[taken:]
            if wanted:
                yield wanted
        if self._at == self._last != self.first and (self._rest or await self._next()):
            raise self._broken(BadAnswer(f"{self._answer.host} sent more bytes of a blob than it said"))

    async def _next(self) -> bytes:
        try:
            data = await self._answer.chunk()
        except UpstreamError as error:
            raise self._broken(error) from None
        self._count(len(data))
        return data

    def _broken(self, error: UpstreamError) -> UpstreamError:
        self._report(error)
        return error

    def blame(self, error: UpstreamError) -> None:
        """Say that what came was wrong: the endpoint is asked last for a while."""
        self._report(error)

    async def aclose(self) -> None:
        """Let go of the connection: for the next request where all was read, else for good."""
        self._answer.close()
