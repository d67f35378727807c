"""An upstream is a `Registry`, through every kind of registry that there is."""

from collections.abc import AsyncIterator, Callable

import pytest

from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import SAMPLE, RegistryContract
from tests.fakes.content import Stock
from tests.fakes.hub import Hub
from tests.upstream.conftest import Connect

KINDS: dict[str, Callable[[], Hub]] = {
    "like Docker Hub": Hub,
    "one that keeps its blobs itself": lambda: Hub(auth="none", redirects=False),
    "with passwords": lambda: Hub(auth="basic", redirects=False, users={"ann": "secret"}),
}


class TestUpstream(RegistryContract):
    """The contract, over the network."""

    @pytest.fixture(params=KINDS)
    async def registry(self, request: pytest.FixtureRequest, connected: Connect) -> AsyncIterator[Failover]:
        """The sample, at a registry of this kind."""
        async with KINDS[request.param]() as hub:
            hub.repositories[SAMPLE.repository.name] = Stock(SAMPLE.manifests, SAMPLE.blobs, SAMPLE.tags)
            credentials = {"username": "ann", "password": "secret"} if hub.users else None
            yield connected(hub, credentials=credentials)
