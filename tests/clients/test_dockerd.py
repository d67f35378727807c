"""What only Docker does."""

import pytest

from tests.clients import images
from tests.clients.clients import Dockerd
from tests.clients.place import Place, with_clients

pytestmark = pytest.mark.clients


@with_clients(Dockerd)
def test_create_from_a_pulled_image(client: Dockerd, place: Place, name: str) -> None:
    """`docker create` of an image that came through the mirror has that image's configuration."""
    place.origin.push(f"library/{name}", images.image(name), "1")
    client.pull(f"docker.io/library/{name}:1")
    assert client.create(f"docker.io/library/{name}:1") == {"seed": name}


@with_clients(Dockerd)
def test_short_names_are_docker_hubs_library(client: Dockerd, place: Place, name: str) -> None:
    """`docker pull name` means docker.io/library/name:latest."""
    image = images.image(name)
    place.origin.push(f"library/{name}", image, "latest")
    assert client.pull(name) == image.digest
    assert {request.status for request in place.origin.pulls(f"library/{name}")} == {200}
