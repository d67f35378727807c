"""A test that is skipped shows nothing: a run in which one was skipped fails, but for those listed here.

A pytest plugin, loaded by `tests/conftest.py`.
"""

import pytest

ALLOWED: dict[str, str] = {}
"""Node id (`tests/test_x.py::test_y`) to the reason why it may be skipped somewhere, and where it does run."""

_skipped = pytest.StashKey[dict[str, str]]()


def enforce(session: pytest.Session) -> None:
    """Fails the run for every skip that is not listed."""
    if session.config.stash[_skipped] and session.exitstatus in {
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class _Watch:
    """Collects what was skipped: whole modules when they are collected, tests when they are run."""

    def __init__(self, skipped: dict[str, str]) -> None:
        self._skipped = skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report.nodeid, report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):  # pytest tells an expected failure as a skip
            self._note(report.nodeid, report)

    def _note(self, node: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and node not in ALLOWED:
            self._skipped[node] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_configure(config: pytest.Config) -> None:
    """Begins to watch. Under xdist the reports of all workers arrive in the first process."""
    skipped = config.stash.setdefault(_skipped, {})
    config.pluginmanager.register(_Watch(skipped), "mirrorproxy-skips")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Decides."""
    enforce(session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says which tests failed the run."""
    for node, reason in config.stash[_skipped].items():
        terminalreporter.write_line(f"FAILED {node}: skipped, and not listed in tests/skips.py: {reason}", red=True)
