"""Reading ahead: what is fetched before it is asked for, and what is not."""

import json
from contextlib import aclosing

import pytest

from mirrorproxy.cache import Cached, Mode
from mirrorproxy.cache.ahead import Ahead
from mirrorproxy.errors import Unreachable
from mirrorproxy.fill import Terms
from mirrorproxy.manifests import OCI_MANIFEST, Contents
from mirrorproxy.names import Descriptor, Digest, Tag, repository
from mirrorproxy.registry import Manifest
from tests.cache.conftest import World

ALPINE = repository("docker.io", "alpine")
LATEST = Tag("latest")
CONFIG = b'{"os": "linux"}'
LAYERS = [f"layer {number}".encode() * 1000 for number in range(8)]


def image(world: World, *, layer_type: str = "application/x-layer") -> None:
    """Put an image of eight layers into the origin, from which one blob comes at a time: so the order can be seen."""
    world.fills.use(Terms(budget=2, max_active=1))
    for blob in (CONFIG, *LAYERS):
        world.origin.put_blob(ALPINE, blob)
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/x-config", "digest": Digest.of(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": layer_type, "digest": Digest.of(layer), "size": len(layer)} for layer in LAYERS],
    }
    world.origin.put_manifest(ALPINE, json.dumps(document).encode(), OCI_MANIFEST, "latest")


async def fetched(world: World, cached: Cached) -> list[bytes]:
    """The blobs that the origin was asked for, in order, when all is quiet."""
    await cached._tasks.ended()
    await world.fills.drain(5)
    by_digest = {str(Digest.of(blob)): blob for blob in (CONFIG, *LAYERS)}
    asked, world.origin.asked = world.origin.asked, []
    return [by_digest[line.split()[2]] for line in asked if line.startswith("blob ")]


async def pull(world: World, mode: Mode, *wanted: bytes) -> list[bytes]:
    """Pull the manifest and these blobs; what the origin was asked for."""
    cached = world.again(prefetch=mode)
    await cached.manifest(ALPINE, LATEST)
    for blob in wanted:
        async with aclosing(await cached.blob(ALPINE, Digest.of(blob))):
            pass
    return await fetched(world, cached)


async def test_the_first_layer_brings_those_after_it(world: World) -> None:
    """In the order of the manifest; the config came with the manifest."""
    image(world)
    asked = await pull(world, Mode.AUTO, LAYERS[0])
    asked.remove(CONFIG)
    assert asked == LAYERS


async def test_a_manifest_alone_brings_no_layer(world: World) -> None:
    """Nor does its config."""
    image(world)
    assert await pull(world, Mode.AUTO) == [CONFIG]
    assert await pull(world, Mode.AUTO, CONFIG) == []


async def test_a_client_with_the_base_layers_gets_no_base_layers(world: World) -> None:
    """It begins with what it lacks: nothing before that is fetched."""
    image(world)
    assert await pull(world, Mode.AUTO, CONFIG, LAYERS[5]) == [CONFIG, *LAYERS[5:]]


async def test_what_is_here_is_not_fetched_again(world: World) -> None:
    """A hit on the first layer brings only what is missing after it."""
    image(world)
    await pull(world, Mode.OFF, CONFIG, LAYERS[0], LAYERS[2])
    assert await pull(world, Mode.AUTO, LAYERS[0]) == [LAYERS[1], *LAYERS[3:]]


async def test_once_for_each_time_the_manifest_is_served(world: World) -> None:
    """The second layer that a client asks for begins nothing."""
    image(world)
    world.fills.use(Terms(budget=2, max_active=9))  # nothing waits, since who does has no error but headers
    cached = world.again(prefetch=Mode.AUTO)
    await cached.manifest(ALPINE, LATEST)
    world.origin.fail("blob", Unreachable("nothing comes"))
    for layer in (LAYERS[4], LAYERS[0]):
        with pytest.raises(Unreachable):
            await cached.blob(ALPINE, Digest.of(layer))
    world.origin.fail("blob", None)
    assert LAYERS[1] not in await fetched(world, cached)


async def test_all_begins_with_the_manifest(world: World) -> None:
    """`prefetch: all`."""
    image(world)
    assert await pull(world, Mode.ALL) == [CONFIG, *LAYERS]


async def test_off_is_off(world: World) -> None:
    """`prefetch: off`."""
    image(world)
    assert await pull(world, Mode.OFF, LAYERS[0]) == [LAYERS[0]]


async def test_layers_that_no_registry_holds_are_left_alone(world: World) -> None:
    """Foreign layers come from elsewhere."""
    image(world, layer_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    assert await pull(world, Mode.ALL) == [CONFIG]


async def quiet(cached: Cached) -> None:
    """Wait until nothing is begun any more."""
    await cached._tasks.ended()


async def test_a_config_of_a_new_image_tells_of_layers_to_come(world: World) -> None:
    """That they will be asked for, all that are not here, one of them over the connection of the config; once."""
    image(world)
    async with aclosing(await world.cached.blob(ALPINE, Digest.of(LAYERS[2]))):
        pass
    await world.fills.drain(5)
    cached = world.again(prefetch=Mode.AUTO)
    await cached.manifest(ALPINE, LATEST)
    assert world.origin.expected == [], "not before the client comes to the config"
    for _ in range(2):
        async with aclosing(await cached.blob(ALPINE, Digest.of(CONFIG))):
            await quiet(cached)
    assert world.origin.expected == [len(LAYERS) - 2]
    again = world.again(prefetch=Mode.AUTO)
    await again.manifest(ALPINE, LATEST)
    async with aclosing(await again.blob(ALPINE, Digest.of(CONFIG))):
        await quiet(again)
    assert world.origin.expected == [len(LAYERS) - 2], "the image is not new any more"


@pytest.mark.parametrize("mode", [Mode.ALL, Mode.OFF])
async def test_nothing_is_to_come_of_what_is_not_waited_for(world: World, mode: Mode) -> None:
    """Where layers are fetched with the manifest, or when they are asked for."""
    image(world)
    await pull(world, mode, CONFIG)
    assert world.origin.expected == []


async def test_a_client_that_asks_for_all_at_once_needs_no_word_before(world: World) -> None:
    """The connections are being made already."""
    image(world)
    await pull(world, Mode.AUTO, CONFIG, LAYERS[0])
    assert world.origin.expected == []


def test_huge_images_are_not_all_remembered() -> None:
    """A manifest may name 10,000 layers, and 512 of these would take a gigabyte."""
    ahead = Ahead(Mode.AUTO, lambda *_: None, lambda *_: None)
    layers = tuple(Descriptor("application/x-layer", Digest.of(b"%d" % number), 1) for number in range(1000))
    for number in range(100):
        descriptor = Descriptor(OCI_MANIFEST, Digest.of(b"m%d" % number), 1)
        ahead.served(ALPINE, Manifest(descriptor, b"", Contents(OCI_MANIFEST, layers=layers)), new=False)
    assert 0 < sum(len(each) for _, each in ahead._layers.items()) <= 8192


def test_layers_are_forgotten_with_the_first_that_is_asked_for() -> None:
    """There is nothing more to read ahead of that image; of one that shares a layer there is."""
    ahead = Ahead(Mode.AUTO, lambda *_: None, lambda *_: None)
    base, *own = (Descriptor("application/x-layer", Digest.of(b"%d" % number), 1) for number in range(5))
    images = [Descriptor(OCI_MANIFEST, Digest.of(b"m%d" % number), 1) for number in range(2)]
    for descriptor, layers in zip(images, ((base, *own[:2]), (base, *own[2:])), strict=True):
        ahead.served(ALPINE, Manifest(descriptor, b"", Contents(OCI_MANIFEST, layers=layers)), new=False)
    ahead.asked(ALPINE, own[0].digest)
    assert {layer for (_, layer), _ in ahead._images.items()} == {base.digest, own[2].digest, own[3].digest}
    assert ahead.to_come(ALPINE, images[0].digest) == []
    assert ahead.to_come(ALPINE, images[1].digest) == [base, *own[2:]]
