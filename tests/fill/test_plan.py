"""What to fetch next, and over how many connections."""

from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.fill.pace import Pace
from mirrorproxy.fill.plan import Claim, next_span, starving, steal, superfluous
from mirrorproxy.spans import Span, Spans

MIB = 1 << 20


def test_without_readers_the_front_comes_first() -> None:
    """The first missing byte, and no more than the length that was asked for."""
    assert next_span(Spans([(0, 10)]), [], [], 100, 30) == Span(10, 40)


def test_what_is_on_its_way_is_not_asked_for_again() -> None:
    """The next part begins behind the claims."""
    assert next_span(Spans([(0, 10)]), [Claim(10, 50)], [0], 100, 30) == Span(50, 80)


def test_a_reader_far_ahead_is_served_there() -> None:
    """Its bytes are not on their way: they come before what follows the front."""
    assert next_span(Spans(), [Claim(0, 40)], [0, 70], 100, 30) == Span(70, 100)


def test_the_foremost_of_those_who_starve_comes_first() -> None:
    """Of several far ahead."""
    assert next_span(Spans(), [Claim(0, 10)], [80, 40, 0], 100, 15) == Span(40, 55)


def test_when_readers_have_what_they_want_the_rest_is_fetched() -> None:
    """The gaps before them too."""
    assert next_span(Spans([(50, 100)]), [], [60], 100, 30) == Span(0, 30)


def test_nothing_is_left() -> None:
    """All is here or on its way."""
    assert next_span(Spans([(0, 50)]), [Claim(50, 100)], [0], 100, 30) is None


def test_a_part_ends_where_the_next_reader_waits() -> None:
    """Each of those who wait far from each other gets a request of its own, none of which is cut short."""
    assert next_span(Spans(), [Claim(0, MIB)], [0, MIB, 3 * MIB, 9 * MIB], 20 * MIB, 16 * MIB) == Span(MIB, 3 * MIB)
    assert next_span(Spans(), [], [0, 1000], 20 * MIB, 16 * MIB) == Span(0, 16 * MIB), "but no crumbs"


def test_work_is_stolen_from_the_slowest() -> None:
    """The second half of what would take longest."""
    fast, slow = Claim(0, 40 * MIB, rate=10 * MIB), Claim(40 * MIB, 60 * MIB, rate=MIB)
    assert steal([fast, slow], 1.0) == (slow, Span(50 * MIB, 60 * MIB))


def test_too_little_is_not_worth_a_request() -> None:
    """The end of a download is not cut into ever smaller pieces."""
    assert steal([Claim(0, MIB, rate=MIB)], 1.0) is None
    assert steal([], 1.0) is None


def test_starving_is_who_waits_for_what_will_not_come_soon() -> None:
    """Bytes that are here, or will be within the time, are enough."""
    claims = [Claim(10, 1000, rate=10)]
    assert starving(Spans([(0, 10)]), claims, [5, 12], 1000, 1.0) is None
    assert starving(Spans([(0, 10)]), claims, [700, 500], 1000, 1.0) == 500
    assert starving(Spans(), [], [0], 1000, 1.0) == 0
    assert starving(Spans(), claims, [1000], 1000, 1.0) is None


def test_who_goes_where_there_is_one_too_many() -> None:
    """The farthest, but for those that bring what a reader waits for, however far ahead that is."""
    front, reader, trial = Claim(5, 20), Claim(70, 90), Claim(20, 40)
    assert superfluous(Spans([(0, 5), (60, 70)]), [front, reader, trial], [3, 62]) is trial
    assert superfluous(Spans([(0, 5), (60, 70)]), [front, reader, trial], [3]) is reader
    assert superfluous(Spans([(0, 5), (60, 70)]), [front, reader], [3, 62]) is reader


@given(
    held=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), max_size=5),
    claimed=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), max_size=3),
    wanted=st.lists(st.integers(0, 120), max_size=4),
    length=st.integers(1, 50),
)
def test_a_plan_is_never_over_what_is_taken(
    held: list[tuple[int, int]], claimed: list[tuple[int, int]], wanted: list[int], length: int
) -> None:
    """Whatever is asked: inside the blob, disjoint from what is here or on its way, and something while any is left."""
    total = 100
    spans = Spans((start, min(total, start + size)) for start, size in held)
    claims = [Claim(start, min(total, start + size)) for start, size in claimed]
    taken = {byte for span in spans for byte in range(*span)} | {
        byte for claim in claims for byte in range(claim.at, claim.end)
    }
    span = next_span(spans, claims, wanted, total, length)
    if span is None:
        assert taken == set(range(total))
    else:
        assert 0 < span.size <= length
        assert span.end <= total
        assert taken.isdisjoint(range(*span))


def run(pace: Pace, rate_of: list[float], seconds: float, size: float = 1e12) -> list[int]:
    """Let `pace` decide every 0.1 s over a line on which n connections together bring `rate_of[n]` bytes a second."""
    history, now = [], 0.0
    while now < seconds:
        pace.arrived(int(rate_of[pace.wanted] * 0.1))
        now += 0.1
        pace.look(now, pace.wanted, int(size))
        history.append(pace.wanted)
    return history


def test_a_throttle_for_each_connection_is_beaten_by_all_that_are_allowed() -> None:
    """The first decision falls within half a second, all connections are there soon after."""
    history = run(Pace(4), [0, 4e6, 8e6, 12e6, 16e6], 5)
    assert history[4] == 2
    assert history[-1] == 4
    assert history.index(4) <= 20


def test_on_a_line_that_is_full_one_more_is_given_up() -> None:
    """It brought nothing: back to one, for good."""
    history = run(Pace(4), [0, 10e6, 10e6, 10e6, 10e6], 5)
    assert max(history) == 2
    assert history[-1] == 1


def test_no_more_than_is_worth_it() -> None:
    """Three bring what two do: two stay."""
    assert run(Pace(4), [0, 4e6, 8e6, 8.2e6, 8.4e6], 5)[-1] == 2


def test_the_end_of_a_download_gets_no_connection_more() -> None:
    """It would come too late."""
    assert set(run(Pace(4), [0, 4e6, 8e6, 12e6, 16e6], 5, size=1e6)) == {1}


def test_a_reader_far_ahead_ends_no_search() -> None:
    """Its connection comes at once; from there one more is tried as long as that pays."""
    pace = Pace(4)
    pace.allow()
    assert pace.wanted == 2
    history = run(pace, [0, 4e6, 8e6, 12e6, 16e6], 5)
    assert history[-1] == 4
    assert history.index(4) <= 20


def test_what_readers_far_ahead_have_stays() -> None:
    """On a line that is full a third one is tried and given up; the reader's own is not, now or later."""
    pace = Pace(4)
    pace.allow()
    history = run(pace, [0, 10e6, 10e6, 10e6, 10e6], 5)
    assert max(history) == 3
    assert history[-1] == 2
    assert not pace.spreads
    pace.allow()
    assert run(pace, [0, 10e6, 10e6, 10e6, 10e6], 5)[-1] == 3


def test_one_means_one() -> None:
    """`connections: 1`, an upstream that ignores ranges, one that said 429."""
    assert max(run(Pace(1), [0, 4e6, 8e6], 2)) == 1
    pace = Pace(4)
    run(pace, [0, 4e6, 8e6, 12e6, 16e6], 5)
    pace.cap(1)
    pace.allow()
    assert run(pace, [0, 4e6, 8e6, 12e6, 16e6], 5)[-1] == 1
