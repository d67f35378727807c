"""Several endpoints for one upstream: in order, within one request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from mirrorproxy.errors import (
    BlobUnknown,
    DigestMismatch,
    ManifestUnknown,
    RateLimited,
    ServerFailed,
    Unauthorized,
    Unreachable,
)
from mirrorproxy.names import Digest, Tag
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

TAG = Tag("3.20")
ABSENT = Tag("absent")


@pytest.fixture
async def hubs() -> AsyncIterator[list[Hub]]:
    """Three registries that have the same image."""
    async with AsyncExitStack() as stack:
        hubs = [Hub(auth="none", redirects=False) for _ in range(3)]
        for hub in hubs:
            hub.add_image(ALPINE.name, TAG, b"layer")
            await stack.enter_async_context(hub)
        yield hubs


@pytest.fixture
def upstream(hubs: list[Hub], connected: Connect) -> Failover:
    """One upstream that is all three."""
    return connected(hubs[0], endpoints=[hub.url for hub in hubs])


def counts(hubs: list[Hub]) -> list[int]:
    """How often each was asked."""
    return [hub.count() for hub in hubs]


async def test_the_first_one_answers(hubs: list[Hub], upstream: Failover) -> None:
    """The others are not asked."""
    for _ in range(5):
        await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [5, 0, 0]


@pytest.mark.parametrize(
    "quirk",
    [
        Quirk(reset=True),
        Quirk(status=500),
        Quirk(status=429),
        Quirk(status=401),
        Quirk(status=403),
        Quirk(html=True),
        Quirk(gzip=True),
        Quirk(status=404, html=True),
    ],
)
async def test_the_next_one_answers(hubs: list[Hub], upstream: Failover, quirk: Quirk) -> None:
    """Within the same request, at once, whatever is wrong with the first."""
    hubs[0].script.always("manifest", quirk)
    began = asyncio.get_running_loop().time()
    await upstream.manifest(ALPINE, TAG)
    assert asyncio.get_running_loop().time() - began < 0.2
    assert counts(hubs) == [1, 1, 0]


async def test_one_that_is_down_is_asked_last(hubs: list[Hub], upstream: Failover) -> None:
    """Not first each time: that would cost each request its timeout."""
    await hubs[0].stop()
    for _ in range(5):
        await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [0, 5, 0]
    await hubs[0].start()
    await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [0, 6, 0]
    assert len(list(upstream.troubles())) == 1


async def test_one_that_is_back_is_asked_first_again(
    hubs: list[Hub], upstream: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its cool-down."""
    monkeypatch.setattr("mirrorproxy.upstream.health._FIRST_COOL_DOWN", 0.1)
    hubs[0].script.next("manifest", Quirk(reset=True))
    await upstream.manifest(ALPINE, TAG)
    await asyncio.sleep(0.15)
    await upstream.manifest(ALPINE, TAG)
    await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [3, 1, 0]
    assert list(upstream.troubles()) == []


async def test_all_of_them_are_tried_again(hubs: list[Hub], upstream: Failover) -> None:
    """After a moment, where all failed in a way that may pass."""
    for hub in hubs:
        hub.script.next("manifest", Quirk(status=503))
    await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [2, 1, 1]


@pytest.mark.parametrize("wait", ["3", "60"])
@pytest.mark.parametrize("status", [429, 503])
async def test_who_asks_for_time_keeps_back_no_other(
    hubs: list[Hub], connected: Connect, status: int, wait: str
) -> None:
    """The first one's `Retry-After` is its own: the second, whose trouble may pass, is asked again in a moment."""
    upstream = connected(hubs[0], endpoints=[hub.url for hub in hubs[:2]])
    hubs[0].script.always("manifest", Quirk(status=status, headers={"Retry-After": wait}))
    hubs[1].script.next("manifest", Quirk(status=500))
    began = asyncio.get_running_loop().time()
    await upstream.manifest(ALPINE, TAG)
    assert asyncio.get_running_loop().time() - began < 1
    assert counts(hubs) == [1, 2, 0]


async def test_the_wait_is_for_the_soonest(hubs: list[Hub], connected: Connect) -> None:
    """What is said when nobody has an answer: no `Retry-After` where one may have it in a moment, else the least."""
    upstream = connected(hubs[0], endpoints=[hub.url for hub in hubs])
    hubs[0].script.always("manifest", Quirk(status=429, headers={"Retry-After": "90"}))
    hubs[1].script.always("manifest", Quirk(status=403))
    hubs[2].script.always("manifest", Quirk(status=503, headers={"Retry-After": "30"}))
    with pytest.raises(RateLimited) as caught:
        await upstream.manifest(ALPINE, TAG)
    assert caught.value.retry_after == 30
    hubs[2].script.always("blob", Quirk(status=502))
    hubs[1].script.always("blob", Quirk(status=403))
    hubs[0].script.always("blob", Quirk(status=429, headers={"Retry-After": "90"}))
    with pytest.raises(RateLimited) as caught:
        await upstream.blob(ALPINE, Digest.of(b"layer"))
    assert caught.value.retry_after is None


async def test_all_of_them_are_down(hubs: list[Hub], upstream: Failover) -> None:
    """The first one's error, with the words of all."""
    await hubs[0].stop()
    hubs[1].script.always("manifest", Quirk(status=500))
    hubs[2].script.always("manifest", Quirk(status=403))
    with pytest.raises(Unreachable) as caught:
        await upstream.manifest(ALPINE, TAG)
    for words in ("connection refused", "failed with status 500", "does not allow this"):
        assert words in caught.value.message
    assert counts(hubs)[1:] == [3, 3]


async def test_not_found_by_the_first_is_final(hubs: list[Hub], upstream: Failover) -> None:
    """A healthy endpoint said so."""
    with pytest.raises(ManifestUnknown):
        await upstream.manifest(ALPINE, ABSENT)
    assert counts(hubs) == [1, 0, 0]


@pytest.mark.parametrize("quirk", [Quirk(status=500), Quirk(reset=True), Quirk(status=401), Quirk(html=True)])
async def test_not_found_by_a_later_one_is_not(hubs: list[Hub], upstream: Failover, quirk: Quirk) -> None:
    """Where an earlier one failed: it may have what a mirror lacks, and clients take a 404 for final."""
    hubs[0].script.always("manifest", quirk)
    with pytest.raises((ServerFailed, Unreachable, Unauthorized, Exception)) as caught:
        await upstream.manifest(ALPINE, ABSENT)
    assert not isinstance(caught.value, ManifestUnknown)


async def test_a_later_one_may_have_it_all_the_same(hubs: list[Hub], upstream: Failover) -> None:
    """The second lacks it and the first is down: the third is asked."""
    await hubs[0].stop()
    hubs[1].remove(ALPINE.name)
    hubs[1].add_image(ALPINE.name, "other", b"x")
    await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [0, 1, 1]


async def test_not_found_is_final_when_the_first_says_so_after_all(hubs: list[Hub], upstream: Failover) -> None:
    """It is asked last while it cools down, and its word counts."""
    hubs[0].script.next("manifest", Quirk(status=500))
    await upstream.manifest(ALPINE, TAG)
    with pytest.raises(ManifestUnknown):
        await upstream.manifest(ALPINE, ABSENT)
    assert counts(hubs) == [2, 2, 1]


async def test_an_embargo_moves_on_to_the_next(hubs: list[Hub], upstream: Failover) -> None:
    """Who asks to be left alone is; and when all do, it is said for how long."""
    hubs[0].script.always("manifest", Quirk(status=429, headers={"Retry-After": "60"}))
    for _ in range(3):
        await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [1, 3, 0]
    for hub in hubs[1:]:
        hub.script.always("manifest", Quirk(status=429, headers={"Retry-After": "30"}))
    for _ in range(3):
        with pytest.raises(RateLimited):
            await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [1, 4, 1]


async def test_a_blob_goes_on_at_another_endpoint(hubs: list[Hub], upstream: Failover) -> None:
    """A transfer that breaks puts its endpoint last: the rest comes from the next one."""
    hubs[0].script.always("blob", Quirk(cut=2))
    digest = Digest.of(b"layer")
    async with aclosing(await upstream.blob(ALPINE, digest)) as blob:
        assert await read(blob, 0, 2) == b"la"
        with pytest.raises(Unreachable):
            await read(blob, 2)
    async with aclosing(await upstream.blob(ALPINE, digest, 2)) as blob:
        assert await read(blob, 2) == b"yer"
    assert counts(hubs) == [1, 1, 0]
    assert hubs[1].log[0].range == "bytes=2-"


async def test_who_sent_wrong_bytes_is_asked_last(hubs: list[Hub], upstream: Failover) -> None:
    """As soon as somebody blames it."""
    async with aclosing(await upstream.blob(ALPINE, Digest.of(b"layer"))) as blob:
        await read(blob)
        blob.blame(DigestMismatch("wrong"))
    await upstream.manifest(ALPINE, TAG)
    assert counts(hubs) == [1, 1, 0]


async def test_wrong_bytes_of_a_manifest_come_right_from_the_next(hubs: list[Hub], upstream: Failover) -> None:
    """A lying mirror is harmless for digests."""
    digest = hubs[0].stock(ALPINE.name).tags[TAG]
    hubs[0].script.always("manifest", Quirk(corrupt=True))
    assert Digest.of((await upstream.manifest(ALPINE, digest)).body) == digest
    assert counts(hubs) == [1, 1, 0]


async def test_an_endpoint_with_a_path(connected: Connect) -> None:
    """A cache of the site's in front, asked at `/docker.io/v2/...`."""
    async with Hub(auth="none") as hub:
        upstream = connected(hub, endpoints=[f"{hub.url}/docker.io"])
        hub.script.always("base", Quirk(status=404))
        with pytest.raises(ManifestUnknown):
            await upstream.manifest(ALPINE, TAG)
        with pytest.raises(BlobUnknown):
            await upstream.blob(ALPINE, Digest.of(b""))
        assert [seen.target for seen in hub.log] == [
            f"/docker.io/v2/{ALPINE.name}/manifests/{TAG}",
            f"/docker.io/v2/{ALPINE.name}/blobs/{Digest.of(b'')}",
        ]


async def test_tokens_are_an_endpoints_own(connected: Connect) -> None:
    """One endpoint's token is nothing to the other, nor its realm."""
    async with Hub() as first, Hub() as second:
        for hub in (first, second):
            hub.add_image(ALPINE.name, TAG, b"layer")
        realms = [first.token_service.origin, second.token_service.origin]
        upstream = connected(first, endpoints=[first.url, second.url], token_realms=realms)
        await upstream.manifest(ALPINE, TAG)
        first.script.always("manifest", Quirk(status=500))
        await upstream.manifest(ALPINE, TAG)
        given = [{seen.authorization for seen in hub.seen("manifest") if seen.authorization} for hub in (first, second)]
        assert [len(tokens) for tokens in given] == [1, 1]
        assert given[0].isdisjoint(given[1])
