"""A process that answers and may open nothing more."""

import asyncio
import os
from typing import Any

from mirrorproxy.workers.line import Answer
from tests.workers.conftest import beside, lines
from tests.workers.test_line import close, file_with, no_more_descriptors

LARGE = 8 << 20  # bytes: no socket takes as much at once


async def test_an_answer_that_waits_has_no_descriptor() -> None:
    """It would have to be copied, since whose it is may close it meanwhile: the answer comes without."""

    async def answer(name: str, arguments: tuple[Any, ...]) -> Answer:
        if name == "small":
            return Answer(name, file)
        sending.set()
        return Answer(bytes(LARGE))

    sending, file = asyncio.Event(), file_with(b"")
    asking, answering = lines(answer)
    with no_more_descriptors():
        before = beside(asking.call("large"))
        async with asyncio.timeout(5):
            await sending.wait()
            assert await asking.call("small") == ("small", None)
        assert len((await before).value) == LARGE
    os.close(file)
    await close(asking, answering)
