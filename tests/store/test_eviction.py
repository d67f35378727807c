"""What goes first."""

from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.names import Digest
from mirrorproxy.store.eviction import Candidate, Oldest, plan

DIGESTS = [Digest.of(b"%d" % number) for number in range(12)]
ROWS = st.lists(
    st.builds(Candidate, st.sampled_from(DIGESTS), st.integers(0, 100), st.integers(0, 5).map(float)),
    unique_by=lambda row: row.digest,
)


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    """In the order in which they were used."""
    rows = [Candidate(DIGESTS[0], 10, 3.0), Candidate(DIGESTS[1], 10, 1.0), Candidate(DIGESTS[2], 10, 2.0)]
    assert plan(rows, 0) == []
    assert plan(rows, 1) == [DIGESTS[1]]
    assert plan(rows, 10) == [DIGESTS[1]]
    assert plan(rows, 11) == [DIGESTS[1], DIGESTS[2]]
    assert plan(rows, 1000) == [DIGESTS[1], DIGESTS[2], DIGESTS[0]]
    assert plan(rows, 11, {DIGESTS[2]}) == [DIGESTS[1], DIGESTS[0]]
    assert plan([], 5) == []


@given(rows=ROWS, needed=st.integers(-10, 600), protected=st.sets(st.sampled_from(DIGESTS)))
def test_is_the_shortest_beginning_that_suffices(rows: list[Candidate], needed: int, protected: set[Digest]) -> None:
    """As sorting all of them would find it, whatever order they come in."""
    found = plan(rows, needed, protected)
    by_digest = {row.digest: row for row in rows}
    free = [row for row in rows if row.digest not in protected]
    chosen = [by_digest[digest] for digest in found]
    rest = [row for row in free if row not in chosen]
    assert not protected.intersection(found)
    assert [row.last_use for row in chosen] == sorted(row.last_use for row in chosen)
    assert not chosen or not rest or chosen[-1].last_use <= min(row.last_use for row in rest)
    total = sum(row.size for row in chosen)
    assert total >= needed or not rest
    assert not chosen or total - chosen[-1].size < needed


def test_holds_no_more_than_the_answer() -> None:
    """A million rows need no memory."""
    oldest = Oldest(needed=50)
    for number in range(10_000):
        oldest.add(Candidate(Digest.of(b"%d" % number), 10, float(10_000 - number)))
        assert len(oldest._newest_first) <= 6
    assert len(oldest.candidates()) == 5
