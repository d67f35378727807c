"""Clocks that jump, inodes that run out, long names, file systems that know no capitals."""

import asyncio
import os
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from mirrorproxy.names import Digest
from tests.e2e.proxy import Proxy
from tests.e2e.test_disk import seen_inside
from tests.fakes.hub import Hub
from tests.storage.conftest import MIB, Serve
from tests.storage.load import put_old

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "team/app"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("/no/libfaketime"))


class Clock:
    """The wall clock of a process, which libfaketime reads from a file; the monotonic one goes on as it is."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self.set(0)
        self.environ = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, years: float) -> None:
        """Put it so far from what it should be."""
        aside = self._path.with_suffix(".new")
        aside.write_text(f"{years * 365 * 86400:+.0f}\n")
        aside.replace(self._path)


@pytest.mark.parametrize("years", [[30, 0, -30, 0], [-10, 20, -5]])
async def test_a_clock_that_jumps(serve: Serve, hub: Hub, tmp_path: Path, years: list[int]) -> None:
    """By years, forwards and backwards, while it serves and between starts: nothing is evicted, a tag is checked, `Age`
    is never negative; and when room is needed it is made, whatever the clock said when content was used.
    """
    clock = Clock(tmp_path)
    proxy = serve(cache={"max_size": "4MiB"}, environ=clock.environ, tag_ttl="1h")
    async with proxy:
        layer = os.urandom(MIB)
        image = hub.add_image(NAME, "1", layer, config=os.urandom(100))

        async def pull() -> None:
            answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
            assert answer.body == image.body
            assert int(answer.headers.get("Age", "0")) >= 0
            answer = await proxy.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
            assert answer.body == layer
            assert int(answer.headers.get("Age", "0")) >= 0

        await pull()
        await proxy.idle()
        for number, year in enumerate(years):
            hub.log.clear()
            clock.set(year)
            if number % 2:
                await proxy.restart()
            await follows(proxy, year)
            await asyncio.sleep(1.1)  # an answer may be given again for a second
            await pull()
            assert checks(hub) == 1, "the tag was believed"
            assert hub.count("cdn") == 0, "it was not kept"
            await pull()
            assert checks(hub) == 1, "it was not believed when it was just checked"
            assert await proxy.total("cache_evictions_total") == 0
        clock.set(years[-1] + 1)
        await follows(proxy, years[-1] + 1)
        digests = [hub.add_blob(NAME, os.urandom(MIB * 8 // 10)) for _ in range(4)]
        for digest in digests:
            assert (await proxy.ask(f"/v2/{NAME}/blobs/{digest}")).complete
            await proxy.idle()
        assert await proxy.total("cache_evictions_total", reason="size") > 0, "the image is years old"
        assert (proxy.cache / "blobs/sha256" / digests[-1].hex).exists()


async def follows(proxy: Proxy, years: int) -> None:
    """Wait until the process has looked at its clock."""
    async with asyncio.timeout(20):
        while True:
            said = parsedate_to_datetime((await proxy.ask("/readyz")).headers["Date"])
            if abs((said - datetime.now(UTC)).total_seconds() - years * 365 * 86400) < 86400:
                return
            await asyncio.sleep(0.1)


def checks(hub: Hub) -> int:
    """How often upstream was asked about a tag: but for the answer that wants another token."""
    return sum(seen.status == 200 for seen in hub.seen("manifest", "HEAD"))


async def test_inodes_run_out(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """There are bytes, but no names for more files: pulls go on, room is made, and caching goes on."""
    (tmp_path / "cache").mkdir()
    await asyncio.to_thread(put_old, tmp_path / "before", random.Random(1), 100, 500)
    script = (
        f'mount -t tmpfs -o size=64m,nr_inodes=200 tmpfs "{tmp_path}/cache" && '
        f'cp -a "{tmp_path}/before/." "{tmp_path}/cache" && exec "$@"'
    )
    within = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    proxy = serve(cache={"min_free": "0"}, within=within)
    proxy.tolerate("the index")
    async with proxy:
        datas = [os.urandom(500) for _ in range(120)]
        for data in datas:
            digest = hub.add_blob(NAME, data)
            answer = await proxy.ask(f"/v2/{NAME}/blobs/{digest}")
            assert (answer.status, answer.body) == (200, data)
        inside = os.statvfs(seen_inside(proxy))
        assert inside.f_bfree * inside.f_frsize > 32 * MIB
        digest, data = Digest.of(datas[-1]), datas[-1]
        async with asyncio.timeout(30):
            while True:
                await proxy.idle()
                answer = await proxy.ask(f"/v2/{NAME}/blobs/{digest}")
                assert answer.body == data
                if "hit" in answer.headers["Cache-Status"]:
                    break
                await asyncio.sleep(0.2)
        assert await proxy.total("cache_evictions_total", reason="size") > 0


async def test_the_longest_names(serve: Serve, hub: Hub) -> None:
    """A repository of 255 characters and a tag of 128 are no names of files: they are kept, also by `index.json`, and
    whatever the cache makes is lower-case, and shorter than any file system wants it.
    """
    name = "/".join(["x" * 60] * 4) + "/" + "y" * 10
    tag = "T" * 128
    name = name[:243]  # with the registry in front it is at its limit of 255
    async with serve() as proxy:
        image = hub.add_image(name, tag, os.urandom(1000), config=os.urandom(100))
        path = f"/v2/docker.io/{name}/manifests/{tag}"
        assert (await proxy.ask(path)).body == image.body
        assert (await proxy.ask(f"/v2/docker.io/{name}/blobs/{image.layers[0].digest}")).complete
        await proxy.restart()
        check_names(proxy)
        await hub.stop()
        try:
            assert await proxy.stop() == 0
            for each in (proxy.cache / "index").iterdir():
                each.unlink()
            await proxy.start()
            async with asyncio.timeout(20):
                while b"index: " in (await proxy.ask("/readyz?verbose")).body:
                    await asyncio.sleep(0.05)
            assert (await proxy.ask(path)).body == image.body
        finally:
            await hub.start()


def check_names(proxy: Proxy) -> None:
    """Of all that is in the cache directory."""
    for path in proxy.files():
        for name in path.split("/"):
            assert name == name.lower()
            assert len(os.fsencode(name)) <= 135
