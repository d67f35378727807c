"""The account of what is on the disk: known at a start, right after a crash, whatever became of the index."""

import asyncio
import shutil
from pathlib import Path

from mirrorproxy.names import Digest
from mirrorproxy.store.queues import ContentQueues
from tests.retention.conftest import KIB, Place


async def reopened(place: Place) -> Place:
    """After a clean stop."""
    await place.aclose()
    found = Place(place.directory)
    await found.index.open()
    await found.retention.open()
    return found


async def test_is_known_at_a_start(place: Place) -> None:
    """Without a look at any file."""
    for _ in range(3):
        await place.blob()
    again = await reopened(place)
    shutil.rmtree(again.directory / "blobs")
    assert (again.ledger.used, again.ledger.objects) == (48 * KIB, 3)
    await again.aclose()


async def test_after_a_crash(directory: Path) -> None:
    """What came in the last seconds is found, what went is not counted; what came since the start is counted once."""
    place = Place(directory)
    await place.open()
    kept = [await place.blob() for _ in range(3)]
    await place.retention.write_uses()
    await place.blob()
    await asyncio.to_thread(place.blobs.path(kept[0].digest).unlink)
    await place.index.aclose()  # no word of what was noted

    again = Place(directory)
    await asyncio.sleep(0.02)  # the file system's clock ticks every 4 ms
    await again.index.open()
    await again.retention.open()
    assert (again.ledger.used, again.ledger.objects) == (48 * KIB, 3)
    await asyncio.sleep(0.02)
    await again.blob()
    await again.counted()
    assert (again.ledger.used, again.ledger.objects) == await asyncio.to_thread(again.on_disk) == (64 * KIB, 4)
    assert await again.index.content(ContentQueues.account) == (64 * KIB, 4)
    await again.retention.write_uses()
    assert await again.index.content(ContentQueues.account) == (64 * KIB, 4)
    for each in (again, place):
        await each.blobs.aclose()
    await again.index.aclose()


async def test_what_a_crash_left_unknown_is_counted_when_it_is_used(directory: Path) -> None:
    """Once, whether the check or a client comes first."""
    place = Place(directory)
    await place.open()
    blob = await place.blob()
    await place.index.aclose()
    again = Place(directory)
    await asyncio.sleep(0.02)  # the file system's clock ticks every 4 ms
    await again.index.open()
    await again.retention.open()
    assert again.ledger.used == 0
    again.retention.used(blob.digest)
    await again.retention.write_uses()
    assert (again.ledger.used, again.ledger.objects) == (16 * KIB, 1)
    await again.counted()
    assert (again.ledger.used, again.ledger.objects) == (16 * KIB, 1)
    for each in (again, place):
        await each.blobs.aclose()
    await again.index.aclose()


async def test_an_index_that_is_lost_while_running(place: Place) -> None:
    """The ledger knows better meanwhile; the new one learns what is there."""
    for _ in range(5):
        await place.blob()
    await place.retention.write_uses()
    await place.index._run(place.index._make_anew)
    assert place.index.is_new
    await place.counted()
    assert (place.ledger.used, place.ledger.objects) == (80 * KIB, 5)
    assert await place.index.content(ContentQueues.account) == (80 * KIB, 5)


async def test_an_index_that_is_lost_between_two_runs(place: Place) -> None:
    """All is counted."""
    for _ in range(5):
        await place.blob()
    await place.aclose()
    shutil.rmtree(place.directory / "index")
    again = Place(place.directory)
    await asyncio.sleep(0.02)  # the file system's clock ticks every 4 ms
    await again.open()
    assert (again.ledger.used, again.ledger.objects) == (80 * KIB, 5)
    await again.aclose()


async def test_what_was_wrong_is_forgotten(place: Place) -> None:
    """Content that was taken away is not in the queues, and the account follows."""
    blob = await place.blob()
    await place.retention.write_uses()
    freed = await place.blobs.remove(blob.digest)
    place.retention.corrupt(blob.digest, freed)
    await place.retention.write_uses()
    assert (place.ledger.used, place.ledger.objects) == (0, 0)
    assert await place.index.content(ContentQueues.account) == (0, 0)
    assert place.metrics.evictions.labels("corrupt")._value.get() == 1


async def test_removed_behind_our_back(place: Place) -> None:
    """An eviction that finds nothing frees nothing, and goes on to the next."""
    blobs = [await place.blob(400 * KIB) for _ in range(2)]
    await place.retention.write_uses()
    await asyncio.to_thread(place.blobs.path(blobs[0].digest).unlink)
    place.now += 1_000_000
    (await place.retention.reserve(900 * KIB)).release()
    assert (place.ledger.used, place.ledger.objects) == (0, 0)


async def test_a_use_of_what_is_not_here_is_nothing(place: Place) -> None:
    """A manifest names more than what was pulled."""
    place.retention.used(Digest.of(b"somewhere else"))
    await place.retention.write_uses()
    assert await place.index.content(ContentQueues.account) == (0, 0)


async def test_a_clock_that_is_put_back(place: Place) -> None:
    """What comes after that is counted once, though it seems to have come before the start."""
    place.retention._account._began += 86_400.0
    for _ in range(3):
        await place.blob()
    await place.counted()
    assert (place.ledger.used, place.ledger.objects) == (48 * KIB, 3)
