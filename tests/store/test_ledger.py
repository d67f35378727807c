"""What may still be written: exact, and never below zero."""

from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store import ledger as ledger_module
from mirrorproxy.store.ledger import Ledger, Reservation

SIZES = st.integers(0, 1500)


class Accounts(RuleBasedStateMachine):
    """Any course of events, beside a model that only adds up."""

    reservations = Bundle("reservations")
    contents = Bundle("contents")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(limit=5000, min_free=1000, directory=Path("/nowhere"))
        self.promised: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.idle = 0
        self.used = 0
        self.objects = 0
        self.counted = False

    @rule(target=reservations, size=SIZES)
    def reserve(self, size: int) -> Reservation | None:
        """It is given exactly when it fits."""
        room = self.room()
        reservation = self.ledger.reserve(size)
        assert (reservation is not None) == (size <= room)
        if reservation is not None:
            self.promised[id(reservation)] = size
            self.written[id(reservation)] = 0
        return reservation

    @rule(reservation=reservations, size=SIZES)
    def extend(self, reservation: Reservation | None, size: int) -> None:
        """As with a new one; nothing happens after the end."""
        if reservation is not None:
            fits = id(reservation) in self.promised and size <= self.room()
            assert reservation.extend(size) == fits
            if fits:
                self.promised[id(reservation)] += size

    @rule(reservation=reservations, size=SIZES)
    def write(self, reservation: Reservation | None, size: int) -> None:
        """Never more than was promised."""
        if reservation is not None:
            reservation.wrote(size)
            if id(reservation) in self.promised:
                total = min(self.promised[id(reservation)], self.written[id(reservation)] + size)
                self.written[id(reservation)] = total

    @rule(target=contents, reservation=reservations, size=SIZES)
    def commit(self, reservation: Reservation | None, size: int) -> int:
        """What it really takes counts; a second end is none."""
        if reservation is None or id(reservation) not in self.promised:
            if reservation is not None:
                reservation.commit(size)
            return 0
        del self.promised[id(reservation)], self.written[id(reservation)]
        reservation.commit(size)
        self.used += size
        self.objects += size > 0
        return size

    @rule(reservation=reservations)
    def release(self, reservation: Reservation | None) -> None:
        """All of it comes back, once."""
        if reservation is not None:
            reservation.release()
            self.promised.pop(id(reservation), None)
            self.written.pop(id(reservation), None)

    @rule(reservation=reservations, size=SIZES)
    def leave(self, reservation: Reservation | None, size: int) -> None:
        """A part stays, and counts from this moment on."""
        if reservation is not None:
            reservation.leave(size)
            if self.promised.pop(id(reservation), None) is not None:
                self.written.pop(id(reservation))
                self.idle += size

    @rule(reservation=reservations, size=SIZES)
    def find(self, reservation: Reservation | None, size: int) -> None:
        """A part is gone on with: it is not idle any more, and not to come."""
        if reservation is not None:
            reservation.found(size)
            if id(reservation) in self.promised:
                found = min(size, self.promised[id(reservation)] - self.written[id(reservation)])
                self.written[id(reservation)] += found
                self.idle = max(0, self.idle - found)

    @rule(target=contents, size=SIZES)
    def add(self, size: int) -> int:
        """A manifest, which nobody reserved."""
        self.ledger.added(size)
        self.used += size
        self.objects += size > 0
        return size

    @rule(size=consumes(contents))
    def remove(self, size: int) -> None:
        """An eviction."""
        self.ledger.removed(size)
        self.used -= size
        self.objects -= size > 0

    @rule(size=SIZES)
    def count(self, size: int) -> None:
        """The scan is done: of what was there before."""
        if not self.counted:
            self.counted = True
            self.ledger.set_used(size, 7)
            self.used += size
            self.objects += 7

    @rule(size=st.integers(0, 10_000))
    def look(self, size: int) -> None:
        """The file system tells what is free, whatever that is."""
        self.ledger.free = size

    def room(self) -> int:
        """What should fit."""
        room = 5000 - sum(self.promised.values()) - self.idle - (self.used if self.counted else 0)
        if self.ledger.free is not None:
            unwritten = sum(self.promised.values()) - sum(self.written.values())
            room = min(room, self.ledger.free - unwritten - 1000)
        return room

    @invariant()
    def is_exact(self) -> None:
        """Every figure is the model's, and none is negative."""
        assert self.ledger.reserved == sum(self.promised.values()) >= 0
        assert self.ledger.idle == self.idle >= 0
        assert self.ledger.used == (self.used if self.counted else None)
        assert self.ledger.objects == (self.objects if self.counted else None)
        assert self.ledger.free is None or self.ledger.free >= 0
        assert self.ledger.room == self.room()


TestAccounts = Accounts.TestCase


def test_the_limit_holds_with_many_at_once() -> None:
    """100 downloads reserve before the first of them writes."""
    ledger = Ledger(limit=1000, min_free=0, directory=Path("/nowhere"))
    ledger.set_used(100, 1)
    given = [reservation for _ in range(100) if (reservation := ledger.reserve(100))]
    assert len(given) == 9
    assert ledger.room == 0
    given[0].commit(60)
    assert (ledger.used, ledger.reserved, ledger.room) == (160, 800, 40)
    given[1].release()
    assert (ledger.used, ledger.reserved, ledger.room) == (160, 700, 140)


def test_what_is_on_the_disk_already_is_not_to_come() -> None:
    """A download that is nearly done does not need its size of free space once more."""
    ledger = Ledger(limit=1 << 40, min_free=100, directory=Path("/nowhere"))
    ledger.free = 1000
    reservation = ledger.reserve(800)
    assert reservation is not None
    assert ledger.room == 100
    reservation.wrote(700)
    assert (ledger.free, ledger.room) == (300, 100)
    ledger.free = 300  # the file system says the same
    assert ledger.room == 100
    reservation.commit(800)
    assert (ledger.free, ledger.room) == (200, 100)


def test_taking_what_is_there_may_pass_the_limit() -> None:
    """Partial files of an earlier run are there, whatever the limit is now."""
    ledger = Ledger(limit=100, min_free=0, directory=Path("/nowhere"))
    reservation = ledger.reserve(0)
    assert reservation is not None
    reservation.take(300)
    assert ledger.room == -200
    assert ledger.reserve(0) is None
    reservation.release()
    assert ledger.room == 100


def test_a_count_that_was_wrong_never_goes_below_zero() -> None:
    """The files are the truth, the count may lag."""
    ledger = Ledger(limit=1000, min_free=0, directory=Path("/nowhere"))
    ledger.set_used(100, 1)
    ledger.removed(500)
    ledger.removed(500)
    assert (ledger.used, ledger.objects) == (0, 0)


def test_refuses_what_is_no_size() -> None:
    """A negative one would make room."""
    with pytest.raises(ValueError, match="cannot be reserved"):
        Ledger(limit=1, min_free=0, directory=Path("/nowhere")).reserve(-1)


async def test_asks_the_file_system_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many downloads begin."""
    now = 1000.0
    monkeypatch.setattr(ledger_module, "monotonic", lambda: now)
    ledger = Ledger(limit=1, min_free=0, directory=tmp_path)
    assert ledger.free is None
    await ledger.refresh()
    assert ledger.free is not None
    assert ledger.free > 1 << 20
    ledger.free = 5
    now += 0.9
    await ledger.refresh()
    assert ledger.free == 5
    now += 0.1
    await ledger.refresh()
    assert ledger.free > 1 << 20


async def test_a_disk_with_much_room_is_not_asked_for_each_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as what is known of it is new; one with little is."""
    now = 1000.0
    monkeypatch.setattr(ledger_module, "monotonic", lambda: now)
    ledger = Ledger(limit=1 << 50, min_free=1000, directory=tmp_path)
    assert not ledger.is_ample(1)
    await ledger.refresh()
    ledger.free = (16 << 30) + 3001
    assert ledger.is_ample(2000)
    assert not ledger.is_ample(2001)
    reservation = ledger.reserve(500)
    assert not ledger.is_ample(2000)
    assert reservation is not None
    reservation.release()
    ledger.inodes_short = 1
    assert not ledger.is_ample(1)
    ledger.inodes_short = 0
    now += 5.9
    assert ledger.is_ample(2000)
    now += 0.2
    assert not ledger.is_ample(1)


async def test_a_file_system_that_fails_is_told(tmp_path: Path) -> None:
    """In our words."""
    ledger = Ledger(limit=1, min_free=0, directory=tmp_path / "missing")
    with pytest.raises(CacheFailed):
        await ledger.refresh()


def test_says_what_it_is() -> None:
    """The state can be read."""
    ledger = Ledger(limit=1000, min_free=0, directory=Path("/nowhere"))
    reservation = ledger.reserve(10)
    assert repr(ledger) == "<Ledger None used, 10 reserved of 1000; None free>"
    assert repr(reservation) == "<Reservation 0 of 10>"
