"""Two ends of a line in one process, and what a worker has of a registry."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar

import pytest

from mirrorproxy.metrics import Metrics
from mirrorproxy.registry import Registry
from mirrorproxy.tasks import Tasks
from mirrorproxy.web.probes import OwnPages, Probes
from mirrorproxy.workers.hub import Hub
from mirrorproxy.workers.line import Answer, Line
from mirrorproxy.workers.remote import Remote

T = TypeVar("T")


class NoCatalog:
    """Nothing is cached."""

    async def catalog(self, registry: str | None, n: int, last: str | None) -> tuple[list[str], bool]:
        """As `Catalog.catalog`."""
        return [f"{registry}/{n}/{last}"], False


async def nothing(name: str, arguments: tuple[Any, ...]) -> Answer:
    """Who is asked here has no answers."""
    raise LookupError(name, arguments)


def lines(
    answering: Callable[[str, tuple[Any, ...]], Awaitable[Answer]],
    told: Callable[[str, tuple[Any, ...]], None] = lambda *_: None,
    ended: Callable[[], None] = lambda: None,
) -> tuple[Line, Line]:
    """Who asks, whose `ended` this is; and who answers."""
    one, other = socket.socketpair()
    return Line(one, nothing, lambda *_: None, ended), Line(other, answering, told, lambda: None)


def beside(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run something while the test goes on."""
    return Tasks().start(work, name="beside the test")


class Reached(NamedTuple):
    """A worker's view of a registry, the core's end of the line, and what was asked over it."""

    remote: Remote
    hub: Hub
    asked: list[str]


Reach = Callable[[Registry], Reached]


@pytest.fixture
async def reach() -> AsyncIterator[Reach]:
    """Makes a worker's view of a registry, and the core's end of the line."""
    async with AsyncExitStack() as stack:

        def made(registry: Registry) -> Reached:
            asked: list[str] = []
            hub = Hub(registry, NoCatalog(), OwnPages(Probes(), Metrics(["docker.io"]).collectors))
            closing = Tasks()

            def told(name: str, arguments: tuple[Any, ...]) -> None:
                assert name == "close"
                closing.start(hub.close(*arguments), name="close")

            async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
                asked.append(name)
                return await hub.answer(name, arguments)

            asking, answering = lines(answer, told)
            remote = Remote(asking)

            async def close() -> None:
                remote.let_go(all_of_them=True)
                await answering.aclose()
                await asking.aclose()
                await closing.ended()
                await hub.aclose()

            stack.push_async_callback(close)
            return Reached(remote, hub, asked)

        yield made
