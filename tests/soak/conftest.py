"""Fixtures: as in `tests.e2e`."""

from tests.e2e.conftest import _no_task_left, hub, pytest_runtest_makereport

__all__ = ["_no_task_left", "hub", "pytest_runtest_makereport"]
