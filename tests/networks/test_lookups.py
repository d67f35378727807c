"""Tokens, signed URLs and endpoints that do not last as long as a download, and what is not asked twice."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.e2e.conftest import Place, settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen
from tests.networks.conftest import MIB, Serve, at, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPSTREAM = {"connections": 1, "idle_timeout": "1s"}
SIZE = 8 * MIB
CUT = 3 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def others() -> AsyncIterator[Hub]:
    """Another registry."""
    async with Hub() as hub:
        yield hub


@pytest.fixture
def other(others: Hub) -> Hub:
    """As nobody has asked it anything yet."""
    others.script.clear()
    others.log.clear()
    return others


@pytest.fixture
def data() -> bytes:
    """A blob."""
    return os.urandom(SIZE)


def served(seen: list[Seen]) -> list[Seen]:
    """The requests that were answered with bytes of a blob."""
    return [each for each in seen if each.status in (200, 206)]


async def test_a_signature_that_expires(place: Place, data: bytes) -> None:
    """In mid-fill: the registry is asked anew, and the first missing byte is asked for at the URL that it redirects to
    then.
    """
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(stall=CUT))
    async with asyncio.TaskGroup() as group:
        client = group.create_task(place.get("blobs", digest))
        await until(lambda: place.hub.sent("cdn") == CUT)
        place.hub.expire_signatures()
    answer = client.result()
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    first, second = served(place.seen("cdn"))
    assert first.target != second.target
    assert second.range == f"bytes={CUT}-"
    assert [seen.status for seen in place.seen("blob")] == [401, 307, 307]
    assert place.hub.sent("cdn") - sum(seen.sent for seen in place.seen("cdn") if seen.status == 403) == SIZE


async def test_signatures_that_never_hold(place: Place, data: bytes) -> None:
    """Storage that refuses what the registry signed, for a while: it is signed again each time."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT), *[Quirk(status=403)] * 6)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    targets = [seen.target for seen in place.seen("cdn")]
    assert len(targets) == len(set(targets)) == 8


async def test_a_token_that_expires(place: Place, data: bytes) -> None:
    """In mid-fill: one other is fetched, for the same scope, and the first missing byte is asked for with it."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT))
    place.hub.script.when("cdn", lambda seen: place.hub.revoke_tokens())
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert [seen.status for seen in place.seen("blob")] == [401, 307, 401, 307]
    tokens = place.seen("token")
    assert len(tokens) == 2
    assert tokens[0].target == tokens[1].target
    assert starts(place.seen("cdn")) == [0, CUT]


async def test_a_token_whose_time_is_over(place: Place, data: bytes) -> None:
    """By its own word: the next one is fetched ahead, without a 401 first."""
    place.hub.expires_in = 1
    try:
        digest = place.blob(data)
        place.hub.script.next("cdn", Quirk(stall=CUT))  # for longer than the token lives
        answer = await place.get("blobs", digest)
    finally:
        place.hub.expires_in = 300
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert [seen.status for seen in place.seen("blob")] == [401, 307, 307]
    assert len(place.seen("token")) == 2
    assert starts(place.seen("cdn")) == [0, CUT]


async def token_service_is_down(place: Place, data: bytes, seconds: float) -> None:
    """Check that a download whose token expires meanwhile goes on where it was."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(cut=CUT))
    place.hub.script.when("cdn", lambda seen: place.hub.revoke_tokens())
    async with asyncio.TaskGroup() as group:
        client = group.create_task(place.get("blobs", digest))
        await until(lambda: bool(place.seen("cdn")))
        await place.hub.stop_token_service()
        await asyncio.sleep(seconds)
        assert not client.done()
        await place.hub.start_token_service()
    answer = client.result()
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert starts(place.seen("cdn")) == [0, CUT]
    assert place.hub.sent("cdn") == SIZE


async def test_the_token_service_is_down(place: Place, data: bytes) -> None:
    """In mid-fill, for some seconds, when the token has expired: the download waits, and its client with it."""
    await token_service_is_down(place, data, 3)


@pytest.mark.soak
async def test_the_token_service_is_down_for_long(serve: Serve, hub: Hub, data: bytes) -> None:
    """For 20 s, with the default time-outs."""
    times = {"connect_timeout": "10s", "header_timeout": "30s", "idle_timeout": "30s", "revalidate_timeout": "5s"}
    async with serve(fills={"budget": "10m"}, connections=1, **times) as proxy:
        await token_service_is_down(at(hub, proxy), data, 20)


async def test_everything_is_down(place: Place, data: bytes) -> None:
    """The hosts vanish in mid-fill and come back: the connection refused is as good a reason to wait as any."""
    digest = place.blob(data)
    place.hub.script.next("cdn", Quirk(stall=CUT))
    async with asyncio.TaskGroup() as group:
        client = group.create_task(place.get("blobs", digest))
        await until(lambda: place.hub.sent("cdn") == CUT)
        await place.hub.stop()
        await asyncio.sleep(2)
        assert not client.done()
        await place.hub.start()
    answer = client.result()
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    assert served(place.seen("cdn"))[-1].range == f"bytes={CUT}-"


def endpoints(*hubs: Hub) -> dict[str, list[str]]:
    """The settings of an upstream that has these."""
    return {"endpoints": [hub.url for hub in hubs], "token_realms": [hub.token_service.origin for hub in hubs]}


async def test_the_endpoint_changes(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """The first one goes down at byte N: the second one, with a token service of its own, goes on at byte N."""
    async with serve(connections=1, **endpoints(hub, other)) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        hub.script.next("cdn", Quirk(cut=CUT))
        hub.script.next("blob", Quirk())
        hub.script.always("blob", Quirk(reset=True))
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert starts(hub.seen("cdn")) == [0]
        assert starts(other.seen("cdn")) == [CUT]
        assert (hub.sent("cdn"), other.sent("cdn")) == (CUT, SIZE - CUT)
        assert await proxy.total("fill_resumes_total") == 1


async def test_the_other_endpoint_does_not_have_it(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """Its "not found" is not the end of a download that the first one can go on with."""
    async with serve(connections=1, **endpoints(hub, other)) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.stock(place.repository).blobs.clear()
        other.add_blob(place.repository, b"something else")
        hub.script.next("cdn", Quirk(cut=CUT), Quirk(cut=CUT))
        hub.script.next("blob", Quirk(), *[Quirk(status=503)] * 3)
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert starts(hub.seen("cdn")) == [0, CUT, 2 * CUT]
        assert 404 in {seen.status for seen in other.seen("blob")}


async def test_the_first_endpoint_loses_it(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """Its "not found" in mid-download: the second one, which has it, goes on."""
    async with serve(connections=1, **endpoints(hub, other)) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        hub.script.next("cdn", Quirk(cut=CUT))
        hub.script.next("blob", Quirk())
        hub.script.always("blob", Quirk(status=404))
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert (starts(hub.seen("cdn")), starts(other.seen("cdn"))) == ([0], [CUT])


async def test_the_only_endpoint_loses_it_for_a_moment(place: Place, data: bytes) -> None:
    """As a storage whose copy was purged does: one uninterrupted 200. Before the first byte, 404 is the answer."""
    digest = place.blob(data)
    place.hub.script.next("blob", Quirk(status=404))
    assert (await place.get("blobs", digest)).status == 404
    place.hub.log.clear()
    digest = place.blob(data + b"x")
    place.hub.script.next("cdn", Quirk(cut=CUT))
    place.hub.script.next("blob", Quirk(), *[Quirk(status=404)] * 3)
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data + b"x") == (200, True, True)
    assert starts(served(place.seen("cdn"))) == [0, CUT]
    assert [seen.status for seen in place.seen("blob") if seen.status != 401] == [307, 404, 404, 404, 307]


async def test_the_first_endpoint_asks_for_time(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """In mid-download, by `Retry-After`: that is no reason not to ask the second one again, whose trouble passes."""
    async with serve(connections=1, **endpoints(hub, other)) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        hub.script.next("cdn", Quirk(cut=CUT))
        hub.script.next("blob", Quirk())
        hub.script.always("blob", Quirk(status=429, headers={"Retry-After": "15"}))
        other.script.next("blob", *[Quirk(status=503)] * 4)
        began = asyncio.get_running_loop().time()
        answer = await place.get("blobs", digest)
        assert asyncio.get_running_loop().time() - began < 8
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert starts(other.seen("cdn")) == [CUT]


async def test_endpoints_take_turns(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """Both of them break again and again: the two together bring every byte once."""
    async with serve(connections=1, **endpoints(hub, other)) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        other.add_blob(place.repository, data)
        for each in (hub, other):
            each.script.always("cdn", Quirk(cut=MIB))
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert hub.count("cdn") > 0 < other.count("cdn")
        assert sorted(starts(hub.seen("cdn") + other.seen("cdn"))) == [number * MIB for number in range(8)]


async def test_a_reload_in_mid_fill(serve: Serve, hub: Hub, other: Hub, data: bytes) -> None:
    """Other endpoints for an upstream, by SIGHUP: what is under way comes to its end, in one 200; what begins after it
    is asked for at the new one.
    """
    async with serve(connections=1, **endpoints(hub)) as proxy:
        place = at(hub, proxy)
        digest, go_on = place.blob(data), asyncio.Event()
        later = other.add_blob(place.repository, b"another blob")
        hub.script.next("cdn", Quirk(stall=CUT, release=go_on))
        async with asyncio.TaskGroup() as group:
            client = group.create_task(place.get("blobs", digest))
            await until(lambda: hub.sent("cdn") == CUT)
            proxy.settings["upstreams"]["docker.io"].update(endpoints(other))
            await proxy.reload()
            assert (await place.get("blobs", later)).body == b"another blob"
            go_on.set()
        answer = client.result()
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)


async def test_no_needless_round_trip(place: Place) -> None:
    """An image is one request for its manifest, and one for each blob at the registry and at the storage: no HEAD, one
    token for all of it, over connections that are kept.
    """
    layers = [os.urandom(10_000) for _ in range(6)]
    image = place.image(*layers)
    await place.get("manifests", "1")
    for part in (image.config, *image.layers):
        await place.get("blobs", part.digest)
    assert place.asked() == ["GET manifest", *["GET blob", "GET cdn"] * 7]
    assert [seen.status for seen in place.seen()].count(401) == 1
    assert len(place.seen("token")) == 1
    assert len({seen.authorization for seen in place.seen("blob")}) == 1
    for kind in ("manifest", "blob", "cdn"):
        assert len({seen.connection for seen in place.seen(kind)}) == 1


async def test_tls_sessions_are_kept(tmp_path: Path) -> None:
    """A handshake for each connection, and a connection for all blobs, one after the other."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "127.0.0.2", "127.0.0.3").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Hub(tls=server) as hub:
        upstreams = {"docker.io": upstream(hub, ca_file=str(tmp_path / "ca.pem"))}
        async with Proxy(tmp_path / "proxy", settings(upstreams)) as proxy:
            place = at(hub, proxy)
            image = place.image(*(os.urandom(1000) for _ in range(6)))
            await place.get("manifests", "1")
            for part in (image.config, *image.layers):
                assert (await place.get("blobs", part.digest)).complete
            for kind in ("blob", "cdn"):
                assert len({seen.connection for seen in hub.seen(kind)}) == 1


async def test_a_redirect_is_used_again(serve: Serve, hub: Hub) -> None:
    """While its signature lives: the parts of a blob over four connections ask the registry once."""
    data = os.urandom(48 * MIB)
    async with serve(connections=4) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        hub.script.always("cdn", Quirk(rate=4 * MIB))
        answer = await place.get("blobs", digest)
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert len(hub.seen("cdn")) > 3
        assert [seen.status for seen in hub.seen("blob")] == [401, 307]


async def test_a_redirect_that_is_used_again_may_have_expired(serve: Serve, hub: Hub) -> None:
    """Then the registry is asked for another, and nothing is lost."""
    data = os.urandom(48 * MIB)
    async with serve(connections=4) as proxy:
        place = at(hub, proxy)
        digest = place.blob(data)
        hub.script.always("cdn", Quirk(rate=4 * MIB))
        async with asyncio.TaskGroup() as group:
            client = group.create_task(place.get("blobs", digest))
            await until(lambda: hub.count("cdn") >= 2)
            hub.expire_signatures()
        answer = client.result()
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        assert sum(seen.sent for seen in served(hub.seen("cdn"))) <= len(data) * 1.05
