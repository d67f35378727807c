"""Upstreams that send other bytes than they were asked for: nothing of that is ever appended."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.networks.conftest import MIB, Serve, at, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = 64
UPSTREAM = {"connections": 1, "idle_timeout": "1s"}
SIZE = 8 * MIB
CUT = 3 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other() -> AsyncIterator[Hub]:
    """Another registry with the same content, for who has two endpoints."""
    async with Hub() as other:
        yield other


@pytest.fixture
def data() -> bytes:
    """A blob."""
    return os.urandom(SIZE)


LIES = {
    "another part": Quirk(content_range=f"bytes {CUT + 1}-{SIZE - 1}/{SIZE}"),
    "an earlier part": Quirk(content_range=f"bytes {CUT - 1}-{SIZE - 2}/{SIZE}"),
    "the whole, as a part": Quirk(content_range=f"bytes 0-{SIZE - 1}/{SIZE}"),
    "less than was asked for": Quirk(content_range=f"bytes {CUT}-{SIZE - 2}/{SIZE}"),
    "a larger total": Quirk(content_range=f"bytes {CUT}-{SIZE - 1}/{SIZE + 1}"),
    "a smaller total": Quirk(content_range=f"bytes {CUT}-{SIZE - 2}/{SIZE - 1}"),
    "no range": Quirk(headers={"Content-Range": None}),
    "not a range": Quirk(content_range=f"bytes {CUT}-/{SIZE}"),
    "other units": Quirk(content_range=f"octets {CUT}-{SIZE - 1}/{SIZE}"),
    "a web page": Quirk(html=True),
    "compressed": Quirk(gzip=True),
    "nothing": Quirk(status=416, headers={"Content-Range": f"bytes */{CUT}"}),
    "another blob": Quirk(ignore_range=True, body=bytes(SIZE)),
    "a longer blob": Quirk(ignore_range=True, body=bytes(SIZE + 1)),
    "a shorter blob": Quirk(ignore_range=True, body=bytes(CUT)),
}


@pytest.mark.parametrize("named", [False, True], ids=["size unknown", "size known"])
@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_on_resume(place: Place, data: bytes, lie: str, named: bool) -> None:
    """Whatever it is, the next request is for the same byte, and the client has the right bytes and no others."""
    image = place.image(data)
    if named:
        await place.get("manifests", "1")
    digest = image.layers[0].digest
    place.hub.script.next("cdn", Quirk(cut=CUT), LIES[lie])
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT, CUT]


async def test_an_unknown_total(place: Place, data: bytes) -> None:
    """`bytes 3-9/*` says what it has to: the bytes are those that were asked for."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT), Quirk(content_range=f"bytes {CUT}-{SIZE - 1}/*"))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT]


async def test_the_whole_for_a_range(place: Place, data: bytes) -> None:
    """200 for a Range, honest: read from the start, compared, and the rest of it taken. Again and again."""
    digest = place.blob(data)
    place.hub.script.always("cdn", Quirk(ignore_range=True))
    place.hub.script.next("cdn", *(Quirk(ignore_range=True, cut=number * MIB) for number in (1, 3, 5)))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, MIB, 3 * MIB, 5 * MIB]
    assert place.hub.sent("cdn") == (1 + 3 + 5) * MIB + SIZE


async def test_the_whole_for_a_range_that_breaks_before_it_is_of_use(place: Place, data: bytes) -> None:
    """An answer that ends before the first missing byte changes nothing."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT), Quirk(ignore_range=True, cut=MIB))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT, CUT]


@pytest.mark.parametrize("lie", ["a larger total", "an earlier part", "a web page"])
async def test_lies_for_a_while(place: Place, data: bytes, lie: str) -> None:
    """Where a manifest says the size: only time without progress ends a download, not a number of lies."""
    image = place.image(data)
    await place.get("manifests", "1")
    digest = image.layers[0].digest
    place.hub.script.next("cdn", Quirk(cut=CUT), *[LIES[lie]] * 4)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert set(starts(place.seen("cdn"))[1:]) == {CUT}


@pytest.mark.parametrize("named", [False, True], ids=["size unknown", "size known"])
@pytest.mark.parametrize("lie", ["another blob", "a longer blob", "a larger total"])
async def test_lies_now_and_then(place: Place, data: bytes, lie: str, named: bool) -> None:
    """Each of them is followed by what is right, and so none of them is believed, however many they become."""
    image = place.image(data)
    if named:
        await place.get("manifests", "1")
    digest = image.layers[0].digest
    place.hub.script.next("cdn", *[Quirk(cut=MIB), LIES[lie]] * 6)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, *(number * MIB for number in range(1, 7) for _ in range(2))]


async def test_two_against_what_is_here(place: Place, data: bytes) -> None:
    """Two answers in a row that differ from what clients have already: that was wrong, and their transfers break."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT, body=bytes(SIZE)), *[Quirk(ignore_range=True)] * 2)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body) == (200, False, bytes(CUT))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT, CUT, 0]


@pytest.mark.parametrize("lie", LIES)
async def test_repeated_lies_change_the_endpoint(serve: Serve, hub: Hub, other: Hub, data: bytes, lie: str) -> None:
    """The other endpoint goes on where the first one stopped to tell the truth, in the same 200."""
    other.script.clear()
    other.log.clear()
    endpoints = {
        "endpoints": [hub.url, other.url],
        "token_realms": [hub.token_service.origin, other.token_service.origin],
    }
    async with serve(connections=1, **endpoints) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        hub.script.next("cdn", Quirk(cut=CUT))
        hub.script.always("cdn", LIES[lie])
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert starts(hub.seen("cdn"))[0] == 0
        assert hub.count("cdn") <= 3
        assert starts(other.seen("cdn")) == [CUT]
        assert other.sent("cdn") == SIZE - CUT


async def test_wrong_bytes_once(place: Place, data: bytes) -> None:
    """The first client's transfer breaks before its end, whatever it was sent; the next pull is right."""
    digest = place.blob(data)
    wrong = data[:MIB] + bytes([data[MIB] ^ 1]) + data[MIB + 1 :]
    place.hub.script.next("cdn", Quirk(body=wrong))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete) == (200, False)
    assert len(answer.body) == SIZE - (64 << 10)
    assert await place.proxy.total("digest_mismatches_total", registry=place.registry) == 1
    assert not place.kept(digest).exists()
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    await until(lambda: place.kept(digest).exists())
    assert starts(place.seen("cdn")) == [0, 0]


async def test_wrong_bytes_then_a_break(place: Place, data: bytes) -> None:
    """What was wrong before the break makes the whole wrong, whoever sent the rest: no client gets it as whole."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(body=bytes(SIZE), cut=CUT))
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete) == (200, False)
    assert starts(place.seen("cdn")) == [0, CUT]
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT, 0]


async def test_wrong_bytes_from_the_first_endpoint(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """It is not asked again before the other one: the next pull is right, and the liar had no part in it."""
    other.script.clear()
    other.log.clear()
    endpoints = {
        "endpoints": [hub.url, other.url],
        "token_realms": [hub.token_service.origin, other.token_service.origin],
    }
    async with serve(connections=1, **endpoints) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        hub.script.always("cdn", Quirk(corrupt=True))
        assert not (await place.get("blobs", digest)).complete
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert (hub.count("cdn"), other.count("cdn")) == (1, 1)
