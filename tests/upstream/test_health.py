"""How long an endpoint that failed is asked last, and when it is not asked at all."""

import pytest

from mirrorproxy.errors import BadAnswer, RateLimited, ServerFailed, TimedOut, Unauthorized, Unreachable, UpstreamError
from mirrorproxy.upstream.health import LONGEST_EMBARGO, Health


@pytest.mark.parametrize("error", [Unreachable("x"), TimedOut("x"), BadAnswer("x"), ServerFailed("x")])
def test_a_failure_puts_it_last_for_a_while(error: UpstreamError) -> None:
    """Two seconds the first time."""
    health = Health()
    assert health.up
    assert health.admits(100.0)
    health.failed("blob", error, 100.0)
    assert not health.up
    assert not health.admits(101.9)
    assert health.admits(102.0)


@pytest.mark.parametrize("error", [Unauthorized("x"), RateLimited("x")])
def test_a_refusal_is_an_answer(error: UpstreamError) -> None:
    """It works, it only does not want to."""
    health = Health()
    health.failed("blob", error, 100.0)
    assert health.up
    assert health.admits(100.0)


def test_cool_downs_grow_to_a_minute() -> None:
    """Doubled with each failure of the one request that tries it."""
    health, now, waits = Health(), 100.0, []
    health.failed("blob", Unreachable("x"), now)
    for _ in range(8):
        began = now
        while not health.admits(now):
            now += 0.5
        waits.append(now - began)
        health.failed("blob", Unreachable("x"), now)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]


def test_one_request_tries_it_after_a_cool_down() -> None:
    """The others keep to the endpoints that work, until that one knows."""
    health = Health()
    health.failed("blob", Unreachable("x"), 100.0)
    assert health.admits(102.0)
    assert not health.admits(102.0)
    assert not health.admits(111.9)
    assert health.admits(112.0)  # that one never came back
    health.answered()
    assert health.up
    assert all(health.admits(112.0) for _ in range(3))


def test_many_failures_at_once_are_one() -> None:
    """Fifty requests that were under way when it went down do not keep it out for a minute."""
    health = Health()
    for _ in range(50):
        health.failed("blob", Unreachable("x"), 100.0)
    assert health.admits(102.0)


def test_who_sends_wrong_bytes_is_put_last_for_long() -> None:
    """A minute at once."""
    health = Health()
    health.blamed(100.0)
    assert not health.admits(159.9)
    assert health.admits(160.0)


def test_an_embargo_is_for_one_kind_of_thing() -> None:
    """Docker Hub's limit counts manifests: blobs of what is being pulled go on."""
    health = Health()
    health.failed("manifest", RateLimited("x", retry_after=30.0), 100.0)
    embargo = health.embargo("manifest", 110.0)
    assert isinstance(embargo, RateLimited)
    assert embargo.retry_after == 20.0
    assert health.embargo("blob", 110.0) is None
    assert health.embargo("manifest", 130.0) is None


def test_an_embargo_is_bounded() -> None:
    """A Retry-After of a day is a mistake somewhere."""
    health = Health()
    health.failed("manifest", ServerFailed("x", retry_after=86_400.0), 100.0)
    assert health.embargo("manifest", 100.0 + LONGEST_EMBARGO - 1) is not None
    assert health.embargo("manifest", 100.0 + LONGEST_EMBARGO) is None
