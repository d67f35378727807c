"""How often the upstream is asked: once for many clients, not at all for what is known."""

import asyncio
import os

import pytest

from bench.herd import herd
from mirrorproxy.names import Digest
from tests.e2e.conftest import Place, settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e counts")]

WORKERS = (1, 2)
CLIENTS = 50


async def test_many_clients_of_one_cold_blob(place: Place) -> None:
    """One GET, whoever comes while it runs or after it."""
    data = os.urandom(3 << 20)
    digest = place.blob(data)
    hold = asyncio.Event()
    place.hub.script.next("cdn", Quirk(stall=1 << 20, release=hold))
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(place.get("blobs", digest)) for _ in range(CLIENTS)]
        while await place.proxy.total("fill_readers") < CLIENTS:
            await asyncio.sleep(0.02)
        hold.set()
    answers = [client.result() for client in clients]
    assert all(answer.complete and answer.body == data for answer in answers)
    assert place.asked() == ["GET blob", "GET cdn"]
    assert sorted(answer.headers["Cache-Status"] for answer in answers) == [
        "mirrorproxy; fwd=miss; collapsed; stored",
    ] * (CLIENTS - 1) + ["mirrorproxy; fwd=miss; stored"]
    await place.proxy.idle()
    assert (await place.get("blobs", digest)).headers["Cache-Status"] == "mirrorproxy; hit"
    assert place.asked() == ["GET blob", "GET cdn"]


async def test_a_thousand_clients_at_once(place: Place) -> None:
    """Of a blob that is not here, and once more when it is: each gets every byte, the upstream is asked once."""
    data = os.urandom(1 << 20)
    digest = place.blob(data)
    path = place.path("blobs", digest)
    host, _, port = place.proxy.address.rpartition(":")
    for _ in range(2):
        got = await asyncio.to_thread(herd, host, int(port), path, len(data), 1000, 60)
        assert set(got.digests) == {digest}
    assert place.asked() == ["GET blob", "GET cdn"]


async def test_many_clients_of_one_cold_tag(place: Place) -> None:
    """One GET for all who come while it runs."""
    image = place.image()
    hold = asyncio.Event()
    place.hub.script.next("manifest", Quirk(hold=hold))
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(place.get("manifests", "1")) for _ in range(CLIENTS)]
        while place.hub.count("manifest") < 2:  # the first one learned that a token is wanted
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # a second request would have come by now
        hold.set()
    assert all(client.result().body == image.body for client in clients)
    assert [seen.status for seen in place.seen("manifest")] == [401, 200]


async def test_ten_blobs_of_one_repository(place: Place) -> None:
    """One token, whether they are asked for one by one or all at once."""
    first = place.blob(os.urandom(1000))
    more = [place.blob(os.urandom(1000)) for _ in range(9)]
    await place.get("blobs", first)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(place.get("blobs", digest)) for digest in more]
    assert {client.result().status for client in clients} == {200}
    assert place.hub.count("token") == 1
    assert place.hub.count("cdn") == 10


async def test_ten_blobs_at_once_before_any_token(place: Place) -> None:
    """The first ten learn together that a token is wanted, and one asks for it."""
    blobs = [place.blob(os.urandom(1000)) for _ in range(10)]
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(place.get("blobs", digest)) for digest in blobs]
    assert {client.result().status for client in clients} == {200}
    assert place.hub.count("token") == 1


async def test_a_warm_image_within_its_time_and_after_it(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is asked within the TTL; after it one HEAD, for all clients together; then nothing again."""
    hub.script.clear()
    ttl = 3.0
    image = hub.add_image("team/warm", "1", b"layer one", b"layer two")
    parts = [part.digest for part in (image.config, *image.layers)]
    async with Proxy(
        tmp_path_factory.mktemp("ttl"), settings({"docker.io": upstream(hub, tag_ttl=f"{ttl}s")})
    ) as proxy:
        place = Place(hub, proxy, "docker.io", "team/warm")
        loop = asyncio.get_running_loop()

        async def pull() -> None:
            assert (await place.head("manifests", "1")).headers["Docker-Content-Digest"] == image.manifest.digest
            assert (await place.get("manifests", "1")).body == image.body
            assert (await place.get("manifests", image.manifest.digest)).body == image.body
            for digest in parts:
                assert Digest.of((await place.get("blobs", digest)).body) == digest

        began = loop.time()
        await pull()
        hub.log.clear()
        checked = loop.time()  # or before that
        for _ in range(3):
            await pull()
        assert hub.log == [], "asked within the TTL"
        assert loop.time() - began < ttl, "this machine is too slow for this test"
        await asyncio.sleep(checked + ttl - loop.time() + 0.05)
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(pull())
        assert place.asked() == ["HEAD manifest"]
        await pull()
        assert place.asked() == ["HEAD manifest"]


async def test_a_tag_that_moved(place: Place) -> None:
    """One HEAD says so, one GET by digest fetches it; one that moved back to what is known is not fetched."""
    first = place.image()
    assert (await place.get("manifests", "1")).body == first.body
    second = place.image()
    place.hub.log.clear()
    assert (await place.get("manifests", "1")).body == second.body
    assert [(seen.method, seen.target.rpartition("/")[2]) for seen in place.seen()] == [
        ("HEAD", "1"),
        ("GET", second.manifest.digest),
    ]
    place.hub.tag(place.repository, "1", first.manifest.digest)
    place.hub.log.clear()
    answer = await place.get("manifests", "1")
    assert answer.body == first.body
    assert place.asked() == ["HEAD manifest"]


async def test_a_head_stays_a_head(place: Place) -> None:
    """What a client only asks about is not fetched."""
    image = place.image()
    answer = await place.head("manifests", "1")
    assert answer.headers["Docker-Content-Digest"] == image.manifest.digest
    assert int(answer.headers["Content-Length"]) == image.manifest.size
    digest = place.blob(os.urandom(9))
    assert (await place.head("blobs", digest)).headers["Content-Length"] == "9"
    assert "GET" not in {seen.method for seen in place.seen() if seen.kind != "token"}
    assert not place.kept(digest).exists()


async def test_no_cache_asks_now(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`Cache-Control: no-cache`: upstream is asked about a tag, however young its answer."""
    hub.script.clear()
    image = hub.add_image("team/fresh", "1", b"layer")
    async with Proxy(tmp_path_factory.mktemp("fresh"), settings({"docker.io": upstream(hub, tag_ttl="1h")})) as proxy:
        place = Place(hub, proxy, "docker.io", "team/fresh")
        await place.get("manifests", "1")
        hub.log.clear()
        assert (await place.get("manifests", "1")).headers["Cache-Status"] == "mirrorproxy; hit"
        assert hub.log == []
        answer = await place.get("manifests", "1", Cache_Control="no-cache")
        assert answer.headers["Cache-Status"] == "mirrorproxy; hit; detail=revalidated"
        assert place.asked() == ["HEAD manifest"]
        moved = hub.add_image("team/fresh", "1", b"another layer")
        assert (await place.get("manifests", "1")).body == image.body
        assert (await place.get("manifests", "1", Cache_Control="max-age=0, no-cache")).body == moved.body
        assert (await place.get("manifests", "1")).body == moved.body


async def test_what_is_not_there(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A "no" is believed for `negative_ttl`, of every kind, and not a moment longer."""
    hub.script.clear()
    for name in ("team/known", "team/unknown"):
        hub.remove(name)
    hub.add_image("team/known", "1", b"layer")
    ttl = 2.0
    rules = upstream(hub, negative_ttl=f"{ttl}s")
    async with Proxy(tmp_path_factory.mktemp("negative"), settings({"docker.io": rules})) as proxy:
        digest = Digest.of(os.urandom(8))
        targets = [
            *(f"/v2/team/known/{kind}" for kind in ("manifests/2", f"manifests/{digest}", f"blobs/{digest}")),
            *(f"/v2/team/unknown/{kind}" for kind in ("manifests/1", "tags/list")),
        ]
        assert {answer.status for answer in await asyncio.gather(*map(proxy.ask, targets))} == {404}
        asked = len(hub.log)
        began = asyncio.get_running_loop().time()
        for answer in await asyncio.gather(*map(proxy.ask, targets)):
            assert (answer.status, answer.headers["Cache-Status"]) == (404, "mirrorproxy; hit; detail=negative")
        assert len(hub.log) == asked
        assert await proxy.total("cache_requests_total", result="negative") == len(targets)
        hub.add_image("team/known", "2", b"layer")
        hub.add_image("team/unknown", "1", b"layer")
        await asyncio.sleep(began + ttl - asyncio.get_running_loop().time())
        assert (await proxy.ask("/v2/team/known/manifests/2")).status == 200
        assert (await proxy.ask("/v2/team/unknown/manifests/1")).status == 200


async def test_a_registry_that_hides_what_it_has_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Docker Hub says 401 of a repository that does not exist: 403 for the client, after one new token, believed."""
    async with Hub(hides=True) as hub:
        image = hub.add_image("team/known", "1", b"layer")
        rules = upstream(hub, negative_ttl="1m")
        async with Proxy(tmp_path_factory.mktemp("hides"), settings({"docker.io": rules})) as proxy:
            assert (await proxy.ask("/v2/team/known/manifests/1")).body == image.body
            hub.log.clear()
            for cached in (None, "mirrorproxy; hit; detail=negative"):
                answer = await proxy.ask("/v2/team/none/manifests/1")
                assert (answer.status, answer.error["code"]) == (403, "DENIED")
                assert answer.headers.get("Cache-Status") == cached
            assert hub.count("token") <= 2
            assert hub.count("manifest") <= 2
            assert (await proxy.ask("/v2/team/known/manifests/1")).status == 200
