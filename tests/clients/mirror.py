"""mirrorproxy itself, started as its users start it: `mirrorproxy serve --config FILE` in a process of its own."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.clients.netns import Namespace, Process

PORT = 5000


class Mirror:
    """One mirrorproxy inside the namespace. The first of its upstreams is the default one."""

    def __init__(self, namespace: Namespace, directory: Path, upstreams: Mapping[str, str]) -> None:
        """`upstreams`: the URL of each registry's one endpoint, by the registry's name."""
        directory.mkdir(parents=True)
        self.address = f"127.0.0.1:{PORT}"
        self.url = f"http://{self.address}"
        self.cache = directory / "cache"
        self.log = directory / "log"
        self._config = directory / "config.yaml"
        self._namespace = namespace
        self._upstreams = upstreams
        self._process: Process | None = None

    def start(self, tag_ttl: str = "5m") -> None:
        """Starts it on its cache as it is, and waits until it is ready."""
        upstreams = {
            name: {"endpoints": [url], "default": number == 0, "tag_ttl": tag_ttl}
            for number, (name, url) in enumerate(self._upstreams.items())
        }
        settings = {
            "server": {"listen": [self.address]},
            "cache": {"directory": str(self.cache), "max_size": "2GiB", "min_free": "64MiB"},
            "upstreams": upstreams,
        }
        self._config.write_text(yaml.safe_dump(settings))
        argv = [sys.executable, "-m", "mirrorproxy", "serve", "--config", str(self._config)]
        self._process = self._namespace.start("mirrorproxy", argv, self.log)
        while True:
            try:
                if self._namespace.request("GET", f"{self.url}/readyz").status == 200:
                    return
            except OSError:
                pass  # it does not listen yet
            self._process.pause(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops it; its exit code."""
        assert self._process
        process, self._process = self._process, None
        return process.stop(number)

    def restart(self, tag_ttl: str = "5m") -> None:
        """Stops it in order and starts it again."""
        self.stop()
        self.start(tag_ttl)

    def complaints(self) -> list[str]:
        """The lines of its log that tell of an error, or are no log lines at all, such as a traceback's.

        Not those of requests: a client's test says itself which may fail.
        """
        return [line for line in self.log.read_text(errors="replace").splitlines() if _is_complaint(line)]

    def total(self, metric: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = self._namespace.request("GET", f"{self.url}/metrics").body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        )


def _is_complaint(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return True
    return entry["level"] not in {"debug", "info", "warning"} and entry["msg"] != "request"
