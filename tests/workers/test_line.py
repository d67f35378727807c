"""Calls and descriptors between two processes."""

import asyncio
import gc
import os
import pickle
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import ManifestUnknown, MirrorproxyError, Overloaded, RateLimited
from mirrorproxy.workers.line import Answer, Line
from tests.workers.conftest import beside, lines, nothing


def file_with(data: bytes) -> int:
    """A descriptor of a file that has these bytes and no name."""
    fd = os.memfd_create("test")
    os.pwrite(fd, data, 0)
    return fd


def descriptors() -> set[str]:
    """What this process has open."""
    gc.collect()  # what other tests left
    return set(os.listdir("/proc/self/fd"))


async def close(*ends: Line) -> None:
    """Close these."""
    for end in ends:
        await end.aclose()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 600_000), st.integers(0, 600_000), st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_each_call_gets_its_own_answer(calls: list[tuple[int, int, bool]], order: random.Random) -> None:
    """However large questions and answers are, in whatever order they are ready: the value and the descriptor that go
    together arrive together, and nothing is left open.
    """
    ready = order.sample(range(len(calls)), len(calls))

    async def run() -> None:
        gates = [asyncio.Event() for _ in calls]

        async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
            number, question = arguments
            assert (name, len(question)) == ("ask", calls[number][0])
            await gates[number].wait()
            _, size, has_file = calls[number]
            if not has_file:
                return Answer(bytes([number]) * size)
            fd = file_with(b"%d" % number)
            asyncio.get_running_loop().call_soon(os.close, fd)  # it is the answerer's until it was sent, no longer
            return Answer(bytes([number]) * size, fd)

        asking, answering = lines(answer)
        asked = [beside(asking.call("ask", number, bytes(size))) for number, (size, _, _) in enumerate(calls)]
        for number in ready:
            await asyncio.sleep(0)
            gates[number].set()
        for number, (value, fd) in enumerate(await asyncio.gather(*asked)):
            _, size, has_file = calls[number]
            assert value == bytes([number]) * size
            assert (fd is not None) == has_file
            if fd is not None:
                assert os.pread(fd, 10, 0) == b"%d" % number
                os.close(fd)
        await close(asking, answering)

    before = descriptors()
    asyncio.run(run())
    assert descriptors() == before


async def test_what_is_told_comes_in_order_and_before_later_calls() -> None:
    """A call sees what was told before it."""
    told: list[Any] = []

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        return Answer((name, arguments, list(told)))

    asking, answering = lines(answer, lambda name, arguments: told.append((name, arguments)))
    asking.tell("one", 1)
    asking.tell("two", b"x" * 400_000)
    assert (await asking.call("seen")).value == ("seen", (), [("one", (1,)), ("two", (b"x" * 400_000,))])
    await close(asking, answering)


async def test_a_fault_in_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Is logged, once, and what comes behind it is taken."""
    told: list[str] = []

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        told.append(name)
        assert not arguments

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        return Answer((name, arguments))

    asking, answering = lines(answer, hear)
    asking.tell("one", 1)
    asking.tell("two")
    async with asyncio.timeout(5):
        assert (await asking.call("seen")).value == ("seen", ())
        assert (await asking.call("seen")).value == ("seen", ())
    assert told == ["one", "two"]
    assert [record.getMessage() for record in caplog.records] == ["one failed"]
    await close(asking, answering)


async def test_errors_come_as_what_they_are() -> None:
    """With everything that the table to HTTP needs; a fault of the program as one that tells nothing."""
    errors: dict[str, Exception] = {
        "limited": RateLimited("slow down", retry_after=7.0),
        "unknown": ManifestUnknown("no such manifest", detail={"Tag": "1"}),
        "overloaded": Overloaded("later", retry_after=3.0, limit="fills"),
        "fault": ValueError("https://signed.example/?token=secret"),
    }

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del arguments
        raise errors[name]

    asking, answering = lines(answer)
    with pytest.raises(RateLimited, match="slow down") as limited:
        await asking.call("limited")
    assert limited.value.retry_after == 7.0
    with pytest.raises(ManifestUnknown) as unknown:
        await asking.call("unknown")
    assert (unknown.value.detail, unknown.value.code) == ({"Tag": "1"}, "MANIFEST_UNKNOWN")
    with pytest.raises(Overloaded) as overloaded:
        await asking.call("overloaded")
    assert (overloaded.value.retry_after, overloaded.value.limit) == (3.0, "fills")
    with pytest.raises(MirrorproxyError) as fault:
        await asking.call("fault")
    assert "secret" not in str(fault.value)
    await close(asking, answering)


async def test_who_waits_no_more_ends_the_work() -> None:
    """A cancelled call cancels its answer; the line goes on."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del arguments
        if name == "quick":
            return Answer("here")
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Answer(None)

    asking, answering = lines(answer)
    call = beside(asking.call("slow"))
    await began.wait()
    assert len(answering) == 1
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert (await asking.call("quick")).value == "here"
    assert len(answering) == 0
    await close(asking, answering)


async def test_a_descriptor_for_nobody_is_closed() -> None:
    """The answer was on its way when its call was cancelled."""
    before = descriptors()
    held = asyncio.Event()

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del name, arguments
        held.set()
        fd = file_with(b"late")
        asyncio.get_running_loop().call_soon(os.close, fd)
        return Answer(None, fd)

    asking, answering = lines(answer)
    for _ in range(20):
        held.clear()
        call = beside(asking.call("file"))
        await held.wait()
        call.cancel()
        await asyncio.wait([call])
    last = (await asking.call("file")).fd  # those before have come
    assert last is not None
    os.close(last)
    await close(asking, answering)
    assert descriptors() == before


async def test_the_other_side_is_gone() -> None:
    """Calls under way fail, later ones too; what was being answered is cancelled; it is told once."""
    ended: list[int] = []
    began: list[int] = []
    cancelled = asyncio.Event()

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del name, arguments
        began.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Answer(None)

    asking, answering = lines(answer, ended=lambda: ended.append(1))
    calls = [beside(asking.call("slow")) for _ in range(3)]
    while len(began) < 3:
        await asyncio.sleep(0)
    await answering.aclose()
    assert cancelled.is_set()
    for call in calls:
        with pytest.raises(Overloaded):
            await call
    with pytest.raises(Overloaded):
        await asking.call("slow")
    asking.tell("nothing")
    assert ended == [1]
    await close(asking, answering)


async def test_who_does_not_read_is_given_up() -> None:
    """What is told to a process that hangs does not fill memory: its line ends, as if it had."""
    ended: list[int] = []
    one, other = socket.socketpair()
    line = Line(one, nothing, lambda *_: None, lambda: ended.append(1))
    for _ in range(100):
        line.tell("news", bytes(1 << 20))
    assert ended == [1]
    with pytest.raises(Overloaded):
        await line.call("anything")
    await line.aclose()
    other.close()


async def test_more_is_asked_for_than_may_wait() -> None:
    """Answers to many who read as fast as they can are no reason to give them up: they come one after another."""

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del name, arguments
        return Answer(bytes(256 << 10))

    ended = asyncio.Event()
    asking, answering = lines(answer, ended=ended.set)
    async with asyncio.timeout(20):
        found = await asyncio.gather(*(asking.call("chunk") for _ in range(300)))
    assert {len(answer.value) for answer in found} == {256 << 10}
    assert not ended.is_set()
    late = [beside(asking.call("chunk")) for _ in range(300)]
    while not len(answering):
        await asyncio.sleep(0)
    await close(answering, asking)  # whoever still waits for room is let go
    assert len(await asyncio.gather(*late, return_exceptions=True)) == 300


async def test_a_frame_that_is_too_long_by_itself() -> None:
    """Ends the line as one that nobody reads; not with an error of its own."""
    ended = asyncio.Event()
    asking, answering = lines(nothing, ended=ended.set)
    asking.tell("large", bytes(65 << 20))
    assert ended.is_set()
    await close(asking, answering)


async def test_what_comes_behind_the_end() -> None:
    """Of a read, is nobody's any more: where `told` finds that the other side is gone."""
    seen: list[str] = []

    def told(name: str, arguments: tuple[Any, ...]) -> None:
        del arguments
        seen.append(name)
        line.tell("answer")  # the other side is gone

    raw, other = socket.socketpair()
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    line = Line(other, nothing, told, lambda: seen.append("ended"))
    for message in ((2, "one", ()), (3, 1, None, True), (2, "two", ())):
        data = pickle.dumps(message)
        raw.sendall(len(data).to_bytes(4, "big") + data)
    raw.close()
    async with asyncio.timeout(5):
        while "ended" not in seen:
            await asyncio.sleep(0)
    assert (seen, failed) == (["one", "ended"], [])
    await line.aclose()


async def test_a_descriptor_that_cannot_be_sent() -> None:
    """Closed meanwhile, or one too many under way (unix(7), ETOOMANYREFS): the answer comes without, the line stays."""

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del arguments
        os.close(fd := file_with(b"0"))
        return Answer(name, fd)

    asking, answering = lines(answer)
    async with asyncio.timeout(5):
        assert await asking.call("one") == ("one", None)
        assert await asking.call("two") == ("two", None)
    await close(asking, answering)


async def test_no_descriptor_to_keep_a_copy_with() -> None:
    """While the other side is slow, at the limit of the process: the answer comes without its file, and is whole."""

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del arguments
        return Answer(name * (1 << 18), None if name == "large" else files[0])

    files = [file_with(b"0")]
    raw, other = socket.socketpair()
    answering = Line(other, answer, lambda *_: None, lambda: None)
    for number, name in enumerate(("large", "file")):
        call = pickle.dumps((0, number, name, ()))
        raw.sendall(len(call).to_bytes(4, "big") + call)
    with no_more_descriptors():
        for _ in range(50):
            await asyncio.sleep(0)
    asking = Line(raw, nothing, lambda *_: None, lambda: None)
    value, fd = await asking.call("unasked")  # this call has the number of the one before
    assert (value, fd) == ("file" * (1 << 18), None)
    await close(asking, answering)
    os.close(files[0])


async def test_descriptors_that_do_not_fit_are_missing_and_not_mixed_up() -> None:
    """At the limit of the process a file comes as None; the next one that comes is the right one."""

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        del name
        (number,) = arguments
        return Answer(number, files[number])

    files = [file_with(b"%d" % number) for number in range(8)]
    asking, answering = lines(answer)
    with no_more_descriptors():
        lost = await asyncio.gather(*(asking.call("file", number) for number in range(4)))
    assert [answer.fd for answer in lost] == [None] * 4
    assert [answer.value for answer in lost] == [0, 1, 2, 3]
    for number in range(4, 8):
        value, fd = await asking.call("file", number)
        assert value == number
        assert fd is not None
        assert os.pread(fd, 10, 0) == b"%d" % number
        os.close(fd)
    await close(asking, answering)
    for fd in files:
        os.close(fd)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """A time in which this process may open none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
