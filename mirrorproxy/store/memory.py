"""The rows that were used last, found without a thread."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Memory(Generic[K, T]):
    """The values used last, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[K, T] = OrderedDict()

    def get(self, key: K) -> T | None:
        """The value, which is now the last used one."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: T) -> None:
        """Remember; the one that was not used for longest goes to make room."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)

    def forget(self, key: K) -> None:
        """Forget."""
        self._values.pop(key, None)
