"""Every client pulls every kind of image: cold, warm, and with the upstream gone."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.clients import images
from tests.clients.clients import Client, Dockerd
from tests.clients.images import Manifest
from tests.clients.netns import HarnessError
from tests.clients.place import CLIENTS, Place, with_clients
from tests.clients.registry import Request

pytestmark = pytest.mark.clients

KINDS: dict[str, Callable[[str], Manifest]] = {
    "oci": images.image,
    "schema2": lambda seed: images.image(seed, docker=True),
    "index": lambda seed: images.multi_arch(seed, attested=True),
    "list": lambda seed: images.multi_arch(seed, docker=True),
}


def digest_for(client: Client, image: Manifest) -> str:
    """The digest by which a client has to know a pulled image: one of the origin's."""
    return image.digest if client.keeps_index else image.for_this_machine().digest


def fetched(requests: list[Request], kind: str) -> Counter[str]:
    """How often each reference of a kind (`blobs`, `manifests`) was asked for by GET."""
    return Counter(
        request.path.partition(f"/{kind}/")[2]
        for request in requests
        if request.method == "GET" and f"/{kind}/" in request.path
    )


def blob_hits(place: Place) -> float:
    """How many blobs of docker.io the mirror had."""
    return place.mirror.total("mirrorproxy_cache_requests_total", registry="docker.io", kind="blob", result="hit")


@with_clients(*CLIENTS)
@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("kind", KINDS)
def test_cold_warm_and_with_the_upstream_gone(client: Client, place: Place, name: str, kind: str, by: str) -> None:
    """A cold pull fetches each content once, a warm one asks the upstream nothing and needs no upstream."""
    repository, image = f"library/{name}", KINDS[kind](name)
    place.origin.push(repository, image, "1")
    reference = f"docker.io/{repository}" + (":1" if by == "tag" else f"@{image.digest}")

    assert client.pull(reference) == digest_for(client, image)
    client.remove(reference)
    cold = place.origin.pulls(repository)
    assert fetched(cold, "blobs") == {blob.digest: 1 for blob in image.for_this_machine().blobs}
    assert fetched(cold, "manifests").total() == len({image.digest, image.for_this_machine().digest})
    assert sum(request.method == "HEAD" for request in cold) <= 1
    assert {request.status for request in cold} == {200}

    asked = place.mirror.total("mirrorproxy_upstream_requests_total")
    hits = blob_hits(place)
    assert client.pull(reference) == digest_for(client, image)
    client.remove(reference)
    assert place.origin.pulls(repository) == cold
    assert place.mirror.total("mirrorproxy_upstream_requests_total") == asked
    assert blob_hits(place) > hits  # not one a blob: dockerd at times still has a layer that it just removed

    with place.origin.stopped():
        assert client.pull(reference) == digest_for(client, image)
    client.remove(reference)


@with_clients(*CLIENTS)
def test_tag_due_to_be_checked(client: Client, place: Place, name: str) -> None:
    """After a restart and past its TTL a tag costs one HEAD, can move, and is served stale with the upstream gone."""
    repository, image = f"library/{name}", images.image(name)
    reference = f"docker.io/{repository}:1"
    place.origin.push(repository, image, "1")
    client.pull(reference)
    client.remove(reference)
    cold = place.origin.pulls(repository)
    place.mirror.restart(tag_ttl="0s")
    try:
        assert client.pull(reference) == image.digest
        client.remove(reference)
        assert place.origin.pulls(repository)[len(cold) :] == [Request("HEAD", f"/v2/{repository}/manifests/1", 200)]

        moved = images.image(name + " moved")
        place.origin.push(repository, moved, "1")
        assert client.pull(reference) == moved.digest
        client.remove(reference)

        with place.origin.stopped():
            assert client.pull(reference) == moved.digest
        client.remove(reference)
        assert place.mirror.total("mirrorproxy_cache_requests_total", kind="manifest", result="stale") >= 1
    finally:
        place.mirror.restart()


@with_clients(*CLIENTS)
def test_missing_tag(client: Client, place: Place, name: str) -> None:
    """A tag that is not there fails, and no question about it goes upstream twice, however often the client asks."""
    place.origin.push(f"library/{name}", images.image(name), "1")
    with pytest.raises(HarnessError, match=name):
        client.pull(f"docker.io/library/{name}:2")
    asked = place.origin.pulls(f"library/{name}")
    assert {request.status for request in asked} == {404}
    assert len(asked) == len(set(asked))  # a HEAD and then a GET, as dockerd does, are two


@with_clients(*(kind for kind in CLIENTS if kind is not Dockerd))  # which asks mirrors for docker.io alone
def test_same_name_in_two_registries(client: Client, place: Place, name: str) -> None:
    """Each client's way of naming the registry leads to that registry, and nothing gets mixed up."""
    repository = f"team/{name}"
    pushed = {registry: images.image(f"{registry} {name}") for registry in place.origins}
    for registry, image in pushed.items():
        place.origins[registry].push(repository, image, "1")
    for registry, image in pushed.items():
        assert client.pull(f"{registry}/{repository}:1") == image.digest
        client.remove(f"{registry}/{repository}:1")
    for registry, image in pushed.items():
        blobs = fetched(place.origins[registry].pulls(repository), "blobs")
        assert blobs == {blob.digest: 1 for blob in image.blobs}


@with_clients(*(kind for kind in CLIENTS if kind is not Dockerd))  # before 23.0 it cannot unpack them
def test_zstd_layers(client: Client, place: Place, name: str) -> None:
    """Layers of media type tar+zstd arrive as they are, warm and with the upstream gone too."""
    repository, image = f"library/{name}", images.image(name, compression="zstd")
    place.origin.push(repository, image, "1")
    reference = f"docker.io/{repository}:1"
    assert client.pull(reference) == image.digest
    client.remove(reference)
    with place.origin.stopped():
        assert client.pull(reference) == image.digest
    client.remove(reference)
