"""The end of a process that nobody tells of."""

import os
import signal
import subprocess

import pytest

from mirrorproxy.workers.template import Process


def begin(script: str) -> int:
    """A child of this process."""
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -signal.SIGKILL)])
async def test_a_child_is_asked_how_it_ended(script: str, status: int) -> None:
    """And is no zombie then."""
    process, before = Process(pid := begin(script)), len(os.listdir("/proc/self/fd"))
    process.watch()
    await process.wait()
    assert process.returncode == status
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def test_the_child_of_another_has_ended_somehow() -> None:
    """Its status is its parent's."""
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait $!"], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    process = Process(int(parent.stdout.readline()))
    process.watch()
    process.kill()
    await process.wait()
    assert process.returncode is None
    assert parent.wait(10) == 128 + signal.SIGKILL
    parent.stdout.close()


async def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed is gone."""
    monkeypatch.delattr(os, "pidfd_open")
    process, told = Process(pid := begin("sleep 60")), []
    process.watch(lambda: told.append(True))
    assert told == [True]
    process.kill()
    await process.wait()
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)
