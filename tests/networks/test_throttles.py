"""A throttle for each connection, and clients that ask for one blob by several ranges: what upstream sees of it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from mirrorproxy.names import Digest
from mirrorproxy.spans import Spans
from mirrorproxy.tasks import Tasks
from tests.e2e.client import begin, connect
from tests.e2e.conftest import Place
from tests.e2e.proxy import until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen
from tests.networks.conftest import MIB, asked, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 48 * MIB
EACH = Quirk(rate=4 * MIB)
"""The throttle."""
UNDER_WAY = MIB
"""What sockets may hold of an answer that is not wanted any more."""


@asynccontextmanager
async def watched(hub: Hub) -> AsyncIterator[list[int]]:
    """Counts, ten times a second, over how many connections the storage sends; the counts, when it is over."""
    counts: list[int] = []

    async def watch() -> None:
        before: list[int] = []
        while True:
            await asyncio.sleep(0.1)
            now = [seen.sent for seen in hub.seen("cdn")]
            counts.append(sum(1 for sent, was in zip(now, before, strict=False) if sent > was))
            before = now

    tasks = Tasks()
    tasks.start(watch(), name="watch")
    try:
        yield counts
    finally:
        await tasks.aclose()


def image(place: Place, size: int = SIZE) -> tuple[bytes, Digest]:
    """One layer."""
    data = os.urandom(size)
    return data, place.image(data).layers[0].digest


def sent_once(seen: list[Seen], size: int) -> None:
    """Check that the answers together were all of it, and no byte was sent twice but for what was under way."""
    got = Spans()
    for each, start in zip(seen, starts(seen), strict=True):
        got.add(start, start + each.sent)
    assert got.front >= size
    assert sum(each.sent for each in seen) <= size + len(seen) * UNDER_WAY


async def whole(place: Place, data: bytes, digest: Digest) -> None:
    """A client pulls all of it."""
    await place.get("manifests", "1")
    answer = await place.get("blobs", digest)
    assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
    await until(place.kept(digest).exists)


async def test_a_throttle_for_each_connection(place: Place) -> None:
    """The default: begins with one, and comes to four; each byte is sent once."""
    data, digest = image(place)
    place.hub.script.always("cdn", EACH)
    async with watched(place.hub) as counts:
        await whole(place, data, digest)
    assert counts[0] <= 1
    assert max(counts) == 4
    assert counts.index(2) <= 8, "decides within half a second"
    seen = place.seen("cdn")
    assert asked(seen)[0] is None
    sent_once(seen, SIZE)
    assert await place.proxy.total("fill_connections", registry=place.registry) == 0


async def test_a_line_that_is_full(place: Place) -> None:
    """All connections together have a limit: a second one does not pay, and is given up; each byte is sent once."""
    data, digest = image(place)
    line = Line(12 * MIB)
    place.hub.script.when("cdn", line.answer)
    async with watched(place.hub) as counts:
        await whole(place, data, digest)
    assert max(counts) <= 2
    assert counts[len(counts) // 2 :].count(2) <= 3, "one is enough, and stays alone"
    sent_once(place.seen("cdn"), SIZE)
