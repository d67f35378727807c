"""Faults in a running process: strace attaches to it and has system calls fail or hang, as long as a block runs."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.proxy import Proxy, until


@asynccontextmanager
async def failing(proxy: Proxy, *calls: str, error: str, paths: tuple[Path, ...] = ()) -> AsyncIterator[Path]:
    """These system calls fail with `error`; with `paths` only those that concern one of these files.

    What was injected is in the file that this gives.
    """
    log = proxy.directory / "strace"
    only = [part for path in paths for part in ("-P", str(path))]
    async with _attached(proxy.pid, log, ",".join(calls), f"error={error}", *only):
        yield log
    await until(lambda: "TracerPid:\t0\n" in Path(f"/proc/{proxy.pid}/status").read_text())


@asynccontextmanager
async def hanging(pid: int, log: Path) -> AsyncIterator[None]:
    """A process does not notice anything any more."""
    async with _attached(pid, log, "/^epoll_p?wait$", "delay_enter=60s"):
        await until(lambda: "epoll" in log.read_text())
        yield


@asynccontextmanager
async def _attached(pid: int, log: Path, calls: str, what: str, *options: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-qq", "-o", str(log), "-p", str(pid)),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:{what}", *options),
        stdin=asyncio.subprocess.DEVNULL,
    )

    def attached() -> bool:
        return all(
            "TracerPid:\t0\n" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()
        )

    try:
        await until(attached)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
