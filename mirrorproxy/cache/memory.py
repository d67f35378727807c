"""Small bounded memories: of what was last used, and of every "no"."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mirrorproxy.errors import MirrorproxyError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was used last, up to `limit` in all; `weight` says how much one value counts."""

    def __init__(self, limit: int, weight: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weight = weight
        self._values: OrderedDict[K, V] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        """The value, which is now the last used one."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember; the least recently used go to make room. What is over the limit alone is not kept."""
        self.drop(key)
        if (weight := self._weight(value)) > self._limit:
            return
        self._values[key] = value
        self._total += weight
        while self._total > self._limit:
            _, dropped = self._values.popitem(last=False)
            self._total -= self._weight(dropped)

    def drop(self, key: K) -> V | None:
        """Forget; what was there."""
        value = self._values.pop(key, None)
        if value is not None:
            self._total -= self._weight(value)
        return value

    def items(self) -> list[tuple[K, V]]:
        """All that is remembered, the least recently used first."""
        return list(self._values.items())

    def __len__(self) -> int:
        return len(self._values)


class Negatives:
    """The errors that are believed for a while: "not there", "not for you"."""

    def __init__(self, ttl: float, clock: Callable[[], float], limit: int = 4096) -> None:
        self._ttl = ttl
        self._clock = clock
        self._errors: Recent[Hashable, tuple[MirrorproxyError, float]] = Recent(limit)

    def check(self, key: Hashable) -> None:
        """Raise the error that is remembered for `key`, marked `negative`."""
        if (found := self._errors.get(key)) is None:
            return
        error, until = found
        if not self._clock() < until <= self._clock() + self._ttl:  # the clock may have been set back
            self._errors.drop(key)
            return
        error = copy.copy(error)
        error.negative = True
        raise error

    def remember(self, key: Hashable, error: MirrorproxyError) -> None:
        """Believe `error` for the time that was configured."""
        if self._ttl > 0:  # a copy: the traceback of a raised one keeps alive what it went through
            self._errors.put(key, (copy.copy(error), self._clock() + self._ttl))

    def forget(self, key: Hashable) -> None:
        """Believe it no more."""
        self._errors.drop(key)
