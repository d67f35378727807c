"""Fixtures: a service of two workers in front of a hub, and what can be seen of each of its processes from outside."""

import asyncio
import ssl
import subprocess
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.memory import tree
from tests.e2e.client import connect
from tests.e2e.conftest import (
    _no_task_left,
    hub,
    numbers,
    place,
    places,
    pytest_generate_tests,
    pytest_runtest_makereport,
    settings,
    upstream,
    workers,
)
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.networks.conftest import BUDGET, proxy
from tests.web.wire import Wire

__all__ = [
    "_no_task_left",
    "hub",
    "numbers",
    "place",
    "places",
    "proxy",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "workers",
]

MIB = 1 << 20
LIMIT = 1 << 16  # bytes that a client reads ahead
COUNT = 2
"""Workers of a service."""

PATIENCE = "15s"
"""With an upstream that sends nothing until a test has seen what it waits for."""

Serve = Callable[..., Proxy]


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service of two workers: `serve(folder, server={..}, cache={..}, environ={..}, within=(..), **upstream)`."""
    hub.script.clear()
    hub.log.clear()

    def make(folder: str = "proxy", **changes: Any) -> Proxy:
        given = {name: changes.pop(name) for name in ("environ", "within", "tls") if name in changes}
        parts: dict[str, Any] = {name: changes.pop(name) for name in ("cache", "fills", "log") if name in changes}
        parts["server"] = {"workers": COUNT, **changes.pop("server", {})}
        parts.setdefault("fills", {"budget": BUDGET})
        changes = {"idle_timeout": PATIENCE, **changes}
        return Proxy(tmp_path / folder, settings({"docker.io": upstream(hub, **changes)}, **parts), **given)

    return make


def pids(proxy: Proxy) -> list[int]:
    """The processes of the workers."""
    return [pid for pid in tree(proxy.pid) if name_of(pid) == "mirror-worker"]


def at_each_worker(folder: Path, work: str) -> None:
    """Have each worker do this first, of a service that has `folder` in its PYTHONPATH."""
    body = textwrap.indent(textwrap.dedent(work), "        ")
    (folder / "sitecustomize.py").write_text(f"""
import os
generation = 0
def forked():
    global generation
    generation += 1
    if generation == 2:  # the template is the first
{body}
os.register_at_fork(after_in_child=forked)
""")


def template(proxy: Proxy) -> int:
    """The process of which they are copies."""
    (pid,) = (pid for pid in tree(proxy.pid) if name_of(pid) == "mirror-template")
    return pid


def name_of(pid: int) -> str:
    """What `ps` calls a process; nothing, where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Does this process run? One that ended and nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_of(wire: Wire) -> int:
    """The process that has the other end of a connection."""
    host, port = wire.writer.get_extra_info("sockname")[:2]
    words = ["ss", "--no-header", "--tcp", "--numeric", "--processes", "dst", f"{host}:{port}"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(found.partition("pid=")[2].partition(",")[0])


async def worker_of(wire: Wire) -> str:
    """The worker that answers on this connection: the first part of the names that it gives to requests."""
    async with asyncio.timeout(10):
        return (await wire.ask("/v2/")).headers["X-Request-ID"].partition("-")[0]


@asynccontextmanager
async def connections(
    proxy: Proxy, each: int = 1, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[list[Wire], list[Wire]]]:
    """Connections to both workers, `each` to one. The kernel chooses whose one becomes: so until there are enough."""
    async with AsyncExitStack() as stack:
        found: dict[str, list[Wire]] = {}
        for _ in range(100 * each):
            wire = await stack.enter_async_context(connect(proxy.address, tls, limit=LIMIT))
            found.setdefault(await worker_of(wire), []).append(wire)
            if len(found) == COUNT and min(map(len, found.values())) >= each:
                one, other = found.values()
                yield one[:each], other[:each]
                return
        raise AssertionError(f"the connections were one worker's: {found}")
