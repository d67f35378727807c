"""When to ask again: pure decisions over the errors of the contract.

Asked again is what may be different in a moment: no connection, no answer in time, 500, 502, 503, 504 and their like,
408, and 429 where it says itself how soon. Not asked again: what was answered (404, 401, wrong bytes), which another
endpoint may do better, or nobody.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mirrorproxy.errors import MirrorproxyError, RateLimited, ServerFailed, TimedOut, Unreachable

ATTEMPTS = 3
"""How often a request is sent at most, the first time included."""

PATIENCE = 15.0
"""Seconds after which nothing is asked again: half of what containerd waits for an answer's headers."""

PASSING = (Unreachable, TimedOut, ServerFailed, RateLimited)
"""What may be different in a moment."""

_FIRST_DELAY = 0.25  # seconds, doubled each time; the actual delay is anything up to that ("full jitter")
_LONGEST_WAIT = 5.0  # seconds of a Retry-After that are waited for; a longer one is the client's to know
_DAY = 86_400.0


def verdict(
    attempt: int, error: MirrorproxyError, *, chance: Callable[[float, float], float] = random.uniform
) -> float | None:
    """Seconds to wait before another try, or None for no other. `attempt` counts the tries made, from 1.

    Exponential backoff with full jitter, so that many who failed together do not come back together; never sooner than
    the `retry_after` of the error.
    """
    if attempt >= ATTEMPTS or not isinstance(error, PASSING):
        return None
    asked = error.retry_after
    if (asked is None and isinstance(error, RateLimited)) or (asked is not None and asked > _LONGEST_WAIT):
        return None
    return max(asked or 0.0, chance(0.0, _FIRST_DELAY * 2.0 ** (attempt - 1)))


def parse_retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a `Retry-After` header asks to wait (RFC 9110, 10.2.3), or None where it does not parse.

    Both forms: a number of seconds, and a date, which is seen from `now` (aware; default: the clock). A day at most.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _DAY)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max(0.0, (when - (now or datetime.now(UTC))).total_seconds()), _DAY)
