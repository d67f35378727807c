"""The memory of every "no"."""

import copy
from collections.abc import Callable, Hashable

from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.store.memory import Recent


class Negatives:
    """The errors that are believed for a while: "not there", "not for you"."""

    def __init__(self, ttl: float, clock: Callable[[], float], limit: int = 2048) -> None:
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
