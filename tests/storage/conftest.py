"""Fixtures: as in `tests.e2e`, a hub for all tests of a module, and a service of the test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import _no_task_left, hub, pytest_runtest_makereport, settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub

__all__ = ["_no_task_left", "hub", "pytest_runtest_makereport"]

MIB = 1 << 20

Serve = Callable[..., Proxy]


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service in front of the hub: `serve(cache={..}, within=(..), scrub={..}, **upstream)`."""
    hub.script.clear()
    hub.log.clear()

    def make(
        cache: dict[str, Any] | None = None,
        within: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        scrub: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Proxy:
        others = {"cache": cache or {}, "scrub": scrub or {}}
        return Proxy(
            tmp_path, settings({"docker.io": upstream(hub, **changes)}, **others), within=within, environ=environ
        )

    return make
