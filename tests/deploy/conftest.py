"""Fixtures: an upstream for the tests of a module, the image; with a failure, the logs of the services that ran."""

from collections.abc import Iterator

import pytest

from tests.deploy.image import Engine
from tests.e2e.conftest import _no_task_left, hub, pytest_runtest_makereport

__all__ = ["_no_task_left", "engine", "hub", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the image built from the Dockerfile of this checkout: for tests of the xdist group `deploy image`."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    engine.build(VERSION="1.2.3", REVISION="abcdef")
    yield engine
    engine.close()
