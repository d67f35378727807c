"""Tasks with an owner, and work that many wait for but one does."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from mirrorproxy.errors import MirrorproxyError, Overloaded

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one owner: named, referenced until they end, cancelled and awaited by `aclose`.

    The event loop keeps weak references only; a task that nobody holds may vanish in mid-flight.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` as a task of this owner.

        An exception is logged when it ends, since nobody may await it: a fault of the program as an error.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, MirrorproxyError):
            log.debug("task %s ended with %s", task.get_name(), type(error).__name__)
        else:  # where it happened, without the message: what a library puts there may hold a signed URL
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("task %s ended with %s\n%s", task.get_name(), type(error).__name__, place)

    def __len__(self) -> int:
        return len(self._tasks)

    async def ended(self) -> None:
        """Wait until all have ended by themselves."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def aclose(self) -> None:
        """Cancel what still runs and wait until it ended."""
        while self._tasks:
            pending = list(self._tasks)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


class SingleFlight(Generic[K, T]):
    """One execution at a time for a key; who asks meanwhile gets the same result, or the same error.

    The work is a task of its own: a waiter that leaves takes nothing from the others, and the work goes on without any.
    Nothing is kept after the end.
    """

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[T]] = {}
        self._tasks = Tasks()

    async def do(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The result of `work()`, and whether it was another's. Raises what `work()` raises.

        Raises `Overloaded` where the work was cancelled: whoever waits for it was not.
        """
        task = self._running.get(key)
        joined = task is not None and not task.done()
        if task is None or task.done():  # done: its callbacks have yet to run
            task = self._tasks.start(work(), name=f"single flight of {key}")
            self._running[key] = task
            task.add_done_callback(lambda ended: self._free(key, ended))
        await asyncio.wait([task])
        if task.cancelled():
            raise Overloaded("the work that this waited for was stopped; ask again")
        return task.result(), joined

    def _free(self, key: K, ended: asyncio.Task[T]) -> None:
        if self._running.get(key) is ended:
            del self._running[key]

    def __len__(self) -> int:
        return len(self._running)

    async def aclose(self) -> None:
        """Cancel what runs."""
        await self._tasks.aclose()


async def within(seconds: float, work: Awaitable[T]) -> T:
    """`work`, for `seconds` at most. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        return await work
