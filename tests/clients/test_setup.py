"""What the real containerd makes of the files of `mirrorproxy setup`. Without a mirror no pull works here."""

import shutil

import pytest

from mirrorproxy.setup import BACKUP
from tests.clients import images
from tests.clients.clients import REGISTRIES, ContainerdSetUp
from tests.clients.netns import HarnessError
from tests.clients.place import Place, with_clients

pytestmark = pytest.mark.clients


def is_pulled(client: ContainerdSetUp, reference: str) -> bool:
    """Whether a pull works; what came is removed again."""
    try:
        client.pull(reference)
    except HarnessError:
        return False
    client.remove(reference)
    return True


@with_clients(ContainerdSetUp)
def test_set_up_upgrade_remove(client: ContainerdSetUp, place: Place, name: str) -> None:
    """From the moment of the command pulls come through the mirror; after --remove no longer, and the file is back."""
    for registry in REGISTRIES:
        place.origins[registry].push(f"team/{name}", images.image(f"{name} {registry}"), "1")
    hub, other = (f"{registry}/team/{name}:1" for registry in REGISTRIES)
    theirs = client.hosts / "_default" / "hosts.toml"
    theirs.parent.mkdir()
    theirs.write_text('[host."http://127.0.0.1:9"]\n  capabilities = ["pull", "resolve"]\n')
    before = theirs.read_bytes()
    assert not is_pulled(client, hub)

    client.setup("--replace", "--mirror", "http://127.0.0.1:9")  # where nothing listens, as before the first start
    assert not is_pulled(client, hub)
    assert f"upgrade {theirs}" in client.setup()
    assert theirs.with_name(BACKUP).read_bytes() == before
    assert is_pulled(client, hub)
    assert is_pulled(client, other)

    client.setup("--registry", "ghcr.io")
    assert theirs.read_bytes() == before
    assert is_pulled(client, other)
    assert not is_pulled(client, hub)

    client.setup("--remove")
    assert not is_pulled(client, other)
    assert [path for path in client.hosts.rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_bytes() == before
    shutil.rmtree(theirs.parent)


@with_clients(ContainerdSetUp)
def test_without_fallback(client: ContainerdSetUp, place: Place, name: str) -> None:
    """The form with the mirror alone is one that this containerd takes: pulls work, and nothing else is dialled."""
    place.origin.push(f"library/{name}", images.image(name), "1")
    client.setup("--no-fallback")
    assert is_pulled(client, f"docker.io/library/{name}:1")
    with pytest.raises(HarnessError) as caught:
        client.pull(f"docker.io/library/{name}:2")
    assert "registry-1" not in str(caught.value)
    client.setup("--remove")
