"""What was used last, found without a thread: bounded by a number, or by what it weighs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

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
