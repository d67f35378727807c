"""What only containerd's `ctr` does: all platforms, and content that is no image."""

import pytest

from tests.clients import images
from tests.clients.clients import Containerd
from tests.clients.images import Manifest
from tests.clients.place import Place, with_clients

pytestmark = pytest.mark.clients


def everything(manifest: Manifest) -> set[str]:
    """The digests of a manifest and of all it names."""
    return {item.digest for part in manifest.walk() for item in (part, *part.blobs)}


@with_clients(Containerd)
def test_all_platforms(client: Containerd, place: Place, name: str) -> None:
    """`ctr images pull --all-platforms` gets the images of every platform, cold and with the upstream gone."""
    image = images.multi_arch(name)
    place.origin.push(f"library/{name}", image, "1")
    reference = f"docker.io/library/{name}:1"
    assert client.pull_all_platforms(reference) == image.digest
    assert everything(image) <= client.contents()
    client.remove(reference)
    assert not everything(image) & client.contents()
    with place.origin.stopped():
        assert client.pull_all_platforms(reference) == image.digest
    assert everything(image) <= client.contents()
    client.remove(reference)


@with_clients(Containerd)
def test_attestations(client: Containerd, place: Place, name: str) -> None:
    """The attestation manifests of an index, with their in-toto blobs, come along byte for byte."""
    image = images.multi_arch(name, attested=True)
    place.origin.push(f"library/{name}", image, "1")
    reference = f"docker.io/library/{name}:1"
    assert client.fetch(reference) == image.digest
    client.remove(reference)
    with place.origin.stopped():
        assert client.fetch(reference) == image.digest
    assert everything(image) <= client.contents()
    client.remove(reference)


@with_clients(Containerd)
def test_artifact_that_refers_to_an_image(client: Containerd, place: Place, name: str) -> None:
    """A signature is found by the tag of its subject's digest and fetched by digest, with the upstream gone too."""
    repository, image = f"library/{name}", images.image(name)
    signature = images.artifact(name, image)
    index = images.referrers_index([signature])
    place.origin.push(repository, image, "1")
    place.origin.push(repository, index, images.referrers_tag(image))
    by_tag = f"docker.io/{repository}:{images.referrers_tag(image)}"
    by_digest = f"docker.io/{repository}@{signature.digest}"
    assert client.fetch(by_tag) == index.digest
    assert client.fetch(by_digest) == signature.digest
    client.remove(by_tag)
    client.remove(by_digest)
    with place.origin.stopped():
        assert client.fetch(by_tag) == index.digest
        assert client.fetch(by_digest) == signature.digest
    assert everything(index) <= client.contents()
    client.remove(by_tag)
    client.remove(by_digest)
