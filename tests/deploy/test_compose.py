"""docs/examples: mirrorproxy, Prometheus and Grafana by Compose. What one file says of another is so."""

import json
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mirrorproxy.config import load

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
COMPOSE = EXAMPLES / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]


def _mounts(service: str) -> dict[str, Path]:
    """The files of this checkout that a service gets, by their path in the container; none may be written to."""
    found: dict[str, Path] = {}
    for volume in SERVICES[service]["volumes"]:
        source, target, *flags = volume.split(":")
        if source.startswith("."):
            assert flags == ["ro"]
            path = (EXAMPLES / source).resolve()
            assert path.exists(), f"{source}: Docker would make an empty directory of it"
            found |= {f"{target}/{each.name}": each for each in path.iterdir()} if path.is_dir() else {target: path}
    return found


def _read(service: str, path: str) -> Any:
    return yaml.safe_load(_mounts(service)[path].read_text())


def test_it_is_what_the_specification_of_compose_has() -> None:
    """By its own schema."""
    command = (Path(sys.prefix) / "tools" / "bin" / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = subprocess.run([*command, COMPOSE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_nothing_can_be_reached_from_other_machines_or_become_root() -> None:
    """Until somebody changes it."""
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_mirrorproxy_is_built_here_and_keeps_its_cache() -> None:
    """With a configuration that it takes, longer to end than it gives its transfers, and its port published."""
    service = SERVICES["mirrorproxy"]
    assert (EXAMPLES / service["build"] / "Dockerfile").is_file()
    settings = load(_mounts("mirrorproxy")["/etc/mirrorproxy/config.yaml"], {}).settings
    assert f"cache:{settings.cache.directory}" in service["volumes"]
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.server.grace
    ports = [int(port.rpartition(":")[2]) for port in service["ports"]]
    assert [address.port for address in settings.server.listen] == ports
    assert not any(address.is_loopback for address in (*settings.server.listen, *settings.server.metrics_listen))


def test_prometheus_scrapes_it_and_has_its_alerts(tmp_path: Path) -> None:
    """As promtool reads the files, side by side as they are in the container."""
    mounts = _mounts("prometheus")
    for target, source in mounts.items():
        assert PurePosixPath(target).parent == PurePosixPath("/etc/prometheus")
        shutil.copy(source, tmp_path / PurePosixPath(target).name)
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 1 rule files found" in done.stdout
    rules = yaml.safe_load((ROOT / "monitoring" / "rules.yaml").read_text())["groups"]
    assert f"SUCCESS: {sum(len(group['rules']) for group in rules)} rules found" in done.stdout
    (job,) = _read("prometheus", "/etc/prometheus/prometheus.yml")["scrape_configs"]
    assert "mirrorproxy" in job["job_name"]  # an alert looks for it
    (address,) = load(_mounts("mirrorproxy")["/etc/mirrorproxy/config.yaml"], {}).settings.server.metrics_listen
    assert job["static_configs"] == [{"targets": [f"mirrorproxy:{address.port}"]}]


def test_grafana_has_the_dashboard_and_the_alerts() -> None:
    """From the Prometheus beside it, which is the default source, and so what the dashboard's variable chooses."""
    (source,) = _read("grafana", "/etc/grafana/provisioning/datasources/mirrorproxy.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert (source["type"], source["isDefault"], source["jsonData"]["manageAlerts"]) == ("prometheus", True, True)
    interval = _read("prometheus", "/etc/prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = _read("grafana", "/etc/grafana/provisioning/dashboards/mirrorproxy.yaml")["providers"]
    (path,) = [path for path in _mounts("grafana") if path.startswith(provider["options"]["path"] + "/")]
    assert json.loads(_mounts("grafana")[path].read_text())["uid"] == "mirrorproxy"
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == path
