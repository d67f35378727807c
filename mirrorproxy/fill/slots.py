"""So many downloads at a time in all, so many from one upstream; what a client waits for comes first."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiting:
    upstream: str
    urgent: Callable[[], bool]
    turn: asyncio.Future[None]


class Slots:
    """Turns, in the order in which they were asked for, the urgent ones first.

    `limit` in all, `each(upstream)` of one: who waits for a busy upstream does not keep back the others. Both may
    change while some are in or wait; what is urgent is asked anew each time a turn is free.
    """

    def __init__(self, limit: int, each: Callable[[str], int]) -> None:
        self._limit = limit
        self._each = each
        self._taken: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    @property
    def limit(self) -> int:
        """How many may be in."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self.admit()

    @asynccontextmanager
    async def turn(self, upstream: str, urgent: Callable[[], bool]) -> AsyncIterator[None]:
        """Wait for a turn; it lasts as long as the `async with`."""
        waiting = _Waiting(upstream, urgent, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.admit()
        try:
            await waiting.turn
            yield
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)  # cancelled before its turn
            else:
                self._taken[upstream] -= 1
                self.admit()

    def admit(self) -> None:
        """Let in who may come in now."""
        while self._taken.total() < self._limit and (chosen := self._next()) is not None:
            self._waiting.remove(chosen)
            self._taken[chosen.upstream] += 1
            if not chosen.turn.done():  # else it was cancelled in this moment, and gives its turn back
                chosen.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        possible = [each for each in self._waiting if self._taken[each.upstream] < self._each(each.upstream)]
        return next((each for each in possible if each.urgent()), possible[0] if possible else None)
