"""Content of every kind and in every part, from the cache and while it comes."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator

import pytest

from mirrorproxy import manifests
from mirrorproxy.names import Digest
from tests.e2e.client import begin, connect
from tests.e2e.conftest import Place
from tests.e2e.proxy import Proxy
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e content")]

WORKERS = (1, 2)
MIB = 1 << 20
PLACES = 30


@pytest.fixture(autouse=True)
def _nothing_to_tell(proxy: Proxy) -> Iterator[None]:
    """All of this is everyday."""
    yield
    assert [line for line in proxy.log() if line["level"] != "info"] == []


@pytest.mark.parametrize(
    "media_type",
    [
        manifests.OCI_MANIFEST,
        manifests.OCI_INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ],
)
async def test_manifests_of_every_kind(place: Place, media_type: str) -> None:
    """Byte for byte, with their own media type, whatever the client accepts; also from memory and disk."""
    key = "manifests" if "index" in media_type or "list" in media_type else "layers"
    odd = json.dumps({"schemaVersion": 2, "mediaType": media_type, key: [], "z": place.repository}, indent=7)
    body = f"\n{odd} \n".encode()
    digest = place.hub.add_manifest(place.repository, body, "1", media_type=media_type).digest
    for _ in range(2):
        for reference in ("1", digest):
            answer = await place.get("manifests", reference, Accept="application/json")
            assert (answer.body, answer.headers["Content-Type"]) == (body, media_type)
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["ETag"] == f'"{digest}"'
            head = await place.head("manifests", reference)
            assert head.headers["Content-Type"] == media_type
            assert head.headers["Content-Length"] == str(len(body))


async def test_sha512(place: Place) -> None:
    """Manifests and blobs by a digest of the other algorithm, checked by it."""
    data = os.urandom(MIB)
    stock = place.hub.stock(place.repository)
    blob = Digest(f"sha512:{hashlib.sha512(data).hexdigest()}")
    stock.blobs[blob] = data
    body = json.dumps({"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "layers": []}).encode()
    manifest = Digest(f"sha512:{hashlib.sha512(body).hexdigest()}")
    stock.manifests[manifest] = (manifests.OCI_MANIFEST, body)
    for _ in range(2):
        assert (await place.get("blobs", blob)).body == data
        assert (await place.get("manifests", manifest)).body == body
        await place.proxy.idle()
    assert place.kept(blob).read_bytes() == data
    assert len(place.seen("cdn")) == 1


async def test_conditions(place: Place) -> None:
    """304 to a client that has it, by tag and digest, alone or in a list; nothing for one that has another."""
    image = place.image()
    digest = image.manifest.digest
    for reference in ("1", digest):
        for condition in (f'"{digest}"', f'"x", W/"{digest}"', "*", digest):
            answer = await place.get("manifests", reference, If_None_Match=condition)
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["ETag"] == f'"{digest}"'
        assert (await place.get("manifests", reference, If_None_Match='"x"')).body == image.body
    layer = image.layers[0].digest
    assert (await place.get("blobs", layer, If_None_Match=f'"{layer}"')).status == 304
    assert place.seen("cdn") == [], "a client that has it caused a download"


RANGES = {
    "the first byte": ("bytes=0-0", 0, 1),
    "the middle": ("bytes=1000000-1999999", 1_000_000, 2_000_000),
    "the end, open": ("bytes=2000000-", 2_000_000, None),
    "the end, and beyond": ("bytes=2000000-9999999999", 2_000_000, None),
    "a suffix": ("bytes=-1000", -1000, None),
    "a suffix longer than all": ("bytes=-9999999999", 0, None),
    "all": ("bytes=0-", 0, None),
}


@pytest.mark.parametrize("which", RANGES)
@pytest.mark.parametrize("state", ["cold", "coming", "cached"])
async def test_ranges(place: Place, which: str, state: str) -> None:
    """206 with just these bytes, cold, from a download under way and from the cache; each byte is fetched once."""
    text, start, end = RANGES[which]
    data = os.urandom(3 * MIB)
    digest = place.image(data).layers[0].digest
    await place.get("manifests", "1")
    go_on = asyncio.Event()
    if state == "coming":
        place.hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with connect(place.proxy.address) as wire:
        if state != "cold":
            await begin(wire, place.path("blobs", digest), 1000)
        if state == "cached":
            await place.proxy.idle()
        wanted = asyncio.get_running_loop().create_task(place.get("blobs", digest, Range=text))
        await asyncio.sleep(0.05)
        go_on.set()
        answer = await wanted
    assert (answer.status, answer.complete, answer.body == data[start:end]) == (206, True, True)
    first = start % len(data)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.body) - 1}/{len(data)}"
    await place.proxy.idle()
    assert place.kept(digest).read_bytes() == data
    assert sum(seen.sent for seen in place.seen("cdn")) == len(data)


async def test_conditions_of_ranges(place: Place) -> None:
    """`If-Range`: the part where it is still this content (it always is), the whole for any other or a date."""
    data = os.urandom(MIB)
    digest = place.blob(data)
    for condition, status in ((f'"{digest}"', 206), ('"other"', 200), ("Tue, 01 Jan 2030 00:00:00 GMT", 200)):
        answer = await place.get("blobs", digest, Range="bytes=5-9", If_Range=condition)
        assert (answer.status, answer.body) == (status, data[5:10] if status == 206 else data)
    answer = await place.get("blobs", digest, Range="bytes=5-9,20-30")
    assert (answer.status, answer.body) == (200, data)
    answer = await place.get("blobs", digest, Range=f"bytes={MIB}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{MIB}")


async def test_far_ahead_of_a_slow_download(place: Place) -> None:
    """A client that wants what comes late does not wait for all that comes before."""
    data = os.urandom(32 * MIB)
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(rate=4 * MIB))
    async with connect(place.proxy.address, limit=1 << 16) as wire:
        await begin(wire, place.path("blobs", digest), 1000)
        began = asyncio.get_running_loop().time()
        answer = await place.get("blobs", digest, Range=f"bytes={24 * MIB}-{24 * MIB + 99_999}")
        assert (answer.status, answer.body == data[24 * MIB : 24 * MIB + 100_000]) == (206, True)
        assert asyncio.get_running_loop().time() - began < 3.0, "it waited for what comes before"
    assert len(place.seen("cdn")) <= 4


async def test_lists_by_filter(place: Place) -> None:
    """Referrers by artifact type: asked as the client asks, answered as upstream answers, each list kept by itself."""
    image = place.image()
    subject = {"mediaType": image.manifest.media_type, "digest": image.manifest.digest, "size": image.manifest.size}
    for kind in ("text/sbom", "text/signature"):
        place.hub.add_manifest(place.repository, {"artifactType": kind, "layers": [], "subject": subject})
    digest = image.manifest.digest
    filtered = f"{digest}?artifactType=text%2Fsbom"
    everything, some = await place.get("referrers", digest), await place.get("referrers", filtered)
    assert [len(json.loads(answer.body)["manifests"]) for answer in (everything, some)] == [2, 1]
    assert some.headers["OCI-Filters-Applied"] == "artifactType"
    assert "OCI-Filters-Applied" not in everything.headers
    assert everything.headers["Content-Type"] == manifests.OCI_INDEX
    assert place.seen("referrers")[-1].target.endswith("?artifactType=text%2Fsbom")
    place.hub.script.always("referrers", Quirk(status=500))
    stale = await place.get("referrers", filtered)
    assert (stale.body, stale.headers["OCI-Filters-Applied"]) == (some.body, "artifactType")
    assert (await place.get("referrers", f"{digest}?artifactType=text%2Fother")).status == 503
    other = place.image().manifest.digest
    assert (await place.get("referrers", other)).status == 503, "an outage became an empty list"
