"""What is fetched before clients ask for it: counted at the upstream."""

import asyncio
import os
from typing import Any

import pytest

from mirrorproxy.names import Digest
from tests.e2e.client import connect
from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.content import Image
from tests.fakes.hub import Hub
from tests.fakes.relay import Line, Relay
from tests.fakes.script import Quirk
from tests.networks.conftest import Serve, at
from tests.web.wire import Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = 30
UPSTREAM: dict[str, Any] = {"prefetch": "auto"}
LAYERS = 8
DELAY = 0.1
"""Seconds to the far upstream: a round trip is two of these."""


def image(place: Place, count: int = LAYERS, size: int = 20_000) -> Image:
    """An image of so many layers."""
    return place.image(*(os.urandom(size) for _ in range(count)))


def fetched(place: Place, image: Image) -> list[int]:
    """The layers of an image that the storage was asked for, by number, in order; -1 is the config."""
    parts = {image.config.digest.hex: -1} | {layer.digest.hex: number for number, layer in enumerate(image.layers)}
    return [parts[next(name for name in parts if name in seen.target)] for seen in place.seen("cdn")]


async def quiet(place: Place) -> None:
    """Wait until nothing is fetched any more."""
    async with asyncio.timeout(20):
        while await place.proxy.total("fills_inflight"):
            await asyncio.sleep(0.02)
        before = -1
        while before != len(place.seen()):  # what is begun may not have begun yet
            before = len(place.seen())
            await asyncio.sleep(0.1)


async def test_the_manifest_alone(place: Place) -> None:
    """Brings the config, which all clients ask for, and no layer; nor does the config bring one."""
    made = image(place)
    await place.get("manifests", "1")
    await quiet(place)
    assert fetched(place, made) == [-1]
    await place.get("blobs", made.config.digest)
    await quiet(place)
    assert fetched(place, made) == [-1]


async def test_a_head_of_a_manifest(place: Place) -> None:
    """Brings nothing: the client may have the image."""
    made = image(place)
    await place.head("manifests", "1")
    await quiet(place)
    assert fetched(place, made) == []


async def test_the_first_layer(place: Place) -> None:
    """Brings all that come after it, each once, before the client has asked for any of them."""
    made = image(place)
    await place.get("manifests", "1")
    await place.get("blobs", made.layers[0].digest)
    await quiet(place)
    assert sorted(fetched(place, made)) == list(range(-1, LAYERS))
    for layer in made.layers:
        assert (await place.get("blobs", layer.digest)).headers["Cache-Status"] == "mirrorproxy; hit"
    assert len(fetched(place, made)) == LAYERS + 1
    assert await place.proxy.total("fills_ahead_total", registry=place.registry) == LAYERS  # the config is one


@pytest.mark.parametrize("first", [1, 5, LAYERS - 1])
async def test_a_client_that_has_the_base_layers(place: Place, first: int) -> None:
    """Asks first for what it lacks, and nothing before that is fetched, not even later."""
    made = image(place)
    await place.get("manifests", "1")
    await place.get("blobs", made.config.digest)
    for layer in made.layers[first:]:
        await place.get("blobs", layer.digest)
    await quiet(place)
    assert sorted(fetched(place, made)) == [-1, *range(first, LAYERS)]


async def test_by_digest_below_an_index(place: Place) -> None:
    """As clients pull images for several platforms: what is fetched ahead is of the platform that was pulled."""
    ours, theirs = image(place), image(place)
    listed = [
        {"mediaType": each.manifest.media_type, "digest": each.manifest.digest, "size": each.manifest.size}
        for each in (ours, theirs)
    ]
    index = "application/vnd.oci.image.index.v1+json"
    place.hub.add_manifest(place.repository, {"manifests": listed}, "all", media_type=index)
    await place.get("manifests", "all")
    await place.get("manifests", ours.manifest.digest)
    await place.get("blobs", ours.layers[0].digest)
    await quiet(place)
    assert sorted(fetched(place, ours)) == list(range(-1, LAYERS))


async def test_the_order(serve: Serve, hub: Hub) -> None:
    """That in which the client will want them: the manifest's."""
    async with serve(prefetch="auto", max_fills=1) as proxy:
        place = at(hub, proxy)
        made = image(place)
        await place.get("manifests", "1")
        await quiet(place)
        await place.get("blobs", made.layers[2].digest)
        await quiet(place)
        assert fetched(place, made) == [-1, *range(2, LAYERS)]


async def test_layers_that_are_here(place: Place) -> None:
    """Are not fetched again, for this image or another one."""
    base = [os.urandom(20_000) for _ in range(3)]
    old, new = place.image(*base, os.urandom(20_000)), place.image(*base, os.urandom(20_000))
    for made in (old, new):
        await place.get("manifests", made.manifest.digest)
        await place.get("blobs", made.layers[0].digest)
        await quiet(place)
    targets = [seen.target for seen in place.seen("cdn")]
    for layer in {*old.layers, *new.layers}:
        assert sum(layer.digest.hex in target for target in targets) == 1


async def test_all(serve: Serve, hub: Hub) -> None:
    """`all` begins with the manifest."""
    async with serve(prefetch="all") as proxy:
        place = at(hub, proxy)
        made = image(place)
        await place.get("manifests", "1")
        await quiet(place)
        assert sorted(fetched(place, made)) == list(range(-1, LAYERS))
        for part in (made.config, *made.layers):
            assert (await place.get("blobs", part.digest)).headers["Cache-Status"] == "mirrorproxy; hit"
        assert len(place.seen("cdn")) == LAYERS + 1


async def test_off(serve: Serve, hub: Hub) -> None:
    """`off` fetches what is asked for, and nothing else."""
    async with serve(prefetch="off") as proxy:
        place = at(hub, proxy)
        made = image(place)
        await place.get("manifests", "1")
        await place.get("blobs", made.layers[0].digest)
        await quiet(place)
        assert fetched(place, made) == [0]
        assert await proxy.total("fills_ahead_total") == 0


async def test_a_client_joins_what_is_fetched_ahead(place: Place) -> None:
    """What it asks for is on its way: one request at the storage, and one transfer for both."""
    made = image(place, 2)
    hold = asyncio.Event()
    hex_of = made.layers[1].digest.hex
    place.hub.script.when("cdn", lambda seen: Quirk(hold=hold) if hex_of in seen.target else None)
    await place.get("manifests", "1")
    await place.get("blobs", made.layers[0].digest)
    async with asyncio.TaskGroup() as group:
        await until(lambda: 1 in fetched(place, made))
        client = group.create_task(place.get("blobs", made.layers[1].digest))
        while not await place.proxy.total("fill_readers"):
            await asyncio.sleep(0.02)
        hold.set()
    assert client.result().headers["Cache-Status"] == "mirrorproxy; fwd=miss; collapsed; stored"
    assert fetched(place, made).count(1) == 1


async def test_what_is_ahead_may_fail(place: Place) -> None:
    """A client sees nothing of that: what it asks for is asked for again."""
    made = image(place, 3)
    place.hub.script.when("cdn", lambda seen: None if made.layers[0].digest.hex in seen.target else Quirk(status=503))
    await place.get("manifests", "1")
    assert (await place.get("blobs", made.layers[0].digest)).complete
    await quiet(place)
    place.hub.script.clear()
    for part in (made.config, *made.layers):
        assert (await place.get("blobs", part.digest)).complete


async def pull(address: str, name: str, image: Image) -> float:
    """Seconds that an image takes a client that asks for three parts at a time, over connections that it keeps."""
    parts = iter((image.config, *image.layers))
    began = asyncio.get_running_loop().time()

    async def some(wire: Wire) -> None:
        for part in parts:
            answer = await wire.ask(f"/v2/{name}/blobs/{part.digest}")
            assert (answer.status, Digest.of(answer.body)) == (200, part.digest)

    async with connect(address) as first:
        answer = await first.ask(f"/v2/{name}/manifests/1", headers={"Accept": image.manifest.media_type})
        assert answer.body == image.body
        async with connect(address) as second, connect(address) as third:
            await asyncio.gather(*(some(wire) for wire in (first, second, third)))
    return asyncio.get_running_loop().time() - began


async def test_a_far_upstream(serve: Serve, hub: Hub) -> None:
    """12 layers, three at a time, 400 ms of round trip: clearly less time than without anybody between."""
    async with Hub(auth="none", redirects=False) as plain:
        async with Relay(plain.registry.host, plain.registry.port, Line(2 * DELAY)) as relay:
            async with serve(prefetch="auto", endpoints=[relay.url]) as proxy:
                place = at(plain, proxy)
                made = image(place, 12, 100_000)
                direct = await pull(relay.url.removeprefix("http://"), place.repository, made)
                plain.log.clear()
                took = await pull(proxy.address, place.repository, made)
    assert took <= 0.7 * direct  # four round trips of seven, and what it takes to compute
    assert sorted(seen.method for seen in plain.log) == ["GET"] * 14


async def test_connections_are_made_ahead(hub: Hub, serve: Serve) -> None:
    """While a client waits for the config of an image that is far away, to be there when it asks for layers: one for
    each, over which nothing is asked. The layers then take one round trip, and no connection more.
    """
    async with Hub(auth="none", redirects=False) as plain:
        async with Relay(plain.registry.host, plain.registry.port, Line(DELAY)) as relay:
            async with serve(prefetch="auto", endpoints=[relay.url]) as proxy:
                place = at(plain, proxy)
                made = image(place, 6, 1000)
                async with connect(proxy.address) as wire:
                    await wire.ask(place.path("manifests", "1"), headers={"Accept": made.manifest.media_type})
                    assert (await wire.ask(place.path("blobs", made.config.digest))).status == 200
                    await until(lambda: len(relay.carried) == 6)
                    assert [seen.kind for seen in plain.log] == ["manifest", "blob"]
                    await asyncio.sleep(2 * DELAY)
                    began = asyncio.get_running_loop().time()
                    assert (await wire.ask(place.path("blobs", made.layers[0].digest))).status == 200
                    await until(lambda: all(place.kept(layer.digest).exists() for layer in made.layers))
                    assert asyncio.get_running_loop().time() - began < 3.5 * DELAY
                assert len(relay.carried) == 6
                assert plain.count() == 8


async def test_no_connections_are_made_ahead_to_what_is_near(hub: Hub, serve: Serve) -> None:
    """They take no time there."""
    async with Hub(auth="none", redirects=False) as plain:
        async with Relay(plain.registry.host, plain.registry.port) as relay:
            async with serve(prefetch="auto", endpoints=[relay.url]) as proxy:
                place = at(plain, proxy)
                made = image(place, 6, 1000)
                await place.get("manifests", "1")
                await place.get("blobs", made.config.digest)
                await asyncio.sleep(0.1)
                assert len(relay.carried) <= 2
