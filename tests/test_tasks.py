"""Tasks end with their owner, and shared work is done once, for all, whoever leaves."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mirrorproxy.errors import ManifestUnknown, MirrorproxyError, Overloaded
from mirrorproxy.tasks import SingleFlight, Tasks, within


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop complains about: exceptions that were never retrieved, tasks that were destroyed."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    assert found == []


class Work:
    """Work that ends when the test says so, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self) -> str:
        """Wait for the gate; then the result, or the error."""
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return f"result {number}"


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


# Tasks.


async def test_the_owner_cancels_and_waits() -> None:
    """When `aclose` returns, each task has ended, its cleaning up included."""
    tasks, ended = Tasks(), []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001 * number)
            ended.append(number)

    started = [tasks.start(work(number), name=f"work {number}") for number in range(3)]
    await settle()
    assert len(tasks) == 3
    await tasks.aclose()
    assert sorted(ended) == [0, 1, 2]
    assert all(task.cancelled() for task in started)
    assert len(tasks) == 0
    await tasks.aclose()


async def test_a_task_that_never_began_is_cancelled_too() -> None:
    """Closing right after starting leaves nothing, and no warning of a coroutine that was never awaited."""
    tasks = Tasks()
    task = tasks.start(asyncio.sleep(60), name="sleeper")
    await tasks.aclose()
    assert task.cancelled()


async def test_tasks_that_are_started_while_closing_end_too() -> None:
    """Cleaning up may start more."""
    tasks, more = Tasks(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            more.append(tasks.start(asyncio.sleep(60), name="late"))

    tasks.start(work(), name="early")
    await settle()
    await tasks.aclose()
    assert [task.cancelled() for task in more] == [True]


async def test_nothing_is_kept_of_a_task_that_ended() -> None:
    """Neither of one with a result nor of one with an error."""
    tasks = Tasks()
    good = tasks.start(asyncio.sleep(0, "done"), name="good")
    bad = tasks.start(within(0, asyncio.Event().wait()), name="bad")
    assert await good == "done"
    with pytest.raises(TimeoutError):
        await bad
    assert len(tasks) == 0


async def test_a_task_is_referenced_until_it_ends() -> None:
    """The loop alone would let it vanish, when what it waits for is referenced by nobody else."""
    tasks, ended = Tasks(), []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    tasks.start(work(), name="held")
    await settle()
    gc.collect()
    assert ended == []
    await tasks.aclose()
    assert ended == [True]


async def test_tasks_have_names() -> None:
    """They are what a dump of a hanging process shows."""
    tasks = Tasks()
    assert tasks.start(asyncio.sleep(0), name="fill of a/b").get_name() == "fill of a/b"
    await tasks.ended()


async def test_waiting_for_the_end_cancels_nothing() -> None:
    """`ended` waits for what was started meanwhile as well."""
    tasks, ended = Tasks(), []

    async def work(depth: int) -> None:
        await asyncio.sleep(0.001)
        if depth:
            tasks.start(work(depth - 1), name=f"depth {depth}")
        ended.append(depth)

    tasks.start(work(3), name="top")
    await within(5, tasks.ended())
    assert ended == [3, 2, 1, 0]
    await tasks.ended()


async def test_an_error_of_ours_is_told_at_debug_level(
    complaints: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever started the task handles those; nothing complains that nobody retrieved it."""
    work, tasks = Work(), Tasks()
    work.error = ManifestUnknown("gone")
    work.gate.set()
    with caplog.at_level(logging.DEBUG, "mirrorproxy"):
        tasks.start(work(), name="lookup")
        await tasks.ended()
    assert [
        (record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("mirror")
    ] == [("DEBUG", "task lookup ended with ManifestUnknown")]


async def test_a_fault_is_told_loudly(complaints: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    """With the place, so that a background task does not die in silence; without its words, which may hold a secret."""
    work, tasks = Work(), Tasks()
    work.error = ValueError("https://blobs.example/?signature=secret")
    work.gate.set()
    tasks.start(work(), name="housekeeping")
    await tasks.ended()
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("task housekeeping ended with ValueError\n")
    assert "test_tasks.py" in record.getMessage()
    assert "secret" not in caplog.text


async def test_within_is_a_bound() -> None:
    """What is in time passes, what is not is cancelled and a `TimeoutError`."""
    work = Work()
    assert await within(5, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(TimeoutError):
        await within(0.001, work())
    assert work.cancelled == 1


# SingleFlight.


@pytest.fixture
async def flight(complaints: list[dict[str, Any]]) -> AsyncIterator[SingleFlight[str, str]]:
    """Closed at the end; nothing may be left of it."""
    found = SingleFlight[str, str]()
    yield found
    await found.aclose()
    assert len(found) == 0


async def test_the_result_is_shared(flight: SingleFlight[str, str]) -> None:
    """One execution; one of the waiters began it, the others are told that they joined."""
    work, tasks = Work(), Tasks()
    waiters = [tasks.start(flight.do("key", work), name=f"waiter {number}") for number in range(50)]
    await settle()
    assert (work.begun, len(flight)) == (1, 1)
    work.gate.set()
    assert await asyncio.gather(*waiters) == [("result 1", number > 0) for number in range(50)]
    assert len(flight) == 0


async def test_the_error_is_shared(flight: SingleFlight[str, str]) -> None:
    """Each waiter gets it, and the next one to ask begins anew."""
    work, tasks = Work(), Tasks()
    work.error = ManifestUnknown("gone")
    waiters = [tasks.start(flight.do("key", work), name=f"waiter {number}") for number in range(5)]
    await settle()
    work.gate.set()
    assert await asyncio.gather(*waiters, return_exceptions=True) == [work.error] * 5
    work.error = None
    assert await flight.do("key", work) == ("result 2", False)


async def test_keys_are_apart(flight: SingleFlight[str, str]) -> None:
    """Different work runs at the same time."""
    one, other = Work(), Work()
    tasks = Tasks()
    waiters = [tasks.start(flight.do(key, work), name=key) for key, work in (("a", one), ("b", other))]
    await settle()
    assert len(flight) == 2
    other.gate.set()
    assert await waiters[1] == ("result 1", False)
    assert not waiters[0].done()
    one.gate.set()
    assert await waiters[0] == ("result 1", False)


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_waiter_that_is_cancelled_harms_nobody(flight: SingleFlight[str, str], leaver: int) -> None:
    """Not even the one that began the work."""
    work, tasks = Work(), Tasks()
    waiters = [tasks.start(flight.do("key", work), name=f"waiter {number}") for number in range(3)]
    await settle()
    waiters[leaver].cancel()
    await settle()
    assert waiters[leaver].cancelled()
    work.gate.set()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [result for result in results if not isinstance(result, asyncio.CancelledError)] == [
        ("result 1", number > 0) for number in range(3) if number != leaver
    ]
    assert (work.begun, work.cancelled) == (1, 0)


async def test_a_waiter_that_runs_out_of_time_harms_nobody(flight: SingleFlight[str, str]) -> None:
    """Its time-out is its own, and a `TimeoutError` as anywhere."""
    work, tasks = Work(), Tasks()
    patient = tasks.start(flight.do("key", work), name="patient")
    await settle()
    with pytest.raises(TimeoutError):
        await within(0.001, flight.do("key", work))
    work.gate.set()
    assert await patient == ("result 1", False)


@pytest.mark.parametrize("error", [None, ManifestUnknown("gone")])
async def test_the_work_goes_on_without_waiters(
    flight: SingleFlight[str, str], complaints: list[dict[str, Any]], error: MirrorproxyError | None
) -> None:
    """Who comes later joins it; if nobody comes, it ends by itself, and an error of it disturbs nothing."""
    work, tasks = Work(), Tasks()
    work.error = error
    for number in range(2):
        waiter = tasks.start(flight.do("key", work), name=f"waiter {number}")
        await settle()
        waiter.cancel()
        await settle()
    assert (work.begun, work.cancelled, len(flight)) == (1, 0, 1)
    work.gate.set()
    await settle()
    assert len(flight) == 0
    gc.collect()
    assert complaints == []


async def test_the_key_is_free_when_the_work_ends(flight: SingleFlight[str, str]) -> None:
    """A waiter that asks again at once does not get the old answer again."""
    work = Work()
    work.gate.set()
    assert await flight.do("key", work) == ("result 1", False)
    assert await flight.do("key", work) == ("result 2", False)


async def test_whoever_asks_after_the_end_gets_new_work(flight: SingleFlight[str, str]) -> None:
    """Also in the very round of the loop in which the work ended, before anyone heard of it."""
    over, second = asyncio.Event(), Work()

    async def first() -> str:
        over.set()  # wakes the late one, which then runs before the callbacks of this task
        return "old"

    async def late() -> tuple[str, bool]:
        await over.wait()
        return await flight.do("key", second)

    tasks = Tasks()
    waiting = tasks.start(late(), name="late")
    await settle()
    assert await flight.do("key", first) == ("old", False)
    joining = tasks.start(flight.do("key", second), name="joining")  # the end of the first frees no key of the second
    await settle()
    second.gate.set()
    assert await waiting == ("result 1", False)
    assert await joining == ("result 1", True)
    assert len(flight) == 0


async def test_closing_is_an_error_for_the_waiters_and_no_cancellation(flight: SingleFlight[str, str]) -> None:
    """A request whose shared work is stopped has something to answer; it was not cancelled itself."""
    work, tasks = Work(), Tasks()
    waiters = [tasks.start(flight.do("key", work), name=f"waiter {number}") for number in range(3)]
    await settle()
    await flight.aclose()
    assert work.cancelled == 1
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded] * 3
    assert len(flight) == 0


async def test_closing_before_the_work_began_frees_the_key(flight: SingleFlight[str, str]) -> None:
    """The work never runs then, and cannot clean up after itself."""
    work, tasks = Work(), Tasks()
    waiter = tasks.start(flight.do("key", work), name="waiter")
    await asyncio.sleep(0)
    assert (len(flight), work.begun) == (1, 0)
    await flight.aclose()
    assert len(flight) == 0
    with pytest.raises(Overloaded):
        await waiter
    work.gate.set()
    assert await flight.do("key", work) == ("result 1", False)


async def test_a_waiter_that_is_cancelled_while_closing_is_cancelled(flight: SingleFlight[str, str]) -> None:
    """Its own cancellation is never turned into an error."""
    work, tasks = Work(), Tasks()
    waiter = tasks.start(flight.do("key", work), name="waiter")
    await settle()
    waiter.cancel()
    await flight.aclose()
    await settle()
    assert waiter.cancelled()


async def test_work_that_cannot_begin_holds_no_key(flight: SingleFlight[str, str]) -> None:
    """An error in making the coroutine is the caller's."""

    def broken() -> Any:
        raise ValueError("no coroutine")

    with pytest.raises(ValueError, match="no coroutine"):
        await flight.do("key", broken)
    assert len(flight) == 0


async def test_an_error_that_all_raise_does_not_grow(flight: SingleFlight[str, str]) -> None:
    """The one exception collects the frames of those who raise it, but not those of all."""
    work, tasks = Work(), Tasks()
    work.error = ManifestUnknown("gone")
    waiters = [tasks.start(flight.do("key", work), name=f"waiter {number}") for number in range(200)]
    await settle()
    work.gate.set()
    await asyncio.gather(*waiters, return_exceptions=True)
    depth, traceback = 0, work.error.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 20
