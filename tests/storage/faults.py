"""Faults of the disk in a running process: strace attaches to it and has system calls fail, as long as a block runs."""

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
    pid = proxy.pid
    process = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-qq", "-o", str(log), "-p", str(pid)),
        *("-e", f"trace={','.join(calls)}"),
        *("-e", f"inject={','.join(calls)}:error={error}"),
        *(part for path in paths for part in ("-P", str(path))),
        stdin=asyncio.subprocess.DEVNULL,
    )

    def attached() -> bool:
        return all(
            "TracerPid:\t0\n" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()
        )

    try:
        await until(attached)
        yield log
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
        await until(lambda: "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text())
