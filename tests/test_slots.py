"""Slots: so many at a time, in order."""

import asyncio

import pytest

from mirrorproxy.fill.slots import Slots


async def test_waiters_enter_in_the_order_in_which_they_came() -> None:
    """First come, first served; never more than the limit inside."""
    slots, entered, inside = Slots(2), [], 0

    async def enter(number: int) -> None:
        nonlocal inside
        async with slots:
            inside += 1
            assert inside <= 2
            entered.append(number)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter(number) for number in range(20)))
    assert entered == list(range(20))


async def test_a_higher_limit_lets_waiters_in_at_once() -> None:
    """A reload that raises the limit is felt by those who wait already."""
    slots = Slots(1)
    await slots.__aenter__()
    waiting = asyncio.gather(slots.__aenter__(), slots.__aenter__())
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.limit = 3
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancelled_waiter_gives_its_turn_to_the_next(late: bool) -> None:
    """Cancelled while it waits, or in the very moment in which its turn came: the slot is not lost."""
    slots = Slots(1)
    await slots.__aenter__()
    first = asyncio.get_running_loop().create_task(slots.__aenter__())
    second = asyncio.get_running_loop().create_task(slots.__aenter__())
    await asyncio.sleep(0)
    if late:
        await slots.__aexit__(None, None, None)
        first.cancel()
    else:
        first.cancel()
        await asyncio.sleep(0)
        await slots.__aexit__(None, None, None)
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
