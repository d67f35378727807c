"""The dashboard is one that Grafana takes by import, by provisioning and from a sidecar alike."""

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

from tests.k8s.manifests import tool
from tests.monitoring.expressions import expressions, names
from tests.test_metrics import ADDED, CONTRACT

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent.parent / "monitoring" / "dashboard.json").read_text()
)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ROWS = [panel["title"] for panel in PANELS if panel["type"] == "row"]


def test_it_is_classic_and_new_to_every_grafana() -> None:
    """No id of the Grafana that it was made in, a name of its own, and one data source, which is a variable."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "mirrorproxy"
    assert 39 <= DASHBOARD["schemaVersion"] <= 41
    assert DASHBOARD["__inputs"] == []
    sources = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    assert [each["name"] for each in sources] == ["datasource"]
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"mirrorproxy", "${datasource}"}
    assert "DS_" not in text


def test_grafana_s_own_types_read_all_of_it() -> None:
    """What they do not know they leave out; these keys they leave out of every dashboard."""
    read = """if True:
        import json, sys
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
        register_default_plugins()
        print(JSONEncoder().encode(Dashboard.from_json(json.load(sys.stdin))))
    """
    found = json.loads(tool("python", "-c", read, given=json.dumps(DASHBOARD)))
    given = copy.deepcopy(DASHBOARD)
    for key in ("id", "__inputs", "__requires"):
        del given[key]
    for variable in given["templating"]["list"]:
        variable.pop("definition", None)
    assert lost(given, found) == []


def lost(given: Any, found: Any, path: str = "") -> list[str]:
    """What is in `given` and not, or otherwise, in `found`."""
    if isinstance(given, dict) and isinstance(found, dict):
        return [each for key in given for each in lost(given[key], found.get(key), f"{path}/{key}")]
    if isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        return [each for at, pair in enumerate(zip(given, found, strict=True)) for each in lost(*pair, f"{path}/{at}")]
    return [] if given == found else [path]


def test_rows_come_in_the_order_in_which_one_asks() -> None:
    """Does it pay, first."""
    assert ROWS == [
        "Hit ratio and bytes saved",
        "Throughput",
        "Time to first byte",
        "Upstream health and rate limits",
        "Downloads",
        "Disk and evictions",
        "Errors",
        "Process",
    ]


def test_panels_have_their_own_place() -> None:
    """And names; whole lines of 24, none over another."""
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_every_rate_fits_the_scrape_interval() -> None:
    """`$__rate_interval`, or the whole time shown; a zero that was measured, and none that was made up."""
    for title, expression in expressions():
        assert set(re.findall(r"\[([^\]]*)\]", expression)) <= {"$__rate_interval", "$__range"}, title
        assert "vector(" not in expression, title


def test_every_metric_is_one() -> None:
    """Of those that the program has."""
    known = {f"{name}_total" if kind == "counter" else name: kind for name, (kind, _) in (CONTRACT | ADDED).items()}
    for title, expression in expressions():
        used = {re.sub(r"_(bucket|count|sum)$", "", name) if name not in known else name for name in names(expression)}
        assert used <= set(known), title
