"""What k8s/monitoring and the chart have of monitoring/: the same rules, the same dashboard, in valid objects."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import ROOT, Failed, Object, objects, one, pods, tool
from tests.k8s.test_chart import normalised, rendered

SCHEMAS = ROOT / "tests" / "k8s" / "schemas"


def rules() -> Any:
    """The one source of the rules."""
    return yaml.safe_load((ROOT / "monitoring" / "rules.yaml").read_text())


def validate(found: Object, folder: Path) -> None:
    """By the schema of its kind. Raises Failed."""
    path = folder / "object.json"
    path.write_text(json.dumps(found))
    tool("check-jsonschema", "--schemafile", SCHEMAS / f"{found['kind'].lower()}.json", path)


def test_the_rules_are_those_of_prometheus() -> None:
    """`make manifests` renews them."""
    assert one("monitoring", "PrometheusRule", "mirrorproxy")["spec"] == rules()


def test_the_operator_takes_them(tmp_path: Path) -> None:
    """No field that it does not know."""
    found = [each for each in objects("monitoring") if each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {each["kind"] for each in found} == {"PodMonitor", "PrometheusRule"}
    for each in found:
        validate(each, tmp_path)


@pytest.mark.parametrize(
    ("kind", "wrong"), [("PodMonitor", {"endpoints": []}), ("PrometheusRule", {"groups": [{"rules": []}]})]
)
def test_the_schemas_find_something(kind: str, wrong: Object, tmp_path: Path) -> None:
    """A ServiceMonitor's field in a PodMonitor, a group without a name."""
    found = one("monitoring", kind, "mirrorproxy")
    found["spec"] |= wrong
    with pytest.raises(Failed):
        validate(found, tmp_path)


def test_every_serving_pod_is_scraped() -> None:
    """The monitor's labels are the pods', its port is a name of theirs, and the alerts know the job by its label."""
    monitor = one("monitoring", "PodMonitor", "mirrorproxy")["spec"]
    for overlay in ("overlays/node-local", "overlays/node-port", "overlays/central", "overlays/two-tier"):
        for found in objects(overlay):
            if "template" in found.get("spec", {}):
                labels = found["spec"]["template"]["metadata"]["labels"]
                assert monitor["selector"]["matchLabels"].items() <= labels.items()
                assert labels[monitor["jobLabel"]] == "mirrorproxy"
        for _, pod in pods(overlay):
            assert monitor["podMetricsEndpoints"][0]["port"] in [port["name"] for port in pod["containers"][0]["ports"]]


def test_the_dashboard_is_grafana_s() -> None:
    """The file as it is, under the label that Grafana's sidecar looks for."""
    found = one("monitoring", "ConfigMap", "mirrorproxy-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {"mirrorproxy.json": (ROOT / "monitoring" / "dashboard.json").read_text()}


def test_the_chart_has_the_same() -> None:
    """With `monitoring.enabled`, and its labels where the operator looks for them."""
    values: Object = {"mode": "central", "monitoring": {"enabled": True}}
    both = normalised(objects("overlays/central")) | normalised(objects("monitoring"))
    assert normalised(rendered(values)) == both
    values["monitoring"]["labels"] = {"release": "stack"}
    for each in rendered(values):
        labelled = each["apiVersion"].startswith("monitoring.coreos.com/")
        assert (each["metadata"]["labels"].get("release") == "stack") == labelled
