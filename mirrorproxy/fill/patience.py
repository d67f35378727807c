"""How long a download that met trouble is tried again, and when. Pure; time comes in."""

import random

from mirrorproxy.errors import NotFound, TimedOut, UpstreamError

_LONGEST_PAUSE = 10.0  # seconds between two tries, where upstream asks for no more
_DENIALS = 3
_DENIED_FOR = 30.0  # seconds: a storage that lags behind, or was purged, has it again by then; else it was deleted


class Patience:
    """Of one download, which began at `now`: `budget` seconds without a new byte are too many.

    "Not found" after bytes of it came is trouble like any other at first. Said three times in a row, and over half a
    minute, it is believed: the blob was deleted.
    """

    def __init__(self, budget: float, now: float) -> None:
        self._budget = budget
        self._progress = now
        self._failures = 0
        self._denials = 0
        self._denied = 0.0  # when the first of them was heard

    def pause(self, error: UpstreamError | NotFound, progress: float, now: float) -> float:
        """Seconds until the next try; `progress` is when the last new byte came, 0 for never.

        At once after progress, then longer and longer, never sooner than upstream asks. Raises the error, or `TimedOut`
        with its words, where there is to be no other try.
        """
        if progress > self._progress:
            self._progress, self._failures, self._denials = progress, 0, 0
        else:
            self._failures += 1
        left = self._progress + self._budget - now
        if isinstance(error, NotFound):
            self._denied = self._denied if self._denials else now
            self._denials += 1
            if left <= 0 or (self._denials >= _DENIALS and now - self._denied >= _DENIED_FOR):
                raise error
            asked = 0.0
        else:
            self._denials = 0
            if left <= 0:
                raise TimedOut(f"no new byte of it in {self._budget:.0f} s; last: {error}") from error
            asked = error.retry_after or 0.0
        backoff = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, 0.1 * 2.0 ** min(self._failures, 10))  # noqa: S311  # jitter, no secret
        return min(left, max(backoff, asked))
