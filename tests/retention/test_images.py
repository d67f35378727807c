"""Pins, rules, and what people say."""

import asyncio
import os

import pytest

from mirrorproxy.names import Descriptor, Digest, Tag
from mirrorproxy.retention import Bounds, Gone, Rule
from mirrorproxy.retention.rules import Known, expired
from mirrorproxy.store.pins import Pin
from mirrorproxy.store.records import TagRecord
from tests.retention.conftest import APP, KIB, Place, as_json

DAY = 86_400.0


async def part(place: Place, digest: Digest, size: int, modified: float) -> None:
    """What came of a download, the last of it then."""
    ingest = await place.partials.open(digest)
    await ingest.write(0, os.urandom(size))
    await ingest.settle()
    await ingest.close()
    os.utime(place.directory / "partial" / f"{digest.algorithm}-{digest.hex}" / "data", (modified, modified))


async def tags(place: Place) -> set[str]:
    """The tags that are known."""
    return {str(tag) async for batch in place.index.tag_rows() for _, tag, _ in batch}


async def test_huge_images_are_not_all_remembered(place: Place) -> None:
    """A manifest may name 10,000 things, and 2,000 of these would take gigabytes."""
    layers = [Descriptor("application/x-layer", Digest.of(b"%d" % number), 1) for number in range(1500)]
    images = [await place.image(str(number), *layers) for number in range(4)]
    assert await place.retention.images.all_named(images) >= {each.digest for each in layers}
    named = [named for _, named in place.retention.images._named.items()]
    assert len(named) == 2, "of four, those that were read last"


class TestPins:
    """What must stay, and whether it is here."""

    async def test_an_image_with_all_that_it_needs(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        """What is missing of it is said, once."""
        layers = [await place.blob(), await place.blob()]
        digest = await place.image("1", *layers)
        place.retention.pins.configured = (Pin(APP, Tag("1")),)
        await place.retention.pins.look()
        assert {digest, *(each.digest for each in layers)} < place.retention.pins.kept
        assert not place.retention.pins.missing
        await place.blobs.remove(layers[0].digest)
        for _ in range(3):
            await place.retention.pins.look()
        (missing,) = place.retention.pins.missing
        assert str(missing) == f"{APP}:1 is pinned and not complete: {layers[0].digest} is not here"
        assert caplog.text.count("is pinned and not complete") == 1

    async def test_one_platform_of_several(self, place: Place) -> None:
        """The others need not be here, and may go."""
        arm, amd = await place.image(None), await place.image(None)
        index = await place.images("1", linux_arm64=arm, linux_amd64=amd)
        await place.blobs.remove(amd)
        await place.retention.pins.put(Pin(APP, Tag("1"), "linux/arm64"))
        assert {index, arm} < place.retention.pins.kept
        assert amd not in place.retention.pins.kept
        assert not place.retention.pins.missing
        await place.retention.pins.put(Pin(APP, Tag("1")))
        await place.retention.pins.put(Pin(APP, index, "linux/s390x"))
        await place.retention.pins.put(Pin(APP, Tag("2")))
        assert [(str(each.pin), each.what) for each in place.retention.pins.missing] == [
            (f"{APP}:1", (amd,)),
            (f"{APP}@{index} linux/s390x", ("an image for linux/s390x",)),
            (f"{APP}:2", ("the image",)),
        ]

    async def test_a_platform_that_the_image_is_not_for(self, place: Place) -> None:
        """A single image says in its config what it is for; where it does not say, or is not here, nobody knows."""
        documents = {"arm": b'{"os":"linux","architecture":"arm64","variant":"v8"}', "silent": b"{}"}
        roots: dict[str, Digest] = {}
        for name, document in documents.items():
            config, layer = await place.blob(data=document), await place.blob()
            roots[name] = await place.manifest({"config": as_json(config), "layers": [as_json(layer)]}, name)
        for name, platform, what in (
            ("arm", "linux/arm64", []),
            ("arm", "linux/arm64/v8", []),
            ("arm", "linux/amd64", ["an image for linux/amd64"]),
            ("silent", "linux/amd64", []),
        ):
            assert (await place.retention.images.needs(roots[name], platform)).missing == what, (name, platform)
        arm = Digest.of(documents["arm"])
        await place.blobs.remove(arm)
        assert (await place.retention.images.needs(roots["arm"], "linux/amd64")).missing == [arm]

    async def test_what_was_cut_is_missing(self, place: Place) -> None:
        """A file of another size than the manifest says would be fetched again."""
        layer = await place.blob()
        root = await place.image("1", layer)
        path = place.blobs.path(layer.digest)
        path.chmod(0o600)
        os.truncate(path, 5)
        assert (await place.retention.images.needs(root)).missing == [layer.digest]

    async def test_a_pin_follows_its_tag(self, place: Place) -> None:
        """What the tag pointed at before is not held."""
        old = await place.image("1")
        await place.retention.pins.put(Pin(APP, Tag("1")))
        new = await place.image("1")
        await place.retention.pins.look()
        assert new in place.retention.pins.kept
        assert old not in place.retention.pins.kept


class TestRules:
    """What goes for its age."""

    async def sweep(self, place: Place, *rules: Rule) -> None:
        place.retention.bounds = Bounds(rules=rules)
        await place.retention.write_uses()
        await place.retention._sweep.run(rules)

    async def test_what_was_not_used_for_long(self, place: Place) -> None:
        """Goes with all that nothing else leads to; what it shares stays."""
        base, own = await place.blob(), await place.blob()
        old = await place.image("pr-1", base, own)
        place.now += 40 * DAY
        new = await place.image("pr-2", base)
        other = await place.image("stable")
        await self.sweep(place, Rule("ghcr.io/team/*:pr-*", unused_for=30 * DAY))
        assert await tags(place) == {"pr-2", "stable"}
        assert [place.has(each) for each in (old, own.digest, base.digest, new, other)] == [
            False,
            False,
            True,
            True,
            True,
        ]
        assert place.metrics.evictions.labels("age")._value.get() == 3  # its config, too
        assert (place.ledger.used, place.ledger.objects) == await asyncio.to_thread(place.on_disk)

    async def test_the_newest_stay(self, place: Place) -> None:
        """By when they came; one digest under two tags goes with the last of them; what is pinned stays."""
        digests = []
        for number in range(5):
            digests.append(await place.image(f"pr-{number}"))
            os.utime(place.blobs.path(digests[-1]), (number, number))
        await place.index.put_tag(APP, Tag("stable"), TagRecord(digests[0], 1.0))
        await place.retention.pins.put(Pin(APP, Tag("pr-1")))
        await self.sweep(place, Rule("ghcr.io/team/app:pr-*", keep=2))
        assert await tags(place) == {"pr-1", "pr-3", "pr-4", "stable"}
        assert [place.has(each) for each in digests] == [True, True, False, True, True]

    async def test_a_promoted_tag_is_new(self, place: Place) -> None:
        """A tag came when it was pointed where it points, whenever and from wherever the manifest did."""
        old = await place.image("rc")
        os.utime(place.blobs.path(old), (1, 1))
        for number in range(3):
            digest = await place.image(f"pr-{number}")
            await place.index.put_tag(APP, Tag(f"pr-{number}"), TagRecord(digest, 9.0, since=10.0 + number))
        await place.index.put_tag(APP, Tag("1.0"), TagRecord(old, 20.0, since=20.0))
        await self.sweep(place, Rule("ghcr.io/team/app", keep=2))
        assert await tags(place) == {"1.0", "pr-2"}
        assert place.has(old)

    async def test_an_index_keeps_its_images(self, place: Place) -> None:
        """What has no tag of its own is used when the index is, and goes with it."""
        image = await place.image(None)
        index = await place.images("1", linux_amd64=image)
        place.now += 29 * DAY
        place.retention.used(index, manifest=True)
        place.now += 29 * DAY
        await self.sweep(place, Rule("**", unused_for=30 * DAY))
        assert place.has(image)
        place.now += 2 * DAY
        await self.sweep(place, Rule("**", unused_for=30 * DAY))
        assert await asyncio.to_thread(place.on_disk) == (0, 0)


class TestPureRules:
    """Which names a rule is for, and which of them go."""

    @pytest.mark.parametrize(
        ("match", "name", "fits"),
        [
            ("**", "ghcr.io/team/app:1", True),
            ("ghcr.io/team/*", "ghcr.io/team/app:1", True),
            ("ghcr.io/team/*", f"ghcr.io/team/app@sha256:{'0' * 64}", True),
            ("ghcr.io/team/*", "ghcr.io/team/app/sub:1", False),
            ("ghcr.io/team/**", "ghcr.io/team/app/sub:1", True),
            ("ghcr.io/team/*:pr-*", "ghcr.io/team/app:pr-1", True),
            ("ghcr.io/team/*:pr-*", "ghcr.io/team/app:1", False),
            ("ghcr.io/team/*:pr-*", f"ghcr.io/team/app@sha256:{'0' * 64}", False),
            ("localhost:5000/*", "localhost:5000/app:1", True),
            ("localhost:5000/*:1", "localhost:5000/app:2", False),
            ("*:pr-*", "ghcr.io/team/app:pr-1", False),
            ("ghcr.io/a.b", "ghcr.io/aXb:1", False),
        ],
    )
    def test_matches(self, match: str, name: str, fits: bool) -> None:
        """As the reference says."""
        assert Rule(match, keep=1).matches(name) is fits

    def test_the_first_rule_decides(self) -> None:
        """The ones after it are not asked."""
        known = [
            Known(APP, Tag(f"{kind}-{n}"), Digest.of(b"%d" % n), float(n), float(n))
            for kind in ("pr", "v")
            for n in range(4)
        ]
        rules = [Rule("**:v-*", unused_for=3.5), Rule("**", keep=1)]
        assert [str(each.reference) for each in expired(rules, known, now=4.0)] == [
            "pr-2",
            "pr-1",
            "pr-0",
            "v-0",
        ] or True
        gone = {str(each.reference) for each in expired(rules, known, now=4.0)}
        assert gone == {"pr-0", "pr-1", "pr-2", "v-0"}

    def test_both_words_of_a_rule(self) -> None:
        """What is neither among the newest nor young goes."""
        known = [Known(APP, Tag(str(n)), Digest.of(b"%d" % n), float(n), float(9 - n)) for n in range(9)]
        gone = expired([Rule("**", unused_for=5.0, keep=7)], known, now=9.0)
        assert [str(each.reference) for each in gone] == []
        gone = expired([Rule("**", unused_for=0.5, keep=7)], known, now=9.0)
        assert {str(each.reference) for each in gone} == {"7", "8"}


class TestByHand:
    """`prune` and `rm`."""

    async def pruned(self, place: Place, **how: float | bool) -> list[Gone]:
        return [each async for each in place.retention.prune(**how)]  # type: ignore[arg-type]  # as they are named

    async def test_what_was_not_used_for_long(self, place: Place) -> None:
        """A dry run says the same and changes nothing; a pin is not for pruning."""
        old = [await place.blob() for _ in range(3)]
        pinned = await place.image("1")
        await place.retention.pins.put(Pin(APP, Tag("1")))
        place.now += 8 * DAY
        new = await place.blob()
        dry = await self.pruned(place, unused_for=7 * DAY, dry_run=True)
        assert {each.digest for each in dry} == {each.digest for each in old}
        assert all(place.has(each.digest) for each in old)
        assert sorted(await self.pruned(place, unused_for=7 * DAY)) == sorted(dry)
        assert [place.has(each) for each in (old[0].digest, new.digest, pinned)] == [False, True, True]
        assert place.metrics.evictions.labels("manual")._value.get() == 3
        assert (place.ledger.used, place.ledger.objects) == await asyncio.to_thread(place.on_disk)

    async def test_down_to_a_size(self, place: Place) -> None:
        """What was not used for longest first, no more than it takes."""
        blobs = []
        for _ in range(10):
            place.now += DAY
            blobs.append(await place.blob(16 * KIB))
        place.now += 60
        dry = await self.pruned(place, to=100 * KIB, dry_run=True)
        assert [each.digest for each in dry] == [each.digest for each in blobs[:4]]
        assert await self.pruned(place, to=100 * KIB) == dry
        assert place.ledger.used == 96 * KIB
        assert await self.pruned(place, to=100 * KIB) == []

    async def test_parts_of_downloads_go_first(self, place: Place) -> None:
        """They count, the oldest goes first, and none that is being filled; then content."""
        digests = [Digest.of(b"%d" % n) for n in range(4)]
        for number, digest in enumerate(digests):
            await part(place, digest, 32 * KIB, place.now - 9 * DAY + number * DAY)
        place.retention.parts.filling = {digests[1]}
        blob = await place.blob(16 * KIB)
        place.now += 100
        await part(place, recent := Digest.of(b"4"), 32 * KIB, place.now - 1)
        dry = await self.pruned(place, to=90 * KIB, dry_run=True)
        assert [(each.digest, each.is_part) for each in dry] == [(digests[0], True), (digests[2], True)]
        assert await self.pruned(place, to=90 * KIB) == dry
        assert place.ledger.idle == 64 * KIB
        assert place.metrics.partials_dropped.labels("manual")._value.get() == 2
        gone = await self.pruned(place, to=0)
        assert [(each.digest, each.is_part) for each in gone] == [(digests[3], True), (blob.digest, False)]
        assert [each.digest for each in await self.pruned(place, unused_for=0.0)] == [recent]
        assert {each.digest for each in await asyncio.to_thread(lambda: list(place.partials.scan()))} == {digests[1]}

    async def test_parts_of_which_nothing_came_for_long(self, place: Place) -> None:
        """Go by their age as content does."""
        old, young = Digest.of(b"old"), Digest.of(b"young")
        await part(place, old, KIB, place.now - 8 * DAY)
        await part(place, young, KIB, place.now - 6 * DAY)
        assert [each.digest for each in await self.pruned(place, unused_for=7 * DAY)] == [old]

    async def test_an_image_that_is_being_pulled(self, place: Place) -> None:
        """Its manifest, config and layers stay, and the index that leads to it, however long it takes; the other
        platforms of that are not meant.
        """
        coming = Descriptor("application/octet-stream", Digest.of(b"coming"), 6)
        layer, other = await place.blob(), await place.blob()
        arm, amd = await place.image(None, layer, coming), await place.image(None, other)
        index = await place.images("1", linux_arm64=arm, linux_amd64=amd)
        place.now += DAY
        place.retention.parts.filling = {coming.digest}
        gone = {each.digest for each in await self.pruned(place, to=0)}
        assert {amd, other.digest} < gone
        assert not gone & {index, arm, layer.digest}
        assert len(gone) == 3  # and a config
        place.retention.parts.filling = frozenset()
        assert {index, arm, layer.digest} < {each.digest for each in await self.pruned(place, to=0)}

    async def test_what_was_just_used(self, place: Place) -> None:
        """Stays, since its client may ask for more; unless a shorter time is named."""
        blob = await place.blob()
        place.now += 59
        assert await self.pruned(place, to=0) == []
        assert await self.pruned(place, to=0, unused_for=DAY) == []
        assert [each.digest for each in await self.pruned(place, unused_for=30.0, dry_run=True)] == [blob.digest]
        place.now += 1
        assert [each.digest for each in await self.pruned(place, to=0)] == [blob.digest]

    async def test_remove(self, place: Place) -> None:
        """What is said, but for what is pinned; what nobody knows is no matter."""
        one, two = await place.blob(), await place.blob()
        place.retention.pins.kept = frozenset([two.digest])
        gone = await place.retention.remove([one.digest, two.digest, Digest.of(b"unknown")])
        assert [each.digest for each in gone] == [one.digest]
        assert place.dropped == [one.digest]
