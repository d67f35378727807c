"""What is on the disk, by the index: the queues of the eviction."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mirrorproxy.names import Digest
from mirrorproxy.store.eviction import MOST_USES, ONE_USE, Queue, choose, uses_now
from mirrorproxy.store.index import Index
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import Used
from mirrorproxy.store.rows import DATABASE, Rows, connect

DIGESTS = [Digest.of(b"%d" % number) for number in range(12)]
LONG = Digest("sha512:" + "ab" * 64)
SOME = st.lists(st.sampled_from(DIGESTS), unique=True, max_size=6)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    """A database."""
    found = connect(tmp_path)
    yield found
    found.close()


@pytest.fixture
def queues(rows: Rows) -> ContentQueues:
    """The queues in it."""
    return ContentQueues(rows)


def used(blocks: int, last: float = 1.0) -> Used:
    """One use."""
    return Used(last, blocks)


class Course(RuleBasedStateMachine):
    """Any course of events: nothing is lost, the sums are right, and what was used again outlives what was not."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.rows = connect(Path(self.folder.name))
        self.queues = ContentQueues(self.rows)
        self.here: dict[Digest, Used] = {}
        self.now = 0.0

    def teardown(self) -> None:
        """Close it."""
        self.rows.close()
        self.folder.cleanup()

    @rule(digests=SOME, size=st.integers(1, 100))
    def enter(self, digests: list[Digest], size: int) -> None:
        """Content comes; what is here already stays as it is."""
        new = [digest for digest in digests if digest not in self.here]
        counted = self.queues.enter({digest: Used(self.now, size) for digest in digests})
        assert counted == (size * len(new), len(new))
        self.here |= {digest: Used(self.now, size) for digest in new}

    @rule(digests=SOME, later=st.sampled_from([0.0, 1.0, ONE_USE, -ONE_USE]))
    def touch(self, digests: list[Digest], later: float) -> None:
        """Uses of what is here are put down, also where the clock goes back."""
        self.now = max(0.0, self.now + later)
        unknown = self.queues.touch(dict.fromkeys(digests, self.now))
        assert unknown == [digest for digest in digests if digest not in self.here]
        self.here |= {digest: self.here[digest]._replace(last=self.now) for digest in digests if digest in self.here}

    @rule(needed=st.integers(0, 300), limit=st.integers(1, 5), spared=SOME)
    def evict(self, needed: int, limit: int, spared: list[Digest]) -> None:
        """What is chosen is here, and no more than is needed; what must stay does."""
        chosen, more = self.queues.choose(needed, limit)
        assert len(chosen) <= limit
        assert sum(entry.blocks for entry in chosen[:-1]) < max(needed, 1)
        assert more or sum(entry.blocks for entry in chosen) < needed
        gone = [entry.digest for entry in chosen if entry.digest not in spared]
        self.queues.settle(gone, [entry.digest for entry in chosen if entry.digest in spared])
        for digest in gone:
            del self.here[digest]

    @rule(digests=SOME)
    def forget(self, digests: list[Digest]) -> None:
        """Removed by hand."""
        gone = [self.here.pop(digest) for digest in digests if digest in self.here]
        assert self.queues.forget(digests) == (sum(each.blocks for each in gone), len(gone))

    @rule()
    def reopen(self) -> None:
        """A restart changes nothing."""
        self.rows.close()
        self.rows = connect(Path(self.folder.name))
        self.queues = ContentQueues(self.rows)

    @invariant()
    def is_right(self) -> None:
        """All that is here, and nothing else; the sums too."""
        assert dict(self.queues.page(None, 100)) == self.here == self.queues.used_of(DIGESTS)
        assert self.queues.absent(DIGESTS) == [digest for digest in DIGESTS if digest not in self.here]
        account = sum(each.blocks for each in self.here.values()), len(self.here)
        assert self.queues.account() == account
        assert self.queues.taken(Queue.GHOST) <= max(account[0], self.queues.taken(Queue.GHOST))


TestCourse = Course.TestCase
TestCourse.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_what_is_used_again_outlives_a_scan(queues: ContentQueues) -> None:
    """A hundred times its own size passes through without taking it along."""
    daily, scanned = DIGESTS[:5], [Digest.of(b"scan %d" % number) for number in range(500)]
    queues.enter(dict.fromkeys(daily, used(10)))
    queues.touch(dict.fromkeys(daily, ONE_USE))
    for digest in scanned:
        queues.enter({digest: used(10)})
        while (over := queues.account()[0] - 100) > 0:
            chosen, _ = queues.choose(over, 10)
            queues.settle([entry.digest for entry in chosen], [])
    assert queues.absent(daily) == []
    assert queues.account() == (100, 10)


def test_what_comes_back_while_it_is_remembered_is_in_the_main_queue(queues: ContentQueues) -> None:
    """It was dropped too soon the first time."""
    queues.enter(dict.fromkeys(DIGESTS, used(10)))
    chosen, _ = queues.choose(10, 1)
    assert [entry.digest for entry in chosen] == DIGESTS[:1]
    queues.settle(DIGESTS[:1], [])
    assert queues.taken(Queue.GHOST) == 10
    assert queues.enter({DIGESTS[0]: used(10)}) == (10, 1)
    assert (queues.taken(Queue.GHOST), queues.taken(Queue.MAIN)) == (0, 10)


def test_names_are_remembered_for_no_more_bytes_than_there_are(queues: ContentQueues) -> None:
    """However much passes through."""
    for number in range(50):
        queues.enter({Digest.of(b"scan %d" % number): used(10)})
        if number >= 10:
            chosen, _ = queues.choose(10, 1)
            queues.settle([chosen[0].digest], [])
    assert queues.account() == (100, 10)
    assert queues.taken(Queue.GHOST) == 100


def test_uses_of_one_slot_of_time_are_one() -> None:
    """A pull, or fifty of them, promote nothing; a use tomorrow does; so many count and no more."""
    assert uses_now(0, 10.0, 20.0) == 0
    assert uses_now(0, 10.0, ONE_USE + 10.0) == 1
    assert uses_now(MOST_USES, 10.0, ONE_USE + 10.0) == MOST_USES
    assert uses_now(1, ONE_USE + 10.0, 10.0) == 2  # a clock that went back


def test_a_step_is_bounded(queues: ContentQueues) -> None:
    """A thousand that were all used again are moved on in several steps, none of which is lost."""
    many = [Digest.of(b"%d" % number) for number in range(1000)]
    queues.enter(dict.fromkeys(many, used(1)))
    queues.touch(dict.fromkeys(many, ONE_USE))
    steps = 0
    while not (chosen := choose(queues, 1, 1))[0]:
        assert chosen[1]
        steps += 1
    assert 1 <= steps <= 3
    assert queues.account() == (1000, 1000)


def test_long_digests_too(queues: ContentQueues) -> None:
    """Half of their letters are kept, and come back."""
    queues.enter({LONG: used(7)})
    assert queues.page(None, 10) == [(LONG, used(7))]
    assert queues.page(LONG, 10) == []


@pytest.mark.parametrize(
    "column",
    ["blocks = -1", "blocks = 'many'", "last = 'now'", "uses = x'00'", "digest = 'abc'", "queue = 7", "queue = 'no'"],
)
def test_rows_that_are_not_ours_are_not_there(queues: ContentQueues, rows: Rows, column: str) -> None:
    """They are deleted, and the next ones are found."""
    queues.enter(dict.fromkeys(DIGESTS[:2], used(10)))
    first = min(DIGESTS[:2])
    rows._sql(f"UPDATE Content SET {column} WHERE digest = ?", (bytes.fromhex(first.hex),))
    other = next(digest for digest in DIGESTS[:2] if digest != first)
    assert first not in dict(queues.page(None, 10))
    assert queues.choose(100, 10)[0][-1].digest == other
    assert queues.absent(DIGESTS[:2]) == [first]
    assert queues.recount() == (10, 1)
    assert first not in queues.used_of(DIGESTS[:2])
    assert queues.touch({first: 5.0}) == [first]
    assert queues.enter({first: used(10)}) == (10, 1), "and what is there can be put in again"


async def test_places_that_leave_none_for_others_are_no_index(directory: Path) -> None:
    """A number that nothing comes after would fail whatever is put in."""
    index = Index(directory / "index")
    await index.open()
    await index.content(ContentQueues.enter, {DIGESTS[0]: used(10)})
    await index.aclose()
    with sqlite3.connect(directory / "index" / DATABASE) as database:
        database.execute("UPDATE Content SET place = 9223372036854775807")
    database.close()
    index = Index(directory / "index")
    await index.open()
    assert await index.content(ContentQueues.enter, {DIGESTS[1]: used(10)}) == (10, 1)
    assert index.is_new
    await index.aclose()


def test_sums_that_were_forged_are_made_right(queues: ContentQueues, rows: Rows) -> None:
    """By the next count."""
    queues.enter(dict.fromkeys(DIGESTS, used(10)))
    rows._sql("UPDATE Taken SET bytes = -5, objects = 7")
    assert queues.account()[0] >= 0
    assert queues.recount() == (120, 12)


def test_knows_whether_it_was_left_complete(rows: Rows, queues: ContentQueues) -> None:
    """A new one is not; one that was counted is, but for the last seconds where it was not closed."""
    assert queues.opened() == (False, False)
    queues.left()
    assert queues.opened() == (False, False)
    queues.recount()
    assert queues.opened() == (True, False)
    queues.left()
    assert ContentQueues(rows).opened() == (True, True)
    assert ContentQueues(rows).opened() == (True, False)


async def test_another_table_of_this_name_is_no_index(directory: Path) -> None:
    """The database is made anew."""

    def forge() -> None:
        (directory / "index").mkdir()
        connect(directory / "index").close()
        with sqlite3.connect(directory / "index" / DATABASE) as database:
            database.execute("CREATE TABLE Content (name TEXT)")
        database.close()

    await asyncio.to_thread(forge)
    index = Index(directory / "index")
    await index.open()
    assert index.is_new
    assert await index.content(ContentQueues.account) == (0, 0)
    await index.aclose()
