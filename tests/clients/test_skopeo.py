"""What only skopeo does: copies of all platforms, artifacts, and reading the mirror's cache directory itself."""

import pytest

from tests.clients import images
from tests.clients.clients import Skopeo
from tests.clients.netns import HarnessError
from tests.clients.place import Place, with_clients

pytestmark = pytest.mark.clients


@with_clients(Skopeo)
@pytest.mark.parametrize("docker", [False, True], ids=["index", "list"])
def test_copy_all(client: Skopeo, place: Place, name: str, docker: bool) -> None:
    """`skopeo copy --all` gets an index with everything in it, attestations too, cold and with the upstream gone."""
    image = images.multi_arch(name, docker=docker, attested=not docker)
    place.origin.push(f"library/{name}", image, "1")
    assert client.pull_all(f"docker.io/library/{name}:1") == image.digest
    with place.origin.stopped():
        assert client.pull_all(f"docker.io/library/{name}:1") == image.digest


@with_clients(Skopeo)
def test_artifact_that_refers_to_an_image(client: Skopeo, place: Place, name: str) -> None:
    """An artifact with a subject arrives as it is, by its own tag and by the tag of its subject's digest."""
    repository, image = f"library/{name}", images.image(name)
    signature = images.artifact(name, image)
    index = images.referrers_index([signature])
    place.origin.push(repository, image, "1")
    place.origin.push(repository, signature, "signature")
    place.origin.push(repository, index, images.referrers_tag(image))
    by_tag = f"docker.io/{repository}:{images.referrers_tag(image)}"
    by_digest = f"docker.io/{repository}@{signature.digest}"
    assert client.inspect_raw(by_tag) == index.data
    assert client.pull(f"docker.io/{repository}:signature") == signature.digest
    with place.origin.stopped():
        assert client.inspect_raw(by_tag) == index.data
        assert client.inspect_raw(by_digest) == signature.data
        assert client.pull(by_digest) == signature.digest


@with_clients(Skopeo)
def test_referrers_of_a_registry_without_that_api(client: Skopeo, place: Place, name: str) -> None:
    """A 404 of the registry's is passed on, so that clients go on with the tag; an outage is no 404."""
    repository, image = f"library/{name}", images.image(name)
    place.origin.push(repository, image, "1")
    url = f"{place.mirror.url}/v2/{repository}/referrers/{image.digest}"
    assert place.namespace.request("GET", url).status == 404
    never_asked = f"{place.mirror.url}/v2/{repository}/referrers/{images.image(name + ' 2').digest}"
    with place.origin.stopped():
        answer = place.namespace.request("GET", never_asked)
    assert answer.status in {502, 503, 504}
    assert b'"errors"' in answer.body


@with_clients(Skopeo)
@pytest.mark.parametrize("kind", ["image", "index"])
def test_cache_directory_is_an_oci_layout(client: Skopeo, place: Place, name: str, kind: str) -> None:
    """Once the mirror has stopped, any OCI tool reads the tags that were pulled through it out of its cache."""
    image = images.image(name) if kind == "image" else images.multi_arch(name)
    place.origin.push(f"library/{name}", image, "1")
    client.pull_all(f"docker.io/library/{name}:1")
    place.mirror.stop()
    try:
        layout = f"oci:{place.mirror.cache}:docker.io/library/{name}:1"
        assert client.copy("--all", layout) == image.digest
        with pytest.raises(HarnessError):
            client.copy("--all", layout + "1")
    finally:
        place.mirror.start()
