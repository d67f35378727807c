"""What a download does to the account of the disk, at each moment."""

import asyncio
from pathlib import Path

import pytest

from mirrorproxy.errors import CacheFailed
from mirrorproxy.fill import Fills, Terms
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import repository
from mirrorproxy.store.ingest import Partials
from mirrorproxy.store.ledger import Ledger, Reservation
from tests.fill.source import Answer, ScriptedSource
from tests.fill.test_fills import DATA, MIB, pull

ALPINE = repository("docker.io", "alpine")
LIMIT = 100 * MIB


class Counted:
    """A disk with an account of what is on it."""

    def __init__(self) -> None:
        self.ledger = Ledger(limit=LIMIT, min_free=0, directory=Path("/nowhere"))
        self.ledger.set_used(0, 0)

    async def reserve(self, size: int) -> Reservation:
        """As far as the limit goes."""
        if (reservation := self.ledger.reserve(size)) is None:
            raise CacheFailed("there is no room")
        return reservation

    def resume(self, size: int) -> Reservation:
        """What is there is there."""
        return self.ledger.resume(size)


async def test_a_part_counts_from_the_moment_it_is_left(partials: Partials, metrics: Metrics) -> None:
    """And is no part any more from the moment in which a download goes on with it: no byte is free, or counts twice."""
    space, gate = Counted(), asyncio.Event()
    ledger = space.ledger
    source = ScriptedSource(DATA, [Answer(gate=gate)], chunk=MIB)
    fills = Fills(partials, space, metrics, Terms(2, 8, abandoned=0.0))
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    await blob.wait(0)  # type: ignore[attr-defined]  # it is a FileBlob
    assert (ledger.reserved, ledger.idle) == (len(DATA), 0)
    await blob.aclose()
    await fills.drain(2)
    (part,) = await asyncio.to_thread(lambda: list(partials.scan()))
    assert ledger.idle == part.blocks >= MIB
    assert (ledger.reserved, ledger.room) == (0, LIMIT - part.blocks)

    source.script.append(Answer(held=(held := asyncio.Event())))
    async with asyncio.TaskGroup() as group:
        client = group.create_task(pull(fills, source, len(DATA)))
        while len(source.asked) < 2:
            await asyncio.sleep(0)
        assert (ledger.reserved, ledger.idle) == (len(DATA), part.blocks - MIB)
        held.set()
    assert client.result() == DATA
    await fills.drain(2)
    assert ledger.reserved == 0
    assert ledger.idle == part.blocks - MIB
    assert ledger.used is not None
    assert ledger.used >= len(DATA)
    await fills.aclose()


async def test_a_part_needs_room_for_the_rest_alone(partials: Partials, metrics: Metrics) -> None:
    """What is on the disk is counted already: to ask for all of it again would let other content go for nothing."""
    space = Counted()
    ledger = space.ledger
    ledger.set_used(LIMIT - len(DATA) - (64 << 10), 1)
    source = ScriptedSource(DATA, [Answer(gate=asyncio.Event())], chunk=MIB)
    fills = Fills(partials, space, metrics, Terms(2, 8, abandoned=0.0))
    blob = await fills.join(source, ALPINE, source.digest, len(DATA))
    await blob.wait(0)  # type: ignore[attr-defined]  # it is a FileBlob
    await blob.aclose()
    await fills.drain(2)
    assert 0 < ledger.room < len(DATA)
    assert await pull(fills, source, len(DATA)) == DATA
    await fills.drain(2)
    assert fills.trouble is None
    assert source.asked == [0, MIB]
    assert ledger.reserved == 0
    assert (ledger.used or 0) <= LIMIT
    await fills.aclose()


async def test_what_is_thrown_away_takes_no_room(partials: Partials, metrics: Metrics) -> None:
    """Wrong bytes."""
    space = Counted()
    source = ScriptedSource(DATA)
    source.otherwise = lambda: Answer(body=b"x" * len(DATA))
    fills = Fills(partials, space, metrics, Terms(2, 8))
    outcome = await asyncio.gather(pull(fills, source, len(DATA)), return_exceptions=True)
    assert isinstance(outcome[0], Exception)
    await fills.drain(2)
    assert (space.ledger.reserved, space.ledger.idle, space.ledger.used) == (0, 0, 0)
    assert await asyncio.to_thread(lambda: list(partials.scan())) == []
    await fills.aclose()


class Evicting(Counted):
    """A disk whose other content goes for what is new."""

    async def reserve(self, size: int) -> Reservation:
        """All of it at once."""
        if size > self.ledger.room:
            self.ledger.removed(self.ledger.used or 0)
        return await super().reserve(size)


async def test_what_nobody_knew_the_size_of_finds_room_too(partials: Partials, metrics: Metrics) -> None:
    """The first answer tells it: other content goes, and it is kept."""
    space = Evicting()
    space.ledger.set_used(LIMIT - MIB, 1)
    source = ScriptedSource(DATA)
    fills = Fills(partials, space, metrics, Terms(2, 8))
    assert await pull(fills, source) == DATA
    await fills.drain(2)
    assert fills.trouble is None
    assert space.ledger.reserved == 0
    assert len(DATA) <= (space.ledger.used or 0) < LIMIT - MIB
    assert source.asked == [0]
    await fills.aclose()


class Failing(Counted):
    """A disk that takes nothing, for a reason."""

    reason = "no room for 5 bytes"

    async def reserve(self, size: int) -> Reservation:
        """Never."""
        raise CacheFailed(self.reason)


async def test_why_nothing_is_kept_is_said_once_for_each_reason(
    partials: Partials, metrics: Metrics, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many downloads meet it, and whatever their sizes; and what was a minute ago is no trouble any more."""
    space = Failing()
    fills = Fills(partials, space, metrics, Terms(2, 8))

    async def passes() -> None:
        assert await pull(fills, ScriptedSource(DATA), len(DATA)) == DATA
        await fills.drain(2)

    for reason in ("no room for 5 bytes", "no room for 7 bytes", "it can only be read", "it can only be read"):
        space.reason = reason
        await passes()
        assert fills.trouble == reason
    told = [record.getMessage() for record in caplog.records if "are not kept" in record.getMessage()]
    assert [line.rpartition(": ")[2] for line in told] == ["no room for 5 bytes", "it can only be read"]
    monkeypatch.setattr("mirrorproxy.fill.fills._TROUBLE_FOR", 0.0)
    assert fills.trouble is None
    await fills.aclose()
