"""So many downloads at a time in all, so many from one upstream; what a client waits for comes first."""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Turn:
    """A place in the queue, and then a turn, from `Slots.turn` on until `leave`. As an `async with` it waits for it."""

    def __init__(self, slots: "Slots", upstream: str, urgent: Callable[[], bool]) -> None:
        self.upstream = upstream
        self.urgent = urgent
        self.coming = asyncio.get_running_loop().create_future()
        self._slots = slots

    @property
    def waits(self) -> bool:
        """It is not its turn yet."""
        return not self.coming.done()

    def leave(self) -> None:
        """Its turn is over, or not wanted any more. A second time is without effect."""
        self._slots.forget(self)

    async def __aenter__(self) -> Self:
        try:
            await asyncio.shield(self.coming)
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class Slots:
    """Turns, in the order in which they were asked for, the urgent ones first.

    `limit` in all, `each(upstream)` of one: who waits for a busy upstream does not keep back the others. Both may
    change while some are in or wait; what is urgent is asked anew each time a turn is free.
    """

    def __init__(self, limit: int, each: Callable[[str], int]) -> None:
        self._limit = limit
        self._each = each
        self._taken: Counter[str] = Counter()
        self._waiting: list[Turn] = []
        self._in: set[Turn] = set()

    @property
    def limit(self) -> int:
        """How many may be in."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self.admit()

    def busy(self, upstream: str) -> bool:
        """Would who asks for a turn now have to wait?"""
        return len(self._in) >= self._limit or self._taken[upstream] >= self._each(upstream)

    def turn(self, upstream: str, urgent: Callable[[], bool]) -> Turn:
        """A place in the queue, taken now: at once a turn where one is free."""
        turn = Turn(self, upstream, urgent)
        self._waiting.append(turn)
        self.admit()
        return turn

    def forget(self, turn: Turn) -> None:
        """See `Turn.leave`."""
        if turn in self._in:
            self._in.remove(turn)
            self._taken[turn.upstream] -= 1
            self.admit()
        elif turn in self._waiting:
            self._waiting.remove(turn)

    def admit(self) -> None:
        """Let in who may come in now."""
        while len(self._in) < self._limit and (chosen := self._next()) is not None:
            self._waiting.remove(chosen)
            self._in.add(chosen)
            self._taken[chosen.upstream] += 1
            chosen.coming.set_result(None)

    def _next(self) -> Turn | None:
        possible = [turn for turn in self._waiting if self._taken[turn.upstream] < self._each(turn.upstream)]
        return next((turn for turn in possible if turn.urgent()), possible[0] if possible else None)
