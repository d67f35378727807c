"""Slots: so many at a time, what is urgent first, then in order."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from mirrorproxy.fill.slots import Slots


def each(limit: int) -> Callable[[str], int]:
    """The same limit for every upstream."""
    return lambda _: limit


def never() -> bool:
    """Nobody waits for it."""
    return False


async def test_waiters_enter_in_the_order_in_which_they_came() -> None:
    """First come, first served; never more than the limit inside."""
    slots, entered, inside = Slots(2, each(9)), [], 0

    async def enter(number: int) -> None:
        nonlocal inside
        async with slots.turn("hub", never):
            inside += 1
            assert inside <= 2
            entered.append(number)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter(number) for number in range(20)))
    assert entered == list(range(20))


async def test_a_busy_upstream_does_not_keep_back_another() -> None:
    """One that has all it may have waits; who asks another passes by."""
    slots = Slots(9, each(1))
    async with slots.turn("hub", never):
        waiting = asyncio.get_running_loop().create_task(AsyncExitStack().enter_async_context(slots.turn("hub", never)))
        await asyncio.sleep(0)
        async with asyncio.timeout(1), slots.turn("ghcr", never):
            pass
        assert not waiting.done()
    await waiting


async def test_what_is_urgent_comes_first() -> None:
    """Also where it becomes urgent only while it waits."""
    slots, entered, wanted = Slots(1, each(9)), [], set()

    async def enter(name: str) -> None:
        async with slots.turn("hub", lambda: name in wanted):
            entered.append(name)

    async with slots.turn("hub", never):
        all_of_them = asyncio.gather(*(enter(name) for name in "abc"))
        await asyncio.sleep(0)
        wanted.add("c")
    await all_of_them
    assert entered == ["c", "a", "b"]


async def test_a_higher_limit_lets_waiters_in_at_once() -> None:
    """A reload that raises the limit is felt by those who wait already."""
    slots = Slots(1, each(9))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(slots.turn("hub", never))
        waiting = asyncio.gather(*(stack.enter_async_context(slots.turn("hub", never)) for _ in range(2)))
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.limit = 3
        await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancelled_waiter_gives_its_turn_to_the_next(late: bool) -> None:
    """Cancelled while it waits, or in the very moment in which its turn came: the slot is not lost."""
    slots, loop = Slots(1, each(9)), asyncio.get_running_loop()
    stack = AsyncExitStack()
    await stack.enter_async_context(slots.turn("hub", never))
    first = loop.create_task(AsyncExitStack().enter_async_context(slots.turn("hub", never)))
    second = loop.create_task(AsyncExitStack().enter_async_context(slots.turn("hub", never)))
    await asyncio.sleep(0)
    if late:
        await stack.aclose()
        first.cancel()
    else:
        first.cancel()
        await asyncio.sleep(0)
        await stack.aclose()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
