"""What every test gets: nothing but loopback, no blocking call on the event loop, no task left behind."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

pytest_plugins = ["tests.skips"]

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(
        ("127.", "::1", "localhost")
    ):
        raise AssertionError(f"a test dialled {address}: nothing but loopback is reached")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that dials anything but loopback fails."""
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine is set up with does not reach the code under test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "XDG_CACHE_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def _never_blocks(_only_loopback: None) -> Iterator[BlockBuster]:
    """A blocking call of ours on the event loop is an error.

    It wraps what was put in place of `connect` before: in the other order each test leaves a wrapper behind, and after
    a thousand of them the stack ends.
    """
    with blockbuster_ctx("mirrorproxy") as detector:
        yield detector


@pytest.fixture(autouse=True)
async def _no_task_left() -> AsyncIterator[None]:
    """Every task that a test began has ended when the test has."""
    before = asyncio.all_tasks()
    yield
    left: list[asyncio.Task[Any]] = []
    for _ in range(20):
        left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left behind: {[task.get_name() for task in left]}")
