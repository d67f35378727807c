"""More clients than the process has file descriptors for (`ulimit -n`)."""

import asyncio
import os
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e.client import connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.networks.conftest import MIB, at

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 150
BLOBS = 20


def with_descriptors(count: int) -> tuple[str, ...]:
    """What to start a service by for it to have so many."""
    return "sh", "-c", f'ulimit -n {count}; exec "$@"', "sh"


@pytest.fixture
def proxy(hub: Hub, tmp_path: Path) -> Proxy:
    """A service that has 128 descriptors: for 16 requests at once, over 32 connections."""
    hub.script.clear()
    hub.log.clear()
    return Proxy(
        tmp_path, settings({"docker.io": upstream(hub)}, fills={"budget": "20s"}), within=with_descriptors(128)
    )


async def test_more_clients_than_descriptors(proxy: Proxy, hub: Hub) -> None:
    """Each has all of its blob, or 503 with `Retry-After`; no transfer breaks, the log is quiet, and when they are gone
    all is as before.
    """
    async with proxy:
        place = at(hub, proxy)
        blobs = [os.urandom(MIB) for _ in range(BLOBS)]
        image = place.image(*blobs)
        await place.get("manifests", "1")
        hub.script.always("cdn", Quirk(rate=MIB))
        answers = await asyncio.gather(
            *(place.get("blobs", image.layers[number % BLOBS].digest) for number in range(CLIENTS))
        )
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) == {200, 503}, statuses
        for number, answer in enumerate(answers):
            if answer.status == 200:
                assert answer.complete
                assert answer.body == blobs[number % BLOBS]
            else:
                assert int(answer.headers["Retry-After"]) >= 1
        assert await proxy.total("refused_total", limit="requests") == statuses[503]
        hub.script.clear()
        for layer, data in zip(image.layers, blobs, strict=True):
            assert (await place.get("blobs", layer.digest)).body == data
        assert proxy.said("others wait until some leave")


async def test_connections_that_ask_for_nothing(proxy: Proxy, hub: Hub) -> None:
    """When there are as many as may be, others wait at the door, and come in as soon as one leaves."""
    async with proxy, AsyncExitStack() as stack:
        place = at(hub, proxy)
        digest = place.blob(b"a blob")
        idle = [await stack.enter_async_context(connect(proxy.address)) for _ in range(32)]
        for wire in idle:
            wire.send("/v2/")
            assert (await wire.answer()).status in (200, 503)
        waiting = asyncio.get_running_loop().create_task(place.get("blobs", digest))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert place.seen("blob") == []
        idle[0].writer.transport.abort()
        async with asyncio.timeout(5):
            assert (await waiting).body == b"a blob"


async def test_too_few_to_serve(hub: Hub, tmp_path: Path) -> None:
    """Is told at the start, with how many there have to be: so many do."""
    proxy = Proxy(tmp_path, settings({"docker.io": upstream(hub)}), within=with_descriptors(87))
    assert await proxy.run() == os.EX_UNAVAILABLE
    (line,) = proxy.log()
    assert line["msg"] == "cannot start: 87 file descriptors are granted (ulimit -Hn), 88 are the least"
    proxy.stderr.unlink()
    hub.script.clear()
    async with Proxy(tmp_path, proxy.settings, within=with_descriptors(88)) as proxy:
        place = at(hub, proxy)
        image = place.image(*(os.urandom(MIB) for _ in range(8)))
        hub.script.always("cdn", Quirk(rate=4 * MIB))
        answers = await asyncio.gather(*(place.get("blobs", layer.digest) for layer in image.layers))
        assert [answer.complete for answer in answers] == [True] * 8
        assert proxy.said("8 requests at once")
