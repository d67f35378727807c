"""Everything at once for a long time: every byte is right, and the service takes no more at the end than before."""

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.memory import processor_seconds, tree
from tests.e2e.authority import Authority
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen
from tests.soak.mixed import Mixed
from tests.soak.samples import Samples
from tests.soak.stock import MIB, Stock
from tests.storage.load import put_old

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("soak")]

log = logging.getLogger(__name__)

GROWTH = 5 * MIB  # of memory, from the second quarter to the last
WARMING = 25 * MIB  # of the first seconds: most things happen for the first time then
HOUR = int(os.environ.get("SOAK_SECONDS", "3600"))


def breaks_some() -> Callable[[Seen], Quirk | None]:
    """Each fourth transfer from the upstream's storage ends early, every other of them by a reset."""
    number = itertools.count(1)

    def choose(seen: Seen) -> Quirk | None:
        nth = next(number)
        return Quirk(cut=50_000, reset=nth % 8 == 0) if nth % 4 == 0 else None

    return choose


def heaps(pid: int) -> int:
    """How many a process has beside its first: the C library reserves 64 MiB of addresses for each."""
    found = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        found += line.split()[1] == "---p" and 32 * MIB < end - start <= 64 * MIB
    return found


async def soak(hub: Hub, folder: Path, seconds: float, workers: int, *, tls: bool, growth: int) -> None:
    """Serve all kinds of clients for so long from a cache that is too small; check what they got and what it took."""
    chance = random.Random(workers)
    hub.script.clear()
    hub.expires_in = 60
    hub.script.when("cdn", breaks_some())
    authority = Authority(folder)
    authority.issue()
    server = {"workers": workers, "write_timeout": "3s"}
    if tls:
        server["tls"] = {"cert": str(authority.cert), "key": str(authority.key)}
    patience = dict.fromkeys(("connect_timeout", "header_timeout", "idle_timeout", "revalidate_timeout"), "20s")
    docker_io = upstream(hub, tag_ttl="2s", negative_ttl="1s", prefetch="auto", **patience)
    made = settings({"docker.io": docker_io}, server=server, cache={"max_size": "72MiB", "min_free": "0"})
    trust = authority.client() if tls else None
    proxy = Proxy(folder / "proxy", {**made, "fills": {"budget": "1m"}}, tls=trust)
    put_old(proxy.cache, chance, 30, MIB)  # to be evicted from the first minute on
    async with proxy:
        load = Mixed(proxy, Stock(hub, chance), chance, trust)
        samples = Samples(proxy.pid)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())
            end = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < end and not running.done():
                await asyncio.sleep(min(1.0, seconds / 40))
                await asyncio.to_thread(samples.take)
                if len(samples.memory) % 60 == 0:
                    os.truncate(proxy.stdout, 0)
                    log.info("%s; %d wrong", samples, len(load.wrong))
            load.end()
        log.info("%s; %s; %.0f s of processor time", samples, dict(load.done), processor_seconds(proxy.pid))
        assert load.wrong == []
        assert load.idle_kinds() == []
        samples.check(growth)
        await proxy.idle()
        assert await proxy.total("cache_evictions_total") > 0
        assert await proxy.total("fill_resumes_total") > 0
        assert await proxy.total("digest_mismatches_total") == 0
        assert await proxy.total("http_requests_inflight") == 1  # the one that asks
        assert await proxy.total("fill_readers") == 0
        assert {pid: heaps(pid) for pid in tree(proxy.pid)} == dict.fromkeys(tree(proxy.pid), 0)


@pytest.mark.parametrize(("workers", "tls"), [(1, True), (2, False)])
async def test_everything_at_once(hub: Hub, tmp_path: Path, workers: int, tls: bool) -> None:
    """For as long as make test has time."""
    await soak(hub, tmp_path, 7, workers, tls=tls, growth=WARMING)


@pytest.mark.soak
@pytest.mark.timeout(HOUR + 600)
@pytest.mark.parametrize(("share", "workers", "tls"), [(1, 2, False), (6, 1, True)])
async def test_an_hour_of_everything(hub: Hub, tmp_path: Path, share: int, workers: int, tls: bool) -> None:
    """With two processes; ten minutes with one, over TLS. (`SOAK_SECONDS`: another time than an hour.)"""
    await soak(hub, tmp_path, HOUR / share, workers, tls=tls, growth=GROWTH)
