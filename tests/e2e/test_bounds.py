"""The cache keeps to its limit, its rules and its pins, and knows what it holds."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e bounds")]

MIB = 1 << 20
NAME = "team/app"

Serve = Callable[..., Proxy]


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service in front of the hub: `serve(cache={..}, retention=[..], upstream={..})`."""
    hub.script.clear()
    hub.log.clear()

    def make(upstream_changes: dict[str, Any] | None = None, **others: Any) -> Proxy:
        return Proxy(tmp_path, settings({"docker.io": upstream(hub, **(upstream_changes or {}))}, **others))

    return make


def taken(cache: Path) -> int:
    """The bytes on the disk of all content, whole or not, and of the folders it is in, as du counts them."""
    size = 0
    for start in ("blobs/sha256", "partial"):
        for folder, _, names in os.walk(cache / start):  # what goes meanwhile is left out
            for name in (".", *names):
                with contextlib.suppress(FileNotFoundError):
                    size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return size


async def test_the_limit_holds_with_a_hundred_downloads_at_once(serve: Serve, hub: Hub) -> None:
    """Each answer is whole and right; what fits is kept, what does not is passed on, and the disk never has more."""
    data = [os.urandom(MIB) for _ in range(100)]
    digests = [hub.add_blob(NAME, each) for each in data]
    go_on = asyncio.Event()
    hub.script.always("cdn", Quirk(stall=MIB // 2, release=go_on))
    limits = {"max_fills": 100, "max_connections": 250, "idle_timeout": "30s"}
    async with serve(limits, cache={"max_size": "32MiB", "min_free": "0"}, fills={"max_active": 100}) as proxy:
        asked = [asyncio.ensure_future(proxy.ask(f"/v2/{NAME}/blobs/{each}")) for each in digests]  # noqa: TID251
        async with asyncio.timeout(30):
            while hub.count("cdn") < 100:
                await asyncio.sleep(0.01)
        peak = await asyncio.to_thread(taken, proxy.cache)
        go_on.set()
        while not all(each.done() for each in asked):
            peak = max(peak, await asyncio.to_thread(taken, proxy.cache))
            await asyncio.sleep(0.005)
        for body, answer in zip(data, await asyncio.gather(*asked), strict=True):
            assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
        await proxy.idle()
        kept = len(list((proxy.cache / "blobs/sha256").iterdir()))
        assert 25 <= kept <= 32
        assert 25 * MIB < max(peak, await asyncio.to_thread(taken, proxy.cache)) <= 32 * MIB
        assert await proxy.total("cache_requests_total", kind="blob", result="bypass") == 100 - kept
        assert sum("no room" in line["msg"] for line in proxy.log()) <= 2


async def test_knows_what_it_holds(serve: Serve, hub: Hub) -> None:
    """At once after a clean stop; after a crash, too, soon."""
    image = hub.add_image(NAME, "1", os.urandom(300_000), os.urandom(300_000), config=os.urandom(100))
    paths = [f"/v2/{NAME}/manifests/1", *(f"/v2/{NAME}/blobs/{each.digest}" for each in (image.config, *image.layers))]
    proxy = serve()

    async def sizes() -> tuple[float, float]:
        return await proxy.total("cache_size_bytes"), await proxy.total("cache_objects")

    def right() -> tuple[int, int]:
        found = list((proxy.cache / "blobs/sha256").iterdir())
        return sum(path.stat().st_blocks * 512 for path in found), len(found)

    async with proxy:
        for path in paths:
            assert (await proxy.ask(path)).complete
        await proxy.idle()
        assert await sizes() == await asyncio.to_thread(right)
        await proxy.restart()
        assert await sizes() == await asyncio.to_thread(right)
        other = hub.add_blob(NAME, os.urandom(200_000))
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{other}")).complete
        await proxy.idle()
        await proxy.kill()  # less than five seconds later
        (proxy.cache / "blobs/sha256" / image.layers[0].digest.hex).unlink()
        await proxy.start()
        async with asyncio.timeout(20):
            while await sizes() != await asyncio.to_thread(right):
                await asyncio.sleep(0.05)


async def test_rules_let_tags_go_with_their_content(serve: Serve, hub: Hub) -> None:
    """And `index.json` does not name them any more; what the rule is not for stays."""
    old = hub.add_image(NAME, "pr-1", os.urandom(1000), config=os.urandom(100))
    new = hub.add_image(NAME, "main", os.urandom(1000), config=os.urandom(100))
    rule = {"match": f"docker.io/{NAME}:pr-*", "unused_for": "1500ms"}
    async with serve(retention=[rule]) as proxy:
        for tag, image in (("pr-1", old), ("main", new)):
            assert (await proxy.ask(f"/v2/{NAME}/manifests/{tag}")).complete
            for layer in image.layers:
                assert (await proxy.ask(f"/v2/{NAME}/blobs/{layer.digest}")).complete
        gone = [proxy.cache / "blobs/sha256" / each.digest.hex for each in (old.manifest, *old.layers)]
        await until(lambda: not any(path.exists() for path in gone))
        await until(lambda: "pr-1" not in (proxy.cache / "index.json").read_text())
        assert f"docker.io/{NAME}:main" in (proxy.cache / "index.json").read_text()
        assert await proxy.total("cache_evictions_total", reason="age") == 2
        assert await proxy.total("cache_evicted_age_seconds_count") == 2
        assert (await proxy.ask(f"/v2/{NAME}/manifests/pr-1")).body == old.body


async def test_a_pin_that_is_not_complete_is_told(serve: Serve, hub: Hub) -> None:
    """By the log and the health page, until it is."""
    image = hub.add_image(NAME, "1", os.urandom(1000), config=os.urandom(100))
    pins = [f"docker.io/{NAME}:1"]
    async with serve(pins=pins) as proxy:
        await until(lambda: proxy.said(f"docker.io/{NAME}:1 is pinned and not complete: the image is not here"))
        assert "is pinned and not complete" in (await proxy.ask("/readyz?verbose")).body.decode()
        assert (await proxy.ask("/readyz")).status == 200
        for path in ("manifests/1", *(f"blobs/{each.digest}" for each in (image.config, *image.layers))):
            assert (await proxy.ask(f"/v2/{NAME}/{path}")).complete
        await proxy.idle()
        await proxy.restart()
        async with asyncio.timeout(20):
            while b"pinned" in (await proxy.ask("/readyz?verbose")).body:
                await asyncio.sleep(0.05)
