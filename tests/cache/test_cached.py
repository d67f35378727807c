"""The cache over an origin in memory: what is answered, and what the origin was asked for it."""

import asyncio
import json
import random
import threading
from contextlib import aclosing

import pytest

from mirrorproxy.cache import shelf as shelf_module
from mirrorproxy.errors import (
    BadAnswer,
    BlobUnknown,
    ManifestUnknown,
    MirrorproxyError,
    NameUnknown,
    NotFound,
    RateLimited,
    ServerFailed,
    TimedOut,
    Unauthorized,
    Unreachable,
)
from mirrorproxy.manifests import OCI_INDEX, OCI_MANIFEST, Contents
from mirrorproxy.names import Digest, Reference, Repository, Tag, repository
from mirrorproxy.registry import Blob, Manifest, Result
from mirrorproxy.store.records import TagRecord
from tests.cache.conftest import World

ALPINE = repository("docker.io", "alpine")
OTHER = repository("docker.io", "team/other")
LATEST = Tag("latest")
LAYER = random.Random(3).randbytes(200_000)


def image(world: World, *tags: str, layer: bytes = LAYER, place: object = ALPINE) -> Digest:
    """Put an image of one layer into the origin."""
    assert place in (ALPINE, OTHER)
    target = ALPINE if place == ALPINE else OTHER
    config = b'{"os": "linux"}'
    world.origin.put_blob(target, config)
    world.origin.put_blob(target, layer)
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest.of(config), "size": 15},
        "layers": [{"mediaType": "application/x-layer", "digest": Digest.of(layer), "size": len(layer)}],
    }
    return world.origin.put_manifest(target, json.dumps(document).encode(), OCI_MANIFEST, *tags)


async def read(blob: Blob) -> bytes:
    """All of a blob."""
    async with aclosing(blob):
        return b"".join([chunk async for chunk in blob.chunks(0, None)])


async def test_a_tag_is_one_get_cold_and_nothing_warm(world: World) -> None:
    """GET by tag once; within the TTL nothing more, by tag, by digest, HEAD or GET."""
    digest = image(world, "latest")
    cold = await world.cached.manifest(ALPINE, LATEST)
    assert cold.descriptor.digest == digest
    assert (cold.outcome.result, cold.outcome.stored) == (Result.MISS, True)
    assert world.asked() == ["manifest"]
    world.clock.now += 299
    warm = await world.cached.manifest(ALPINE, LATEST)
    assert (warm.body, warm.outcome.result, warm.outcome.age) == (cold.body, Result.HIT, 299)
    assert (await world.cached.manifest(ALPINE, digest)).outcome.result is Result.HIT
    assert (await world.cached.resolve(ALPINE, LATEST)).descriptor == cold.descriptor
    assert (await world.cached.resolve(ALPINE, digest)).descriptor == cold.descriptor
    assert world.asked() == []


async def test_a_head_stays_a_head(world: World) -> None:
    """HEAD of an unknown tag, then GET by digest: one HEAD and one GET, and the tag is cached from then on."""
    digest = image(world, "latest")
    assert (await world.cached.resolve(ALPINE, LATEST)).descriptor.digest == digest
    await world.cached.manifest(ALPINE, digest)
    assert world.asked() == ["resolve", "manifest"]
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.HIT
    assert (await world.again().manifest(ALPINE, LATEST)).outcome.result is Result.HIT, "after a restart too"
    assert world.asked() == []


@pytest.mark.parametrize("cached_as", ["another tag", "another repository's"])
@pytest.mark.parametrize("then", ["nothing", "a GET by digest", "a GET by tag"])
async def test_a_tag_of_what_is_here_already(world: World, cached_as: str, then: str) -> None:
    """`1.27` is often `latest`. A client's HEAD is enough for the tag to be served when upstream is away, whatever the
    client goes on to ask.
    """
    digest = image(world, "latest", "1.27")
    if cached_as == "another tag":
        await world.cached.manifest(ALPINE, LATEST)
    else:
        image(world, "latest", place=OTHER)
        await world.cached.manifest(OTHER, LATEST)
    world.asked()
    await world.cached.resolve(ALPINE, Tag("1.27"))
    if then != "nothing":
        await world.cached.manifest(ALPINE, digest if then == "a GET by digest" else Tag("1.27"))
    assert world.asked() == ["resolve"]
    world.clock.now += 301
    for method in ("resolve", "manifest"):
        world.origin.fail(method, Unreachable("it is away"))
    again = world.again()
    assert (await again.resolve(ALPINE, Tag("1.27"))).outcome.result is Result.STALE
    served = await again.manifest(ALPINE, Tag("1.27"))
    assert (served.descriptor.digest, served.outcome.result) == (digest, Result.STALE)


async def test_an_old_tag_is_checked_by_head(world: World) -> None:
    """Unchanged: one HEAD, then fresh again."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.clock.now += 301
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.REVALIDATED
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.HIT
    assert world.asked() == ["manifest", "resolve"]


async def test_a_moved_tag_is_fetched_by_its_new_digest(world: World) -> None:
    """One HEAD, one GET by digest."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    new = image(world, "latest", layer=b"new")
    world.clock.now += 301
    moved = await world.cached.manifest(ALPINE, LATEST)
    assert (moved.descriptor.digest, moved.outcome.result) == (new, Result.MISS)
    assert world.origin.asked[-1].endswith(new)
    assert world.asked() == ["manifest", "resolve", "manifest"]


async def test_a_tag_that_moved_back_costs_no_get(world: World) -> None:
    """The manifest is here already: the HEAD is enough."""
    old = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    image(world, "latest", layer=b"new")
    world.clock.now += 301
    await world.cached.manifest(ALPINE, LATEST)
    image(world, "latest")
    world.clock.now += 301
    world.asked()
    assert (await world.cached.manifest(ALPINE, LATEST)).descriptor.digest == old
    assert world.asked() == ["resolve"]


async def test_fifty_clients_make_one_check(world: World) -> None:
    """Cold and stale alike."""
    image(world, "latest")
    found = await asyncio.gather(*(world.cached.manifest(ALPINE, LATEST) for _ in range(50)))
    assert sorted(manifest.outcome.result for manifest in found) == ["coalesced"] * 49 + ["miss"]
    world.clock.now += 301
    await asyncio.gather(*(world.cached.manifest(ALPINE, LATEST) for _ in range(50)))
    assert world.asked() == ["manifest", "resolve"]


TROUBLE = [
    Unreachable("no route"),
    TimedOut("nothing came"),
    BadAnswer("HTML"),
    Unauthorized("401"),
    RateLimited("429", retry_after=60),
    ServerFailed("503"),
]


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
async def test_whatever_fails_upstream_the_cached_tag_is_served(world: World, error: MirrorproxyError) -> None:
    """Stale, for GET and HEAD, and upstream is left alone for a while."""
    digest = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.origin.fail("resolve", error)
    world.clock.now += 301
    world.asked()
    stale = await world.cached.manifest(ALPINE, LATEST)
    assert (stale.descriptor.digest, stale.outcome.result, stale.outcome.age) == (digest, Result.STALE, 301)
    assert (await world.cached.resolve(ALPINE, LATEST)).outcome.result is Result.STALE
    assert world.asked() == ["resolve"]
    world.origin.fail("resolve", None)
    world.clock.now += 11
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.REVALIDATED


async def test_a_slow_upstream_does_not_keep_a_cached_tag(world: World) -> None:
    """After its patience the cache serves what it has; the check goes on, and counts when it ends."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.clock.now += 301
    gate = world.origin.hold("resolve")
    assert (await asyncio.wait_for(world.cached.manifest(ALPINE, LATEST), 2)).outcome.result is Result.STALE
    gate.set()
    await asyncio.sleep(0.05)
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.HIT


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
async def test_an_outage_is_never_not_found(world: World, error: MirrorproxyError) -> None:
    """Nothing cached: the client hears what is wrong."""
    for method in ("resolve", "manifest", "stat", "blob", "tags", "referrers"):
        world.origin.fail(method, error)
    digest = Digest.of(b"x")
    calls = [
        world.cached.manifest(ALPINE, LATEST),
        world.cached.resolve(ALPINE, LATEST),
        world.cached.manifest(ALPINE, digest),
        world.cached.stat(ALPINE, digest),
        world.cached.blob(ALPINE, digest),
        world.cached.tags(ALPINE),
        world.cached.referrers(ALPINE, digest),
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(error)] * 7


async def test_gone_upstream_is_an_answer(world: World) -> None:
    """404 from a healthy upstream: the tag is forgotten, and not asked for again within the negative TTL."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.clock.now += 301
    world.origin.fail("resolve", NameUnknown("gone"))
    world.origin.fail("manifest", NameUnknown("gone"))
    with pytest.raises(NameUnknown) as first:
        await world.cached.manifest(ALPINE, LATEST)
    assert not first.value.negative
    world.asked()
    with pytest.raises(NotFound) as second:
        await world.cached.manifest(ALPINE, LATEST)
    assert second.value.negative
    assert world.asked() == []
    world.clock.now += 11
    world.origin.fail("manifest", None)
    await world.cached.manifest(ALPINE, LATEST)


async def test_an_upstream_that_contradicts_itself_is_no_answer(world: World) -> None:
    """A HEAD says that the tag moved, to a manifest that a GET does not find: what is cached is served, and stays."""
    old = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    new = image(world, "latest", layer=b"new")
    lacking = world.origin._manifests[ALPINE, new]

    async def manifest(place: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        raise ManifestUnknown("not yet")

    real, world.origin.manifest = world.origin.manifest, manifest  # type: ignore[method-assign,assignment]  # it lags
    for _ in range(3):
        world.clock.now += 301
        served = await world.cached.manifest(ALPINE, LATEST)
        assert (served.descriptor.digest, served.outcome.result) == (old, Result.STALE)
    with pytest.raises(BadAnswer):
        await world.cached.refresh(ALPINE, LATEST)
    world.origin.manifest = real  # type: ignore[method-assign]
    world.clock.now += 301
    assert (await world.cached.manifest(ALPINE, LATEST)).descriptor == lacking.descriptor


async def test_no_cache_asks_now(world: World) -> None:
    """A client that wants the newest gets it, however fresh the record; a dead upstream still does not fail it."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    new = image(world, "latest", layer=b"new")
    assert (await world.cached.manifest(ALPINE, LATEST, fresh=True)).descriptor.digest == new
    world.origin.fail("resolve", Unreachable("no"))
    assert (await world.cached.manifest(ALPINE, LATEST, fresh=True)).outcome.result is Result.STALE


async def test_to_refresh_is_no_use(world: World) -> None:
    """Neither of what the tag pointed at nor of what it points at now, but that the manifest is new. A pull is one."""
    old = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    assert world.uses == [(old, False), (old, True)]
    world.uses.clear()
    await world.cached.refresh(ALPINE, LATEST)
    assert world.uses == []
    new = image(world, "latest", layer=LAYER[1:])
    await world.cached.refresh(ALPINE, LATEST)
    await world.cached.refresh(ALPINE, LATEST)
    assert world.uses == [(new, False)]
    image(world, "latest")
    await world.cached.refresh(ALPINE, LATEST)
    assert world.uses == [(new, False)]
    await world.cached.resolve(ALPINE, LATEST)
    await world.cached.manifest(ALPINE, old)
    assert world.uses[1:] == [(old, True)] * 2


async def test_since_when_a_tag_points_there(world: World) -> None:
    """By its own record: neither a check nor what was promoted before it changes that; when it moves it is new."""
    digest = image(world, "rc", "latest")
    since = world.clock.now
    await world.cached.manifest(ALPINE, Tag("rc"))
    world.clock.now += 1000
    await world.cached.manifest(ALPINE, LATEST)
    for seconds in (1000, 1000):
        world.clock.now += seconds
        for tag, start in (("rc", since), ("latest", since + 1000)):
            await world.cached.manifest(ALPINE, Tag(tag))
            record = await world.index.tag(ALPINE, Tag(tag))
            assert record == TagRecord(digest, world.clock.now, None, start)
    moved = image(world, "latest", layer=LAYER[1:])
    now = world.clock.now = world.clock.now + 1000
    await world.cached.manifest(ALPINE, LATEST)
    assert await world.index.tag(ALPINE, LATEST) == TagRecord(moved, now, None, now)


async def test_ttl_zero_asks_each_time(world: World) -> None:
    """`tag_ttl: 0s`."""
    image(world, "latest")
    cached = world.again(tag_ttl=0.0)
    for _ in range(3):
        await cached.manifest(ALPINE, LATEST)
    assert world.asked() == ["manifest", "resolve", "resolve"]


async def test_a_clock_set_back_asks_upstream(world: World) -> None:
    """A record from the future is not believed for ever."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.clock.now -= 10_000
    assert (await world.cached.manifest(ALPINE, LATEST)).outcome.result is Result.REVALIDATED


async def test_a_cold_blob_is_one_get_for_all(world: World) -> None:
    """50 clients, one GET; then none."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    world.asked()
    digest = Digest.of(LAYER)
    blobs = await asyncio.gather(*(world.cached.blob(ALPINE, digest) for _ in range(50)))
    assert await asyncio.gather(*(read(blob) for blob in blobs)) == [LAYER] * 50
    assert world.asked() == ["blob"]
    await world.fills.drain(2)
    hit = await world.cached.blob(ALPINE, digest)
    assert (hit.outcome.result, hit.size) == (Result.HIT, len(LAYER))
    assert await read(hit) == LAYER
    assert world.asked() == []


async def test_fifty_clients_of_a_blob_that_no_manifest_named(world: World) -> None:
    """The flight's own answer says that the repository has it: still one GET."""
    digest = world.origin.put_blob(ALPINE, LAYER)
    blobs = await asyncio.gather(*(world.cached.blob(ALPINE, digest) for _ in range(50)))
    assert await asyncio.gather(*(read(blob) for blob in blobs)) == [LAYER] * 50
    await world.fills.drain(2)
    assert await read(await world.cached.blob(ALPINE, digest)) == LAYER
    assert world.asked() == ["blob"]


async def test_a_blob_of_another_repository_needs_this_ones_word(world: World) -> None:
    """The bytes are here; whether this repository has them is one HEAD, remembered; a "no" is a 404."""
    digest = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    layer = Digest.of(LAYER)
    await read(await world.cached.blob(ALPINE, layer))
    await world.fills.drain(2)
    world.asked()
    with pytest.raises(NotFound):
        await world.cached.blob(OTHER, layer)
    with pytest.raises(NotFound):
        await world.cached.manifest(OTHER, digest)
    assert world.asked() == ["stat", "resolve"]
    world.clock.now += 11
    image(world, "1", place=OTHER)
    assert await read(await world.cached.blob(OTHER, layer)) == LAYER
    assert await read(await world.cached.blob(OTHER, layer)) == LAYER
    assert (await world.cached.manifest(OTHER, digest)).descriptor.digest == digest
    assert world.asked() == ["stat", "resolve"]


async def test_a_running_fill_is_not_joined_without_the_repositorys_word(world: World) -> None:
    """Somebody else's download tells nobody what it is."""
    growth = world.origin.put_growing(ALPINE, LAYER)
    digest = Digest.of(LAYER)
    joined = await world.cached.blob(ALPINE, digest)
    with pytest.raises(NotFound):
        await world.cached.blob(OTHER, digest)
    growth.finish()
    assert await read(joined) == LAYER
    assert world.asked() == ["blob", "stat"]


async def test_head_of_a_blob_never_begins_a_transfer(world: World) -> None:
    """Named by a manifest: nothing asked. Unknown: one HEAD upstream, remembered."""
    image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    loose = world.origin.put_blob(ALPINE, b"loose")
    world.asked()
    assert (await world.cached.stat(ALPINE, Digest.of(LAYER))).descriptor.size == len(LAYER)
    assert (await world.cached.stat(ALPINE, loose)).descriptor.size == 5
    assert (await world.cached.stat(ALPINE, loose)).outcome.result is Result.HIT
    assert world.asked() == ["stat"]


async def test_a_layer_is_never_served_as_a_manifest(world: World) -> None:
    """Cached content that a manifest calls a layer, asked for at /manifests/: upstream is asked, and says no."""
    body = b'{"schemaVersion": 2, "mediaType": "' + OCI_INDEX.encode() + b'", "manifests": []}'
    image(world, "latest", layer=body)
    await world.cached.manifest(ALPINE, LATEST)
    await read(await world.cached.blob(ALPINE, Digest.of(body)))
    await world.fills.drain(2)
    with pytest.raises(NotFound):
        await world.cached.manifest(ALPINE, Digest.of(body))


async def test_an_unknown_blob_is_believed_unknown_for_a_while(world: World) -> None:
    """One question within the negative TTL, and the next answer is from memory."""
    image(world, "latest")
    digest = Digest.of(b"nobody has this")
    for negative in (False, True):
        with pytest.raises(BlobUnknown) as caught:
            await world.cached.blob(ALPINE, digest)
        assert caught.value.negative is negative
    assert world.asked() == ["blob"]
    world.clock.now += 11
    world.origin.put_blob(ALPINE, b"nobody has this")
    assert await read(await world.cached.blob(ALPINE, digest)) == b"nobody has this"


async def test_everything_is_served_with_upstream_gone_after_a_restart(world: World) -> None:
    """By tag and digest, manifests and blobs, HEAD and GET."""
    digest = image(world, "latest")
    await world.cached.manifest(ALPINE, LATEST)
    await read(await world.cached.blob(ALPINE, Digest.of(LAYER)))
    await world.cached.tags(ALPINE, "n=5")
    await world.fills.drain(2)
    for method in ("resolve", "manifest", "stat", "blob", "tags", "referrers"):
        world.origin.fail(method, Unreachable("gone"))
    world.clock.now += 86_400
    again = world.again()
    assert (await again.manifest(ALPINE, LATEST)).descriptor.digest == digest
    assert (await again.resolve(ALPINE, LATEST)).descriptor.digest == digest
    assert (await again.manifest(ALPINE, digest)).descriptor.digest == digest
    assert await read(await again.blob(ALPINE, Digest.of(LAYER))) == LAYER
    assert (await again.stat(ALPINE, Digest.of(LAYER))).descriptor.size == len(LAYER)
    listing = await again.tags(ALPINE, "n=5")
    assert (json.loads(listing.body)["tags"], listing.outcome.result) == (["latest"], Result.STALE)
    with pytest.raises(Unreachable):
        await again.referrers(ALPINE, digest)


async def test_referrers_are_served_from_the_last_answer(world: World) -> None:
    """Fresh while upstream answers; the last answer while it does not; another query is another answer."""
    digest = image(world, "latest")
    signature = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/x-signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest.of(b"{}"), "size": 2},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1},
    }
    world.origin.put_manifest(ALPINE, json.dumps(signature).encode(), OCI_MANIFEST)
    fresh = await world.cached.referrers(ALPINE, digest)
    world.origin.fail("referrers", ServerFailed("503"))
    stale = await world.cached.referrers(ALPINE, digest)
    assert (stale.body, stale.outcome.result) == (fresh.body, Result.STALE)
    assert len(json.loads(stale.body)["manifests"]) == 1
    with pytest.raises(ServerFailed):
        await world.cached.referrers(ALPINE, digest, "artifactType=other")


async def test_two_registries_with_the_same_names_do_not_mix(world: World) -> None:
    """The same repository name and tag at another registry is another image."""
    image(world, "latest")
    there = repository("ghcr.io", "library/alpine")
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    other = world.origin.put_manifest(there, body, OCI_INDEX, "latest")
    assert (await world.cached.manifest(ALPINE, LATEST)).descriptor.digest != other
    assert (await world.cached.manifest(there, LATEST)).descriptor.digest == other


async def test_a_huge_manifest_is_not_parsed_on_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 3 MB takes 50 ms, in which nobody else would be served; a usual one is not worth a thread."""
    threads: list[bool] = []
    parse = shelf_module.parse  # type: ignore[attr-defined]  # as it is used there

    def noted(body: bytes, media_type: str) -> Contents:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(body, media_type)

    monkeypatch.setattr(shelf_module, "parse", noted)
    for filler in (10, 100_000):
        body = json.dumps({"schemaVersion": 2, "config": {}, "annotations": {"x": "y" * filler}}).encode()
        digest = world.origin.put_manifest(ALPINE, body, OCI_MANIFEST, "latest")
        await world.cached.manifest(ALPINE, digest)
        world.shelf.forget(digest)
        assert (await world.cached.manifest(ALPINE, digest)).outcome.result is Result.HIT
    assert threads == [True, False]
