"""The place of these tests: a namespace with two registries, the mirror between them and the clients."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.clients import Buildah, Client, Containerd, ContainerdDefault, Dockerd, Podman, Skopeo
from tests.clients.mirror import Mirror
from tests.clients.netns import Namespace
from tests.clients.registry import Registry

CLIENTS: tuple[type[Client], ...] = (Dockerd, Containerd, ContainerdDefault, Podman, Buildah, Skopeo)


@dataclass(frozen=True)
class Place:
    """Everything that runs, and where the clients keep their things."""

    namespace: Namespace
    directory: Path
    origins: dict[str, Registry]
    mirror: Mirror

    @property
    def origin(self) -> Registry:
        """The registry that is docker.io here."""
        return self.origins["docker.io"]

    def client(self, kind: type[Client]) -> Client:
        """A client with nothing in it, not started."""
        return kind(self.namespace, self.directory / kind.name, self.mirror.address)


def with_clients(*kinds: type[Client]) -> pytest.MarkDecorator:
    """Runs a test once for each of these clients. Each is an xdist group: its daemon is started once, in one worker."""
    params = [pytest.param(kind, id=kind.name, marks=pytest.mark.xdist_group(kind.name)) for kind in kinds]
    return pytest.mark.parametrize("client", params, indirect=True, scope="session")
