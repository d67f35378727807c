"""Fixtures: the place with everything running in it, and the clients."""

import re
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.clients.clients import REGISTRIES, Client
from tests.clients.mirror import Mirror
from tests.clients.netns import Namespace, tail
from tests.clients.place import Place
from tests.clients.registry import Registry


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """The registries and the mirror, running. The folder's path is short: sockets' paths end at 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="mirrorproxy-") as folder, Namespace() as namespace:
        directory = Path(folder)
        origins = {
            name: Registry(namespace, directory / name, port) for port, name in enumerate(REGISTRIES, start=5001)
        }
        mirror = Mirror(namespace, directory / "mirror", {name: origin.url for name, origin in origins.items()})
        for origin in origins.values():
            origin.start()
        mirror.start()
        yield Place(namespace, directory, origins, mirror)
        mirror.stop()
        assert mirror.complaints() == []


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest, place: Place) -> Iterator[Client]:
    """The client that `with_clients` names, running."""
    client = place.client(request.param)
    client.start()
    yield client
    client.stop()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository name, and a seed, that no other test has."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of the mirror's log with a failure."""
    report = yield
    place = getattr(item, "funcargs", {}).get("place")
    if report.failed and report.when == "call" and isinstance(place, Place):
        report.sections.append(("mirrorproxy's log", tail(place.mirror.log)))
    return report
