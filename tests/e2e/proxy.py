"""mirrorproxy in a process of its own, and what can be seen of it from outside."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import ssl
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.client import ask
from tests.web.wire import Answer

RUNNING: list["Proxy"] = []
"""Those whose logs are shown when a test fails."""

_START = 30.0  # seconds until it is ready
_END = 20.0  # until it has ended
_serial = itertools.count()
_HOSTS = 254  # addresses of a process; then it goes on with another port
_workers = 1


@contextlib.contextmanager
def served_by(workers: int) -> Iterator[int]:
    """From now on services have so many workers, where nothing else is said."""
    global _workers  # noqa: PLW0603 - services are made in many places
    before, _workers = _workers, workers
    try:
        yield workers
    finally:
        _workers = before


def own_address() -> str:
    """A loopback address that nobody else listens on: all of 127.0.0.0/8 is ours, so no port has to be found."""
    pid, (more, number) = os.getpid(), divmod(next(_serial), _HOSTS)
    return f"127.{64 + (pid >> 8) % 64}.{pid % 256}.{1 + number}:{5000 + more}"


class Proxy:
    """One service with its configuration, cache and logs in `directory`; `async with`, or `start` and `stop`.

    `settings` are written to its configuration file at each start; `server.listen`, `server.workers` and `cache` have
    values that suit tests where none are given. `within` is a command that it is started by, `tls` what its clients
    trust.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        within: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        server = {"listen": [own_address()], "workers": _workers, **settings.get("server", {})}
        self.address = server["listen"][0]
        self.settings: dict[str, Any] = {
            **settings,
            "server": server,
            "cache": {"directory": "cache", "max_size": "1GiB", "min_free": "1MiB", **settings.get("cache", {})},
        }
        self.cache: Path = directory / self.settings["cache"]["directory"]
        self.config = directory / "config.yaml"
        self.environ = dict(environ or {})
        self._arguments = arguments
        self._within = within
        self._tls = tls
        self._process: Process | None = None
        self._tolerated: list[str] = []

    # Starting, stopping.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            await self.kill()
            return
        if self._process is not None:
            assert await self.stop() == 0
        assert self.complaints() == []

    def configure(self) -> None:
        """Write the settings to the file."""
        self.config.write_text(yaml.safe_dump(self.settings))

    async def launch(self) -> None:
        """Start the process, and wait for nothing."""
        self.configure()
        RUNNING.append(self)
        async with AsyncExitStack() as stack:
            out, err = (stack.enter_context(path.open("ab")) for path in (self.stdout, self.stderr))
            self._process = await asyncio.create_subprocess_exec(
                *self._within,
                *(sys.executable, "-m", "mirrorproxy", "serve", "--config", str(self.config), *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | self.environ,
            )

    async def start(self) -> None:
        """Start it, on the cache as it is, and wait until it is ready."""
        await self.launch()
        async with asyncio.timeout(_START):
            while not await self._ready():
                assert self._process is not None
                assert self._process.returncode is None, f"it ended with {self._process.returncode}"
                await asyncio.sleep(0.02)

    async def _ready(self) -> bool:
        try:
            return (await self.ask("/readyz")).status == 200
        except OSError:
            return False

    async def run(self) -> int:
        """Start it and wait for its end, where there should be one; its exit status."""
        await self.launch()
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        assert self._process is not None
        try:
            async with asyncio.timeout(_END):
                status = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise
        finally:
            RUNNING.remove(self)
        self._process = None
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it by a signal; its exit status."""
        self.send(number)
        return await self.ended()

    async def kill(self) -> None:
        """End it with -9, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            await self.ended()

    async def restart(self) -> None:
        """Stop it in order and start it again."""
        assert await self.stop() == 0
        await self.start()

    async def reload(self) -> list[dict[str, Any]]:
        """Write the settings, send SIGHUP, and wait until it has said what came of it: the log from there on."""
        self.configure()
        before = len(self.log())
        self.send(signal.SIGHUP)
        await until(lambda: any("loaded anew" in line["msg"] for line in self.log()[before:]))
        return self.log()[before:]

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    # Asking.

    async def ask(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        return await ask(self.address, target, method, headers, tls=self._tls)

    async def metrics(self) -> str:
        """The metrics page."""
        answer = await self.ask("/metrics")
        assert answer.status == 200
        return answer.body.decode()

    async def total(self, metric: str, **labels: str) -> float:
        """The sum of the samples of `mirrorproxy_<metric>` that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == f"mirrorproxy_{metric}" and labels.items() <= sample.labels.items()
        )

    async def idle(self) -> None:
        """Wait until no download runs any more."""
        while await self.total("fills_inflight"):
            await asyncio.sleep(0.02)

    # What it writes.

    @property
    def stdout(self) -> Path:
        """The access log."""
        return self.directory / "stdout"

    @property
    def stderr(self) -> Path:
        """The log."""
        return self.directory / "stderr"

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in _lines(self.stderr)]

    def said(self, text: str) -> bool:
        """Does a line of the log contain this?"""
        return any(text in line["msg"] for line in self.log())

    def requests(self) -> list[dict[str, Any]]:
        """The lines of the access log so far, but for those of the health pages and metrics."""
        lines = [json.loads(line) for line in _lines(self.stdout)]
        return [line for line in lines if line["path"] not in ("/readyz", "/metrics")]

    async def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's line for a request."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.requests() if line["request_id"] == request_id]

        await until(lambda: bool(found()))
        (line,) = found()
        return line

    async def logged_now(self, target: str) -> dict[str, Any] | None:
        """Ask for something: its line in the access log, None where none comes."""
        request_id = (await self.ask(target)).headers["X-Request-ID"]
        await asyncio.sleep(0.3)  # lines are written five times a second
        return next((line for line in self.requests() if line["request_id"] == request_id), None)

    def tolerate(self, pattern: str) -> None:
        """An error in the log that matches this is no complaint: the test is about it."""
        self._tolerated.append(pattern)

    def complaints(self) -> list[str]:
        """The lines of the log that tell of an error, or are no log lines at all, such as a traceback's."""
        return [
            line
            for line in _lines(self.stderr)
            if _is_complaint(line) and not any(re.search(pattern, line) for pattern in self._tolerated)
        ]

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything in the cache directory, with size and time of change."""
        found = {}
        for path in sorted(self.cache.rglob("*")):
            stat = path.lstat()
            found[str(path.relative_to(self.cache))] = (stat.st_size, stat.st_mtime_ns)
        return found

    def partials(self) -> list[dict[str, Any]]:
        """The states of the downloads that did not come to their end, as far as they are on the disk."""
        return [json.loads(path.read_text()) for path in (self.cache / "partial").glob("*/state")]

    def descriptors(self) -> list[str]:
        """What it has open, by name."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                found.append(str(link.readlink()))
            except FileNotFoundError:
                continue  # it was closed in this moment
        return found


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is true that can be seen but not awaited, in the files of another process mostly."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def _lines(path: Path) -> list[str]:
    """A log's whole lines: a reader sees the file grow a memory page at a time, in the midst of a line."""
    text = path.read_text(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _is_complaint(line: str) -> bool:
    try:
        return json.loads(line)["level"] not in {"debug", "info", "warning"}
    except ValueError:
        return True
