"""Too few file descriptors (`ulimit -n`) for what two workers and the core would like to have open."""

import asyncio
import os
import resource
from collections import Counter

import pytest

from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.workers.processes.conftest import MIB, Serve, connections, pids

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("workers descriptors")]

CLIENTS = 150
BLOBS = 20
FEW = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")


async def test_more_clients_than_descriptors(serve: Serve, hub: Hub) -> None:
    """Cold and warm: each has all of its own blob, or 503 with `Retry-After`; no transfer breaks, and nobody gets a
    byte of another's. The log says what is short, and when they are gone nothing is left open.
    """
    blobs = [os.urandom(MIB) for _ in range(BLOBS)]
    image = hub.add_image("team/a", "1", *blobs)
    async with serve(within=FEW) as proxy:
        await proxy.ask("/v2/team/a/manifests/1")
        targets = [f"/v2/team/a/blobs/{layer.digest}" for layer in image.layers]
        before = opened(pids(proxy))
        for rate in (2 * MIB, None):
            hub.script.always("cdn", Quirk(rate=rate))
            answers = await asyncio.gather(*(proxy.ask(targets[number % BLOBS]) for number in range(CLIENTS)))
            statuses = Counter(answer.status for answer in answers)
            assert set(statuses) <= {200, 503}, statuses
            assert statuses[200] >= 20
            for number, answer in enumerate(answers):
                if answer.status == 200:
                    assert (answer.complete, answer.body == blobs[number % BLOBS]) == (True, True)
                else:
                    assert int(answer.headers["Retry-After"]) >= 1
        async with connections(proxy) as ((one,), (other,)):
            for target, blob in zip(targets, blobs, strict=True):
                for wire in (one, other):
                    assert (await wire.ask(target)).body == blob
        assert proxy.said("file descriptors are granted (ulimit -n)")
        async with asyncio.timeout(10):
            while opened(pids(proxy)) > before:  # files are kept open for a second
                await asyncio.sleep(0.05)


async def test_many_files_in_a_second(serve: Serve, hub: Hub) -> None:
    """What workers keep open of them leaves descriptors for clients that come, and for the core, which has them too."""
    blobs = {hub.add_blob("team/a", data): data for data in (os.urandom(1000) for _ in range(140))}
    async with serve(within=FEW) as proxy, connections(proxy) as ((one,), (other,)):
        for wire in (one, other):
            for digest, data in blobs.items():
                assert (await wire.ask(f"/v2/team/a/blobs/{digest}")).body == data
        async with connections(proxy, 4):
            pass
        assert not proxy.said("Too many open files")


async def test_a_worker_that_has_no_descriptor_left(serve: Serve, hub: Hub) -> None:
    """Gets the bytes from the core, and not from a file that it takes for the right one."""
    blobs = {hub.add_blob("team/a", data): data for data in (os.urandom(300_000) for _ in range(4))}
    async with serve() as proxy, connections(proxy) as ((one,), (other,)):
        for pid in pids(proxy):
            taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
            lowest = min(set(range(len(taken) + 1)) - taken)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, lowest))
        for _ in range(2):  # cold, warm
            for digest, data in blobs.items():
                for wire in (one, other):
                    assert (await wire.ask(f"/v2/team/a/blobs/{digest}")).body == data
        assert hub.count("cdn") == len(blobs)


def opened(processes: list[int]) -> int:
    """How many descriptors these have."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)
