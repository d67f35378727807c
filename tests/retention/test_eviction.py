"""What goes for want of room, and what never does."""

import asyncio
import os
import time

import pytest

from mirrorproxy.errors import CacheFailed
from mirrorproxy.names import Tag
from mirrorproxy.retention import Bounds
from mirrorproxy.store.eviction import ONE_USE
from mirrorproxy.store.pins import Pin
from mirrorproxy.store.queues import ContentQueues
from tests.retention.conftest import APP, KIB, Place

LONG = 10 * ONE_USE


def evicted(place: Place) -> float:
    """How many pieces of content went for want of room."""
    return float(place.metrics.evictions.labels("size")._value.get())


async def test_room_is_made_for_a_download(place: Place) -> None:
    """What was not used again goes, no more than is needed; the account is the disk's."""
    old = [await place.blob(100 * KIB) for _ in range(9)]
    place.now += LONG
    reservation = await place.retention.reserve(300 * KIB)
    gone = [each for each in old if not place.has(each.digest)]
    assert gone == old[: len(gone)]
    assert 2 <= len(gone) <= 4
    assert place.dropped == [each.digest for each in gone]
    assert (place.ledger.used, place.ledger.objects) == await asyncio.to_thread(place.on_disk)
    reservation.release()
    assert evicted(place) == len(gone)
    assert place.metrics.evicted_age._sum.get() == len(gone) * LONG


async def test_what_was_used_again_stays_longer(place: Place) -> None:
    """A scan over five times the room takes nothing of what is pulled daily."""
    daily = [await place.blob(100 * KIB) for _ in range(3)]
    await place.retention.write_uses()
    for number in range(50):
        place.now += LONG
        if number % 10 == 0:
            for each in daily:
                place.retention.used(each.digest)
        (await place.retention.reserve(100 * KIB)).release()
        await place.blob(100 * KIB)
    assert all(place.has(each.digest) for each in daily)
    assert evicted(place) > 40


async def test_what_cannot_fit_takes_nothing_along(place: Place) -> None:
    """Larger than the cache: all stays as it is."""
    old = [await place.blob(100 * KIB) for _ in range(5)]
    place.now += LONG
    with pytest.raises(CacheFailed, match="there is no room for"):
        await place.retention.reserve(2000 * KIB)
    assert all(place.has(each.digest) for each in old)


async def test_a_manifest_that_was_served_keeps_what_it_names(place: Place) -> None:
    """Through an index of images, too; for a minute, as its clients will ask for it."""
    layers = [await place.blob(100 * KIB) for _ in range(4)]
    image = await place.image(None, *layers)
    index = await place.images("1", linux_amd64=image)
    other = [await place.blob(100 * KIB) for _ in range(4)]
    place.now += LONG
    place.retention.used(index, manifest=True)
    (await place.retention.reserve(300 * KIB)).release()
    assert all(place.has(each) for each in (image, index, *(layer.digest for layer in layers)))
    assert sum(place.has(each.digest) for each in other) < 3
    used = await place.index.used_of([each.digest for each in layers])
    assert {each.last for each in used.values()} == {place.now}


async def test_a_clock_that_went_back_keeps_nothing_for_ever(place: Place) -> None:
    """Uses that lie in the future are no reason to stay."""
    await place.blob(500 * KIB)
    await place.retention.write_uses()
    place.now -= 400 * 86_400
    (await place.retention.reserve(900 * KIB)).release()
    assert evicted(place) == 1
    assert place.metrics.evicted_age._sum.get() == 0


@pytest.mark.parametrize("why", ["read", "filled", "pinned", "just used"])
async def test_what_is_needed_now_stays(place: Place, why: str) -> None:
    """Being read, being filled, pinned, or used in the last minute: there is no room rather."""
    layer = await place.blob(600 * KIB)
    digest = await place.image("1", layer)
    place.now += LONG
    opened = None
    match why:
        case "read":
            opened = await place.blobs.open(layer.digest)
        case "filled":
            place.retention.parts.filling = {layer.digest}
        case "pinned":
            await place.retention.pins.put(Pin(APP, Tag("1")))
        case "just used":
            place.retention.used(digest, manifest=True)
            place.now += 59
    with pytest.raises(CacheFailed):
        await place.retention.reserve(900 * KIB)
    assert place.has(layer.digest)
    if opened is not None:
        opened.close()
    place.retention.parts.filling = frozenset()
    await place.retention.pins.forget(Pin(APP, Tag("1")))
    place.now += LONG
    (await place.retention.reserve(900 * KIB)).release()
    assert not place.has(layer.digest)


@pytest.mark.parametrize("lost", [False, True], ids=["after a start", "while the index is made anew"])
async def test_nothing_goes_before_it_is_known_what_is_pinned(place: Place, *, lost: bool) -> None:
    """A pin names a tag; what that points at is in the index, which may have to be found again."""
    layer = await place.blob(500 * KIB)
    await place.image("1", layer)
    (place.directory / "pins").write_text(f"{APP}:1\n")
    place.now += LONG
    place.index.rebuild_needed = lost
    with pytest.raises(CacheFailed):
        await place.retention.reserve(900 * KIB)
    assert place.has(layer.digest)
    assert place.retention.pins.sure is not lost
    place.index.rebuild_needed = False
    with pytest.raises(CacheFailed):
        await place.retention.reserve(900 * KIB)
    assert place.has(layer.digest)


async def test_a_reader_of_what_is_evicted_finishes(place: Place) -> None:
    """Its descriptor is its own."""
    layer = await place.blob(100 * KIB)
    opened = await place.blobs.open(layer.digest)
    assert opened is not None
    await place.retention.remove([layer.digest])
    assert not place.has(layer.digest)
    assert len(os.pread(opened.fd, 1 << 20, 0)) == 100 * KIB
    opened.close()


async def test_parts_go_first(place: Place) -> None:
    """The oldest of them, before any content that is whole."""
    whole = await place.blob(400 * KIB)
    for _ in range(2):
        descriptor = await place.blob(10)
        await place.retention.remove([descriptor.digest])
        ingest = await place.partials.open(descriptor.digest)
        await ingest.write(0, bytes(200 * KIB))
        await ingest.settle()
        await ingest.close()
        ingest.release()
    place.now += LONG
    await place.retention.parts.tidy(0)
    assert place.ledger.idle >= 400 * KIB
    (await place.retention.reserve(300 * KIB)).release()
    assert place.has(whole.digest)
    assert place.metrics.partials_dropped.labels("size")._value.get() == 1


async def test_from_the_high_mark_down_to_the_low_one(place: Place) -> None:
    """In the background, and no further."""
    place.retention.bounds = Bounds(high=0.9, low=0.6)
    for _ in range(88):
        await place.blob(10 * KIB - 1)  # 12 KiB on the disk
    place.now += LONG
    running = asyncio.create_task(place.retention.run())  # noqa: TID251 - the test owns it
    async with asyncio.timeout(10):
        while place.ledger.taken > 600 * KIB:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    running.cancel()
    assert 580 * KIB < place.ledger.taken <= 600 * KIB
    assert (place.ledger.used, place.ledger.objects) == await asyncio.to_thread(place.on_disk)


async def test_steps_of_the_background(place: Place) -> None:
    """There are rests between them, in which other things are seen to; below the high mark it still goes on."""
    place.retention.bounds = Bounds(high=0.9, low=0.1)
    for _ in range(76):
        await place.blob(10 * KIB - 1)  # 12 KiB on the disk
    place.now += LONG
    await place.retention.write_uses()
    counts = []
    for _ in range(4):
        await place.retention._make_room(time.monotonic())
        counts.append(place.ledger.objects)
    assert counts == [44, 12, 8, 8]
    await place.blob(10 * KIB - 1)
    await place.retention._make_room(time.monotonic())
    assert place.ledger.objects == 9, "the low mark was reached, the high one is not"


async def test_what_is_evicted_is_missed_by_nobody(place: Place) -> None:
    """Answers of a moment ago may be given again: they are of what was just used, which stays. What a person removes is
    gone at once.
    """
    descriptors = [await place.blob(100 * KIB) for _ in range(9)]
    place.now += LONG
    (await place.retention.reserve(500 * KIB)).release()
    assert (len(place.dropped) > 3, place.changes) == (True, 0)
    left = [each.digest for each in descriptors if place.has(each.digest)]
    await place.retention.remove(left[:1])
    assert (place.dropped[-1], place.changes) == (left[0], 1)


async def test_what_was_used_meanwhile_stays(place: Place) -> None:
    """What is too old by the rules may be pulled again before its turn comes."""
    first, second = await place.blob(), await place.blob()
    place.now += LONG
    place.retention.used(first.digest)
    gone = await place.retention.remove([first.digest, second.digest], "age", unused_since=place.now - 1)
    assert [each.digest for each in gone] == [second.digest]
    assert place.has(first.digest)


async def test_room_for_many_at_once(place: Place) -> None:
    """A hundred ask for a twentieth of the room each: no more is promised than there is."""
    for _ in range(20):
        await place.blob(40 * KIB)
    place.now += LONG
    asked = await asyncio.gather(*(place.retention.reserve(50 * KIB) for _ in range(100)), return_exceptions=True)
    given = [each for each in asked if not isinstance(each, BaseException)]
    assert all(isinstance(each, CacheFailed) for each in asked if isinstance(each, BaseException))
    assert 15 <= len(given) <= 18
    assert place.ledger.taken <= place.ledger.limit


async def test_an_index_that_can_only_be_read(place: Place) -> None:
    """On a full disk it cannot be written: content goes all the same, so that it can."""
    for _ in range(9):
        await place.blob(100 * KIB)
    await place.retention.write_uses()
    place.now += LONG
    await place.index._run(lambda: place.index._rows._sql("PRAGMA query_only = ON").fetchall())
    (await place.retention.reserve(500 * KIB)).release()
    assert (place.ledger.used, place.ledger.objects) == await asyncio.to_thread(place.on_disk)
    await place.index._run(lambda: place.index._rows._sql("PRAGMA query_only = OFF").fetchall())
    await place.retention.write_uses()
    assert await place.index.content(ContentQueues.account) == await asyncio.to_thread(place.on_disk)
