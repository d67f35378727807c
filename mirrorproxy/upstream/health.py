"""How an endpoint is doing. Pure: time comes in as `now`, seconds of a clock that never goes back.

An endpoint that fails is asked last for a while (2 s, doubled with each failure after that, a minute at most). When
that is over, one request tries it; the others keep to the endpoints that work until that one has an answer. An
endpoint that says how long to leave it alone (`Retry-After` of 429 and 503) is not asked before, for that kind of
thing: Docker Hub's limit counts manifests, and says nothing of blobs.
"""

from mirrorproxy.errors import BadAnswer, RateLimited, ServerFailed, TimedOut, Unreachable, UpstreamError

_FIRST_COOL_DOWN = 2.0
_LONGEST_COOL_DOWN = 60.0
_TRIAL = 10.0  # how long one request may take to find out
_CLOCK = 0.01  # what a timer may be early
LONGEST_EMBARGO = 300.0
"""Seconds. Who asks for more is asked again all the same: a mistake there must not cut us off for a day."""


class Health:
    """What one endpoint's last answers say."""

    __slots__ = ("_cool_until", "_embargoes", "_failures", "_on_trial")

    def __init__(self) -> None:
        self._failures = 0
        self._cool_until = 0.0
        self._on_trial = False
        self._embargoes: dict[str, float] = {}

    @property
    def up(self) -> bool:
        """Was the last answer one?"""
        return not self._failures

    def answered(self) -> None:
        """It gave an answer, if only a no."""
        self._failures = 0
        self._on_trial = False

    def failed(self, kind: str, error: UpstreamError, now: float) -> None:
        """It did not. Failures during a cool-down are of requests sent before it, and do not lengthen it."""
        if error.retry_after is not None:
            self._embargoes[kind] = now + min(error.retry_after, LONGEST_EMBARGO)
        if not isinstance(error, Unreachable | TimedOut | BadAnswer | ServerFailed):
            self.answered()
        elif not self._failures or self._on_trial or now >= self._cool_until:
            self._failures += 1
            self._on_trial = False
            growth = 2.0 ** min(self._failures - 1, 10)
            self._cool_until = now + min(_FIRST_COOL_DOWN * growth, _LONGEST_COOL_DOWN)

    def blamed(self, now: float) -> None:
        """It sent wrong bytes: the longest cool-down at once."""
        self._failures += 1
        self._on_trial = False
        self._cool_until = now + _LONGEST_COOL_DOWN

    def admits(self, now: float) -> bool:
        """Should it be asked before endpoints that are cooling down? After a cool-down, once: a trial begins."""
        if not self._failures:
            return True
        if now < self._cool_until:
            return False
        self._cool_until = now + _TRIAL
        self._on_trial = True
        return True

    def embargo(self, kind: str, now: float) -> RateLimited | None:
        """Why it must not be asked for this kind of thing now, or None."""
        left = self._embargoes.get(kind, 0.0) - now
        if left <= _CLOCK:
            self._embargoes.pop(kind, None)
            return None
        return RateLimited(f"asked to be left alone for {left:.0f} s more", retry_after=left)
