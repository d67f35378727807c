"""Answers with status 200 that are not what they should be, and those that are right in an unusual way."""

import asyncio
import os

import pytest

from tests.e2e.client import begin, code, connect, rest
from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e bodies")]

WORKERS = (1, 2)
PLACES = 60
UPSTREAM = {"header_timeout": "1s", "idle_timeout": "1s", "revalidate_timeout": "1s"}

BUDGET = 3.0  # seconds: `fills.budget` of the service
MIB = 1 << 20


def left_over(place: Place) -> list[str]:
    """What of unfinished downloads the disk holds."""
    return [path.name for path in (place.proxy.cache / "partial").iterdir()]


# Wrong bytes.


async def test_wrong_bytes_of_a_blob(place: Place) -> None:
    """The client's transfer breaks before its last 64 KiB, nothing is kept, and the next pull is right."""
    data = os.urandom(2 * MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(corrupt=True))
    mismatches = await place.proxy.total("digest_mismatches_total", registry=place.registry)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.headers["Content-Length"] == str(len(data))
    assert len(answer.body) <= len(data) - (64 << 10)
    assert data.startswith(answer.body)
    assert not place.kept(digest).exists()
    assert left_over(place) == []
    assert await place.proxy.total("digest_mismatches_total", registry=place.registry) == mismatches + 1
    again = await place.get("blobs", digest)
    assert (again.complete, again.body) == (True, data)
    assert len(place.seen("cdn")) == 2


async def test_wrong_bytes_that_nobody_saw_yet(place: Place) -> None:
    """A blob of less than 64 KiB is fetched again within the same request: the client sees nothing of it."""
    data = os.urandom(1000)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(corrupt=True))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body) == (200, True, data)
    assert len(place.seen("cdn")) == 2


async def test_wrong_bytes_for_ever(place: Place) -> None:
    """The client gets no complete wrong blob, whatever it asks for, and the cache none at all."""
    data = os.urandom(300_000)
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(corrupt=True))
    whole = await place.get("blobs", digest)
    assert not (whole.status == 200 and whole.complete)
    end = await place.get("blobs", digest, Range=f"bytes={len(data) - 100}-")
    assert not (end.status == 206 and end.complete)
    assert not place.kept(digest).exists()
    await until(lambda: left_over(place) == [])


async def test_a_range_before_the_end_of_wrong_bytes(place: Place) -> None:
    """May go ahead: the bytes that it holds are not those that are checked last."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(corrupt=True))
    answer = await place.get("blobs", digest, Range="bytes=1000-1999")
    assert (answer.status, answer.complete, answer.body) == (206, True, data[1000:2000])


async def test_a_wrong_manifest(place: Place) -> None:
    """By its digest it is refused as a bad answer, and is not kept."""
    image = place.image()
    place.hub.script.always("manifest", Quirk(body=image.body + b" "))
    for reference in (image.manifest.digest, "1"):  # by tag: the digest that is told is another
        answer = await place.get("manifests", reference)
        assert (answer.status, code(answer)) == (502, {"1": "UNAVAILABLE"}.get(reference, "DIGEST_INVALID"))
    place.hub.script.clear()
    assert (await place.get("manifests", image.manifest.digest)).body == image.body


async def test_a_wrong_manifest_while_there_is_a_copy(place: Place) -> None:
    """A tag that seems to have moved to something broken is served as it was."""
    image = place.image()
    await place.get("manifests", "1")
    place.image()
    place.hub.script.always("manifest", Quirk(corrupt=True), method="GET")
    answer = await place.get("manifests", "1")
    assert (answer.body, answer.headers["Cache-Status"]) == (image.body, "mirrorproxy; fwd=stale")


# What is not even content.

ODD = {
    "a web page": Quirk(html=True),
    "compressed": Quirk(gzip=True),
    "an unknown encoding": Quirk(headers={"Content-Encoding": "aws-chunked"}),
}


@pytest.mark.parametrize("odd", ODD)
async def test_no_manifest(place: Place, odd: str) -> None:
    """502, and nothing of it is kept."""
    image = place.image()
    place.hub.script.always("manifest", ODD[odd])
    for reference in ("1", image.manifest.digest):
        answer = await place.get("manifests", reference)
        assert (answer.status, code(answer)) == (502, "UNAVAILABLE")
        assert (await place.head("manifests", reference)).status == 502
    assert not place.kept(image.manifest.digest).exists()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
async def test_no_blob(place: Place, odd: str, known: bool) -> None:
    """502 before any byte, whether a manifest named the blob or not; the next pull is right."""
    data = os.urandom(MIB)
    image = place.image(data)
    if known:
        await place.get("manifests", "1")
    digest = image.layers[0].digest
    place.hub.script.always("cdn", ODD[odd])
    answer = await place.get("blobs", digest)
    assert (answer.status, code(answer)) == (502, "UNAVAILABLE")
    assert not place.kept(digest).exists()
    place.hub.script.clear()
    assert (await place.get("blobs", digest)).body == data


async def test_nothing_compressed_is_asked_for(place: Place) -> None:
    """`Accept-Encoding: identity`, from registry, storage and all."""
    image = place.image()
    await place.get("manifests", "1", Accept_Encoding="gzip, br")
    await place.get("blobs", image.layers[0].digest, Accept_Encoding="gzip, br")
    await place.get("tags", "list", Accept_Encoding="gzip, br")
    assert {seen.headers.getall("Accept-Encoding")[0] for seen in place.seen()} == {"identity"}


# Lengths.


async def test_no_length(place: Place) -> None:
    """A manifest without Content-Length is read to its end; a blob gets its length from the manifest that names it."""
    data = os.urandom(MIB)
    image = place.image(data)
    for kind in ("manifest", "cdn"):
        place.hub.script.always(kind, Quirk(chunked=True))
    head = await place.head("manifests", "1")
    assert head.headers["Content-Length"] == str(image.manifest.size)
    answer = await place.get("manifests", "1")
    assert (answer.body, answer.headers["Content-Length"]) == (image.body, str(len(image.body)))
    answer = await place.get("blobs", image.layers[0].digest)
    assert (answer.body, answer.headers["Content-Length"]) == (data, str(len(data)))


async def test_no_length_at_all(place: Place) -> None:
    """A blob whose size neither upstream nor a manifest says comes in chunks; the next one has its length."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(chunked=True))
    answer = await place.get("blobs", digest)
    assert (answer.complete, answer.body) == (True, data)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    await until(lambda: place.kept(digest).exists())
    answer = await place.get("blobs", digest)
    assert (answer.body, answer.headers["Content-Length"]) == (data, str(len(data)))
    assert len(place.seen("cdn")) == 1


async def test_no_length_and_wrong_bytes(place: Place) -> None:
    """In chunks too a wrong blob never looks whole."""
    digest = place.blob(os.urandom(MIB))
    place.hub.script.always("cdn", Quirk(chunked=True, corrupt=True))
    answer = await place.get("blobs", digest)
    assert not (answer.status == 200 and answer.complete)
    assert not place.kept(digest).exists()


async def test_no_length_and_cut_off(place: Place) -> None:
    """The connection's end is not taken for the blob's."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(chunked=True, cut=300_000))
    answer = await place.get("blobs", digest)
    assert (answer.complete, answer.body) == (True, data)
    assert [seen.range for seen in place.seen("cdn")] == [None, "bytes=300000-"]


@pytest.mark.parametrize("extra", [-100, 100], ids=["short", "long"])
async def test_a_wrong_length_of_a_manifest(place: Place, extra: int) -> None:
    """Not served, not kept, and right once it is right."""
    image = place.image()
    place.hub.script.always("manifest", Quirk(length=extra), method="GET")
    assert (await place.get("manifests", "1")).status in (502, 504)
    assert (await place.get("manifests", image.manifest.digest)).status in (502, 504)
    assert not place.kept(image.manifest.digest).exists()
    place.hub.script.clear()
    assert (await place.get("manifests", "1")).body == image.body


@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
@pytest.mark.parametrize("extra", [-1000, 1000], ids=["short", "long"])
async def test_a_wrong_length_of_a_blob(place: Place, extra: int, known: bool) -> None:
    """The client never has a complete wrong blob; the next pull is right."""
    data = os.urandom(MIB)
    image = place.image(data)
    if known:
        await place.get("manifests", "1")
    digest = image.layers[0].digest
    place.hub.script.always("cdn", Quirk(length=extra))
    began = asyncio.get_running_loop().time()
    answer = await place.get("blobs", digest)
    assert not (answer.status == 200 and answer.complete)
    assert asyncio.get_running_loop().time() - began < BUDGET, "tried again and again"
    if known:
        assert answer.status == 502
    assert not place.kept(digest).exists()
    place.hub.script.clear()
    assert (await place.get("blobs", digest)).body == data


async def test_more_than_was_announced(place: Place) -> None:
    """Bytes after the end of a blob are not the blob's."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(surplus=b"HTTP/1.1 200 OK\r\n\r\n"))
    answer = await place.get("blobs", digest)
    assert (answer.complete, answer.body) == (True, data)


# Broken off, and slow.


BREAKS = {
    "an end": Quirk(cut=400_000),
    "a stall": Quirk(stall=400_000),
    "a reset": Quirk(cut=400_000, reset=True),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_transfer_that_breaks(place: Place, how: str) -> None:
    """Goes on from where it broke, under the client, which sees nothing of it. (A reset takes with it what was under
    way.)
    """
    quirk = BREAKS[how]
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", quirk, quirk)
    answer = await place.get("blobs", digest)
    assert (answer.complete, answer.body) == (True, data)
    first, second, third = place.seen("cdn")
    starts = [int(seen.range.removeprefix("bytes=").partition("-")[0]) for seen in (second, third) if seen.range]
    assert first.range is None
    if how == "a reset":
        assert 0 < starts[0] < starts[1] <= 800_000
    else:
        assert starts == [400_000, 800_000]


async def test_ranges_ignored_after_a_break(place: Place) -> None:
    """The whole instead of the rest: no byte twice, none missing."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=400_000), Quirk(ignore_range=True))
    answer = await place.get("blobs", digest)
    assert (answer.complete, answer.body) == (True, data)
    assert len(place.seen("cdn")) == 2


async def test_slow_headers(place: Place) -> None:
    """An answer that takes its time, but not too long, is waited for on every step of the way."""
    image = place.image()
    for kind in ("token", "manifest", "blob", "cdn", "tags"):
        place.hub.script.always(kind, Quirk(delay=0.3))
    answers = await asyncio.gather(
        place.get("manifests", "1"), place.get("blobs", image.layers[0].digest), place.get("tags", "list")
    )
    assert [answer.status for answer in answers] == [200] * 3
    assert len(place.seen("cdn")) == 1


async def test_headers_that_come_too_late(place: Place) -> None:
    """Are not waited for: the next try has the answer."""
    image = place.image()
    place.hub.script.next("manifest", Quirk(hold=asyncio.Event()))
    assert (await place.get("manifests", "1")).body == image.body


async def test_bytes_go_out_as_they_come(place: Place) -> None:
    """A client has what upstream sent so far, long before the rest is there."""
    data = os.urandom(4 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connect(place.proxy.address) as wire:
        headers, first = await begin(wire, place.path("blobs", digest), MIB)
        assert headers["Content-Length"] == str(len(data))
        assert first == data[:MIB]
        async with connect(place.proxy.address) as late:  # joins in mid-flight, from further on
            _, part = await begin(late, place.path("blobs", digest), 1000, {"Range": f"bytes={MIB - 1000}-"})
            assert part == data[MIB - 1000 : MIB]
            go_on.set()
            assert await late.reader.readexactly(3 * MIB) == data[MIB:]
        assert await wire.reader.readexactly(3 * MIB) == data[MIB:]
    assert len(place.seen("cdn")) == 1


async def test_the_end_waits_for_the_digest(place: Place) -> None:
    """The last 64 KiB go out when the whole is there and right."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB - 1, release=go_on))
    async with connect(place.proxy.address) as wire:
        _, first = await begin(wire, place.path("blobs", digest), MIB - (64 << 10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await wire.reader.readexactly(1)
        go_on.set()
        assert first + await wire.reader.readexactly(64 << 10) == data


# Tokens and redirects.


async def test_tokens_that_expire_on_the_way(place: Place) -> None:
    """One refresh for each, unseen by the client: between requests, and in the middle of a blob."""
    data = os.urandom(2 * MIB)
    image = place.image(data)
    await place.get("manifests", "1")
    assert len(place.seen("token")) == 1
    place.hub.revoke_tokens()
    place.hub.script.next("cdn", Quirk(cut=MIB))
    place.hub.script.when("cdn", lambda seen: place.hub.revoke_tokens())
    answer = await place.get("blobs", image.layers[0].digest)
    assert (answer.complete, answer.body) == (True, data)
    assert [seen.status for seen in place.seen("blob")] == [401, 307, 401, 307]
    assert len(place.seen("token")) == 3


async def test_a_token_is_used_until_it_ends(place: Place) -> None:
    """And not after it, by its own word: no request is made that can only bring a 401."""
    blobs = [place.blob(os.urandom(1000)) for _ in range(3)]
    for digest in blobs:
        await place.get("blobs", digest)
    assert len(place.seen("token")) == 1
    assert [seen.status for seen in place.seen("blob")] == [401, 307, 307, 307]
    assert len({seen.authorization for seen in place.seen("blob")}) == 2  # none, and that token


async def test_signatures_that_expire(place: Place) -> None:
    """A signed URL that is good no more in mid-transfer: the registry is asked for another."""
    data = os.urandom(2 * MIB)
    digest = place.blob(data)
    go_on = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on, cut=MIB + 1))
    async with connect(place.proxy.address) as wire:
        _, first = await begin(wire, place.path("blobs", digest), MIB)
        place.hub.expire_signatures()
        go_on.set()
        assert first + await wire.reader.readexactly(MIB) == data
    assert place.seen("cdn")[-1].status == 206
    assert len({seen.target for seen in place.seen("cdn")}) == 2


@pytest.mark.parametrize("lifetime", [None, 1, 1.5, 86_400])
async def test_lifetimes_of_tokens(place: Place, lifetime: float | None) -> None:
    """Whatever the token service says, or does not say: pulls go on."""
    place.hub.expires_in = lifetime
    try:
        for _ in range(4):
            assert (await place.get("blobs", place.blob(os.urandom(100)))).status == 200
    finally:
        place.hub.expires_in = 300
    assert len(place.seen("token")) <= 8


async def test_redirects(place: Place) -> None:
    """The signed URL is asked as it stands, byte for byte, and never with what the registry alone may see."""
    image = place.image()
    await place.get("manifests", "1")
    for digest in (image.config.digest, image.layers[0].digest):
        assert (await place.get("blobs", digest)).status == 200
    assert (await place.head("blobs", image.config.digest)).status == 200
    storage = place.seen("cdn")
    assert [seen.status for seen in storage] == [200, 200]
    assert all("%2B%2f~&X-Credential=hub%2Fus-east-1%7e" in seen.target for seen in storage)
    assert all("/docker//sha256~" in seen.target for seen in storage)
    assert {seen.authorization for seen in storage} == {None}
    assert {seen.authorization is None for seen in place.seen("blob")} == {False}


async def test_the_clients_own_words_stay_here(place: Place) -> None:
    """Nothing of a client's headers goes upstream: no authorization, cookie, agent, nor where it comes from."""
    digest = place.blob(os.urandom(9))
    words = {name: f"s3cr3t-{name}" for name in ("Authorization", "Cookie", "User-Agent", "X-Forwarded-For", "X-Any")}
    answer = await place.proxy.ask(f"{place.path('blobs', digest)}?ns={place.registry}", headers=words)
    assert answer.status == 200
    await place.proxy.ask(f"{place.path('tags', 'list')}?ns={place.registry}&n=5", headers=words)
    assert place.seen("tags")[-1].target.endswith("/tags/list?n=5")
    assert not [seen for seen in place.seen() if "s3cr3t" in f"{seen.target} {seen.headers}" or "ns=" in seen.target]


async def test_redirected_in_a_circle(place: Place) -> None:
    """Ends, as a bad answer."""
    digest = place.blob(os.urandom(9))
    around = f"{place.hub.url}/v2/{place.repository}/blobs/{digest}"
    place.hub.script.always("blob", Quirk(status=307, headers={"Location": around}))
    answer = await place.get("blobs", digest)
    assert answer.status == 502
    assert len(place.seen("blob")) <= 20


async def test_lists_that_are_none(place: Place) -> None:
    """A list that is not one is a bad answer, not "there are none"; so is a compressed one."""
    digest = place.image().manifest.digest
    for quirk in (Quirk(html=True), Quirk(body=b"{}"), Quirk(body=b"[]"), Quirk(gzip=True), Quirk(body=b"")):
        place.hub.script.always("referrers", quirk)
        place.hub.script.always("tags", quirk)
        assert (await place.get("referrers", digest)).status == 502
        assert (await place.get("tags", "list")).status == 502


async def test_a_transfer_that_breaks_for_good(place: Place) -> None:
    """The client's breaks too, though not at once; what came is kept, and the next pull goes on from there."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=MIB // 2))
    place.hub.script.always("cdn", Quirk(status=404, body=b"", headers={"Content-Type": "application/xml"}))
    async with connect(place.proxy.address) as wire:
        _, first = await begin(wire, place.path("blobs", digest), MIB // 2)
        assert len(first + await rest(wire)) == MIB // 2
    place.hub.script.clear()
    place.hub.log.clear()
    assert (await place.get("blobs", digest)).body == data
    assert [seen.range for seen in place.seen("cdn")] == [f"bytes={MIB // 2}-"]
