"""A real Prometheus watches a real service to which everything happens: each panel of the dashboard shows it."""

import asyncio
import math
import subprocess
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.e2e.client import ask
from tests.e2e.conftest import _no_task_left, pytest_runtest_makereport
from tests.monitoring.expressions import expressions
from tests.monitoring.load import Load, loaded
from tests.monitoring.prometheus import SCRAPE, Prometheus

__all__ = ["_no_task_left", "pytest_runtest_makereport"]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("monitoring")]

SECONDS = 14.0
RATE = f"{int(SCRAPE * 4 * 1000)}ms"  # what Grafana makes of $__rate_interval


class Scene(NamedTuple):
    """What was watched, and when."""

    load: Load
    prometheus: Prometheus
    start: float
    end: float


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """All of the load, and then Prometheus with what it saw."""
    directory = tmp_path_factory.mktemp("monitoring")
    async with (
        loaded(directory / "proxy") as load,
        Prometheus(directory / "prometheus", [load.watched]) as prometheus,
    ):
        await prometheus.scraped()  # so that what comes is an increase
        start = time.time()
        await load.run(SECONDS)
        await asyncio.sleep(2 * SCRAPE)
        yield Scene(load, prometheus, start, time.time())


async def test_every_panel_shows_what_happened(scene: Scene) -> None:
    """A result for each expression, and other than zero, since the load had it all happen."""
    empty, zero = [], []
    for title, expression in expressions():
        asked = (
            expression.replace("$__rate_interval", RATE)
            .replace("$__range", f"{int(scene.end - scene.start)}s")
            .replace("$instance", ".*")
        )
        values = await scene.prometheus.values(asked, scene.start, scene.end)
        numbers = [value for value in values if math.isfinite(value)]
        if not numbers:
            empty.append(f"{title}: {asked}")
        elif not any(numbers):
            zero.append(f"{title}: {asked}")
    assert "\n".join(empty) == ""
    assert "\n".join(zero) == ""


async def test_the_rules_record_and_fire(scene: Scene) -> None:
    """What was recorded, and an alert that waits for nothing, with its words filled in."""
    for name in ("cache_hit_ratio:rate5m", "cache_byte_hit_ratio:rate5m", "bytes_saved:rate5m"):
        assert await scene.prometheus.now(f"mirrorproxy:{name}")
    alerts = (await scene.prometheus.get("alerts"))["alerts"]
    states = {(alert["labels"]["alertname"], alert["state"]) for alert in alerts}
    assert ("MirrorproxyDigestMismatch", "firing") in states
    assert {("MirrorproxyUpstreamDown", "pending"), ("MirrorproxyServingStale", "pending")} <= states
    wrong = next(alert for alert in alerts if alert["labels"]["alertname"] == "MirrorproxyDigestMismatch")
    assert wrong["annotations"]["summary"].startswith(f"wrong.test sent {scene.load.watched} bytes")
    for group in (await scene.prometheus.get("rules"))["groups"]:
        assert {rule["health"] for rule in group["rules"]} == {"ok"}


async def test_promtool_finds_nothing_to_complain_about(scene: Scene) -> None:
    """In what the process shows after all that."""
    text = (await ask(scene.load.watched, "/metrics")).body
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
