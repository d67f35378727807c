"""Fixtures: as in `tests.e2e`."""

import logging

import pytest

from tests.e2e.conftest import _no_task_left, hub, pytest_runtest_makereport

__all__ = ["_no_task_left", "hub", "pytest_runtest_makereport"]


@pytest.fixture(autouse=True)
def _unheard_upstream(caplog: pytest.LogCaptureFixture) -> None:
    """The hub says a traceback for each client that leaves; to keep those of an hour takes gigabytes."""
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
