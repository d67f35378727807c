"""Fixtures: an upstream for the tests of a module; with a failure, the logs of the services that ran."""

from tests.e2e.conftest import _no_task_left, hub, pytest_runtest_makereport

__all__ = ["_no_task_left", "hub", "pytest_runtest_makereport"]
