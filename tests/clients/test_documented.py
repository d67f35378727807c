"""The files of docs/clients.md, used by the clients they are for.

Docker's, containerd's and podman's are what all tests here run with; this is what only those for Kubernetes do.
"""

import pytest

from tests.clients import images
from tests.clients.clients import REGISTRIES, Kubelet
from tests.clients.place import Place, with_clients

pytestmark = pytest.mark.clients


@with_clients(Kubelet)
@pytest.mark.parametrize("registry", REGISTRIES)
def test_kubernetes(client: Kubelet, place: Place, name: str, registry: str) -> None:
    """A pull by the CRI goes through the mirror: by docker.io's own file, and by the one for all others."""
    image = images.multi_arch(name, attested=True)
    origin = place.origins[registry]
    origin.push(f"team/{name}", image, "1")
    reference = f"{registry}/team/{name}:1"
    assert client.pull(reference) == image.digest
    client.remove(reference)
    with origin.stopped():
        assert client.pull(reference) == image.digest
    client.remove(reference)
