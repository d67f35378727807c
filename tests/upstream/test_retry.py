"""When to ask again, and when not."""

from datetime import UTC, datetime

import pytest

from mirrorproxy.errors import (
    BadAnswer,
    BlobUnknown,
    Denied,
    DigestMismatch,
    MirrorproxyError,
    RateLimited,
    ServerFailed,
    TimedOut,
    Unauthorized,
    Unreachable,
)
from mirrorproxy.upstream.retry import ATTEMPTS, parse_retry_after, verdict

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def longest(_low: float, high: float) -> float:
    """The worst of all chances."""
    return high


@pytest.mark.parametrize("error", [Unreachable("x"), TimedOut("x"), ServerFailed("x")])
def test_what_may_pass_is_asked_again(error: MirrorproxyError) -> None:
    """After a delay that doubles, up to the last attempt."""
    delays = [verdict(attempt, error, chance=longest) for attempt in range(1, ATTEMPTS + 1)]
    assert delays == [0.25, 0.5, None]


@pytest.mark.parametrize(
    "error", [BadAnswer("x"), DigestMismatch("x"), Unauthorized("x"), BlobUnknown("x"), Denied("x"), RateLimited("x")]
)
def test_what_was_answered_is_not(error: MirrorproxyError) -> None:
    """Another try would get the same, or make it worse."""
    assert verdict(1, error) is None


def test_the_delay_is_a_matter_of_chance() -> None:
    """Full jitter: anything between nothing and the bound."""
    delays = {verdict(2, Unreachable("x")) for _ in range(50)}
    assert len(delays) == 50
    assert all(delay is not None and 0 <= delay <= 0.5 for delay in delays)


@pytest.mark.parametrize("kind", [RateLimited, ServerFailed])
def test_retry_after_is_obeyed_where_it_is_short(kind: type[RateLimited]) -> None:
    """Never sooner; a long one is left to the client."""
    assert verdict(1, kind("x", retry_after=2.0), chance=longest) == 2.0
    assert verdict(1, kind("x", retry_after=0.1), chance=longest) == 0.25
    assert verdict(1, kind("x", retry_after=5.1)) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 17 ", 17.0),
        ("99999999999999999999", 86_400.0),
        ("Tue, 24 Nov 2026 12:01:30 GMT", 90.0),
        ("Tuesday, 24-Nov-26 12:01:30 GMT", 90.0),
        ("Tue, 24 Nov 2026 13:01:30 +0100", 90.0),
        ("Tue, 24 Nov 2026 12:01:30 -0000", 90.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2099 12:00:00 GMT", 86_400.0),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Tue, 99 Nov 2026 12:00:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds and dates; a day at most."""
    assert parse_retry_after(header, NOW) == seconds


def test_retry_after_by_the_clock() -> None:
    """A date is seen from now where nothing else is said."""
    assert parse_retry_after("Tue, 24 Nov 1998 12:00:00 GMT") == 0.0
