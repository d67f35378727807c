"""A real Prometheus in a process of its own, with our rules, and what can be asked of it."""

import asyncio
import json
from asyncio.subprocess import Process
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from tests.e2e.client import ask
from tests.e2e.proxy import own_address

_RULES = Path(__file__).parent.parent.parent / "monitoring" / "rules.yaml"
_START = 30.0  # seconds
SCRAPE = 0.5
"""Seconds from one scrape to the next."""


class Prometheus:
    """Scrapes the `targets` as job `mirrorproxy`; `async with`. Rules are evaluated once a second."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.address = own_address()
        self._directory = directory
        self._config = directory / "prometheus.yaml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": f"{int(SCRAPE * 1000)}ms", "evaluation_interval": "1s"},
                    "rule_files": [str(_RULES)],
                    "scrape_configs": [{"job_name": "mirrorproxy", "static_configs": [{"targets": targets}]}],
                }
            )
        )
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        with (self._directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={self._config}",
                f"--storage.tsdb.path={self._directory / 'data'}",
                f"--web.listen-address={self.address}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(_START):
            while not await self._ready():
                assert self._process.returncode is None, (self._directory / "log").read_text()
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def _ready(self) -> bool:
        try:
            return (await ask(self.address, "/-/ready")).status == 200
        except OSError:
            return False

    async def scraped(self) -> None:
        """Wait until it has scraped all targets twice. It looks for new ones every five seconds."""
        async with asyncio.timeout(_START):
            while not await self.now(f"min(count_over_time(up[{_START:.0f}s])) > 1"):
                await asyncio.sleep(0.1)

    async def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of the API."""
        answer = await ask(self.address, f"/api/v1/{path}?{urlencode(parameters)}")
        document = json.loads(answer.body)
        assert document["status"] == "success", document
        return document["data"]

    async def values(self, expression: str, start: float, end: float) -> list[float]:
        """Every number that an expression came to between two times, of all series, one a second."""
        found = await self.get("query_range", query=expression, start=start, end=end, step=1)
        return [float(value) for series in found["result"] for _, value in series["values"]]

    async def now(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        found: list[dict[str, Any]] = (await self.get("query", query=expression))["result"]
        return found
