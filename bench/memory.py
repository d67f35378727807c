"""What a server's processes take, for the whole tree: memory at its peak, processor time until now; read from /proc."""

import os
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Generic, TypeVar

from bench import Failure

K = TypeVar("K", bound=Hashable)

_TICK = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.1
_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """The process and all below it, as they are now.

    Raises Failure where the kernel does not tell children (CONFIG_PROC_CHILDREN).
    """
    found = [pid]
    for parent in found:  # grows while it is read
        for thread in (_PROC / str(parent) / "task").glob("*"):
            try:
                found += map(int, (thread / "children").read_text().split())
            except FileNotFoundError:
                if thread.exists():
                    raise Failure("this kernel does not list a process's children: memory cannot be measured") from None
            except ProcessLookupError:
                continue  # ended meanwhile
    return found


def pss(pid: int) -> int:
    """Bytes the tree occupies, swap included: each process's proportional set size.

    A page that several processes map counts for each by its share, so that workers are not charged twice for one.
    """
    return sum(map(_pss_of_one, tree(pid)))


def descriptors(pid: int) -> int:
    """File descriptors that the tree has open."""
    return _entries(pid, "fd")


def threads(pid: int) -> int:
    """Threads of the tree."""
    return _entries(pid, "task")


def processor_seconds(pid: int) -> float:
    """User and system seconds of the tree, children that have ended included; in steps of a clock tick (10 ms)."""
    ticks = 0
    for one in tree(pid):
        try:
            stat = (_PROC / str(one) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile: its parent has its time now
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))  # utime, stime, cutime, cstime: proc(5)
    return ticks / _TICK


class Peaks(Generic[K]):
    """Samples every server's memory ten times a second until closed; `bytes` has the highest of each."""

    def __init__(self, servers: dict[K, int]) -> None:
        self.bytes = {name: pss(pid) for name, pid in servers.items()}
        self._servers = servers
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more samples. Raises Failure if they had ended before: the peak would be too low."""
        self._closing.set()
        self._thread.join()
        if self._failure:
            raise Failure(f"memory was not sampled to the end: {self._failure}")

    def _sample(self) -> None:
        try:
            while not self._closing.wait(_INTERVAL):
                for name, pid in self._servers.items():
                    self.bytes[name] = max(self.bytes[name], pss(pid))
        except (Failure, OSError, ValueError) as failure:
            self._failure = failure


def _entries(pid: int, folder: str) -> int:
    found = 0
    for one in tree(pid):
        try:
            found += len(os.listdir(_PROC / str(one) / folder))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    return found


def _pss_of_one(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # ended meanwhile
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss:", "SwapPss:")))
