"""How long a download is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.errors import BlobUnknown, RateLimited, ServerFailed, TimedOut, Unreachable
from mirrorproxy.fill.patience import Patience

NO = BlobUnknown("no such blob")


@given(
    steps=st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=60),
    budget=st.integers(1, 1000),
)
def test_it_ends_when_nothing_came_for_the_budget_and_no_sooner(
    steps: list[tuple[int, bool, bool]], budget: int
) -> None:
    """Whatever trouble comes; no pause is longer than what is left, or than 10 s; "not found" may end it sooner."""
    now = last = 100
    patience = Patience(budget, now)
    denials: list[int] = []
    for passed, came, denied in steps:
        now += passed
        if came:
            last, denials = now, []
        denials = [*denials, now] if denied else []
        try:
            pause = patience.pause(NO if denied else Unreachable("gone"), last if came else 0.0, now)
        except TimedOut:
            assert now - last >= budget
            assert not denied
            return
        except BlobUnknown:
            assert now - last >= budget or (len(denials) >= 3 and now - denials[0] >= 30)
            return
        assert now - last < budget
        assert 0 <= pause <= min(10, last + budget - now)
        assert not (len(denials) >= 3 and now - denials[0] >= 30)


def test_at_once_after_progress_then_longer_and_longer() -> None:
    """The first try comes within a tenth of a second, and again after each new byte."""
    patience = Patience(600, 0)
    assert patience.pause(Unreachable("gone"), 1, 1) <= 0.1
    pauses = [patience.pause(Unreachable("gone"), 1, 2 + number) for number in range(10)]
    assert pauses[-1] >= 5
    assert pauses[-1] > pauses[3] > pauses[0]
    assert patience.pause(Unreachable("gone"), 50, 51) <= 0.1


def test_never_sooner_than_upstream_asks() -> None:
    """Nor later than the budget allows."""
    patience = Patience(60, 0)
    assert patience.pause(RateLimited("slow down", retry_after=40), 1, 1) == 40
    assert patience.pause(ServerFailed("later", retry_after=40), 1, 41) == 20


def test_a_denial_is_believed_when_it_lasts() -> None:
    """Three times in a row, over half a minute; another error or a new byte begins the count again."""
    patience = Patience(600, 0)
    for now in (1, 11, 21):
        patience.pause(NO, 0.5, now)
    patience.pause(Unreachable("gone"), 0.5, 25)
    for now in (31, 59):
        patience.pause(NO, 0.5, now)
    patience.pause(NO, 60, 62)
    for now in (63, 91):
        patience.pause(NO, 60, now)
    with pytest.raises(BlobUnknown):
        patience.pause(NO, 60, 92)
