"""The alerts fire when they should, and each has words on what to do."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.expressions import names
from tests.test_metrics import ADDED, CONTRACT

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "monitoring" / "rules.yaml"
RUNBOOK = ROOT / "docs" / "alerts.md"
HERE = Path(__file__).parent


def groups() -> list[dict[str, Any]]:
    """The groups of rules."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


ALERTS = {rule["alert"]: rule for group in groups() for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str) -> tuple[int, str]:
    """Exit status and everything that it says."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_rules_are_rules() -> None:
    """For Prometheus."""
    status, said = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert (status, "SUCCESS" in said) == (0, True), said


def test_the_configuration_on_the_page_is_one(tmp_path: Path) -> None:
    """For Prometheus, with the rules beside it; its job is one that the alerts know."""
    (text,) = re.findall(r"(?s)```yaml\n(rule_files.+?)```", (ROOT / "docs" / "metrics.md").read_text())
    (tmp_path / "prometheus.yaml").write_text(text)
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    status, said = promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    assert (status, "19 rules found" in said) == (0, True), said
    assert yaml.safe_load(text)["scrape_configs"][0]["job_name"] == "mirrorproxy"


@pytest.mark.parametrize("name", ["alerts.yaml", "alerts-slow.yaml", "records.yaml"])
def test_they_do_what_they_should(name: str) -> None:
    """Firing and not firing, on series made for it."""
    status, said = promtool("test", "rules", str(HERE / name))
    assert status == 0, said


def test_every_metric_is_one() -> None:
    """Of those that the program has, or Prometheus itself."""
    known = {f"{name}_total" if kind == "counter" else name for name, (kind, _) in (CONTRACT | ADDED).items()}
    for group in groups():
        for rule in group["rules"]:
            assert {re.sub(r"_bucket$", "", name) for name in names(rule["expr"])} <= known, rule


def test_the_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    """With other thresholds the alerts' own tests are red."""
    turned = RULES.read_text().replace("> 0.8\n", "> 0.95\n").replace("> 10\n", "> 1000\n")
    (tmp_path / "rules.yaml").write_text(turned)
    tests = yaml.safe_load((HERE / "alerts.yaml").read_text())
    tests["rule_files"] = ["rules.yaml"]
    tests["tests"] = [test for test in tests["tests"] if re.search("over 80 %|authentication", test["name"])]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tests))
    status, said = promtool("test", "rules", str(tmp_path / "alerts.yaml"))
    assert status == 1
    assert "MirrorproxyFilesystemNearlyFull" in said
    assert "MirrorproxyAuthFailures" in said


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_firing_and_not(alert: str) -> None:
    """Once at least, in the files above."""
    tests = [test for path in HERE.glob("alerts*.yaml") for test in yaml.safe_load(path.read_text())["tests"]]
    found = [
        bool(case.get("exp_samples"))
        for test in tests
        for case in test["promql_expr_test"]
        if f'alertname="{alert}"' in case["expr"]
    ]
    series = {series["series"] for test in tests for series in test["input_series"]}
    assert True in found
    assert False in found
    assert len(series) > len(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_to_do(alert: str) -> None:
    """A summary, a description, a severity, and a paragraph of its own."""
    rule = ALERTS[alert]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{alert.lower()}"
    paragraph = re.search(rf"(?ms)^## {alert}\n(.+?)(?=^## |\Z)", RUNBOOK.read_text())
    assert paragraph
    assert len(paragraph[1].split()) > 30


def test_no_paragraph_is_about_an_alert_that_is_gone() -> None:
    """In the order of the rules, or not."""
    assert set(re.findall(r"(?m)^## (\w+)$", RUNBOOK.read_text())) == set(ALERTS)
