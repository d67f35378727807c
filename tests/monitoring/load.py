"""A service to which everything happens that the dashboard shows."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from mirrorproxy.tasks import Tasks
from tests.e2e.client import ask, begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, own_address
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen

KIB = 1 << 10
MIB = 1 << 20
_NOBODY = "http://127.0.0.9:9"


class Load:
    """`watched` is where the service's metrics are."""

    def __init__(self, hub: Hub, proxy: Proxy, watched: str) -> None:
        self.hub = hub
        self.proxy = proxy
        self.watched = watched
        self._quirks: dict[str, list[Quirk]] = {}
        self._spoilt: list[str] = []
        hub.script.when("cdn", self._quirk)
        hub.script.when("manifest", lambda seen: Quirk(status=503) if "/team/stale/" in seen.target else None)
        hub.ratelimit = (100, 42)
        hub.private.add("secret/one")

    def _quirk(self, seen: Seen) -> Quirk | None:
        left = next((quirks for digest, quirks in self._quirks.items() if digest in seen.target), [])
        return left.pop(0) if left else None

    async def run(self, seconds: float) -> None:
        """All of it, again and again."""
        until = time.monotonic() + seconds
        tasks = Tasks()
        async with AsyncExitStack() as stack:
            await self._crowd(stack)
            crowd = tasks.start(asyncio.sleep(seconds / 3), name="crowd")
            number = 0
            while time.monotonic() < until:
                number += 1
                await asyncio.gather(self._images(number), self._trouble(number))
                if crowd.done():
                    await stack.aclose()  # the crowd leaves
                await asyncio.sleep(0.2)
        await tasks.aclose()

    async def _crowd(self, stack: AsyncExitStack) -> None:
        """Clients of downloads that come to no end: one may run, sixteen may wait, and the rest gets 503."""
        for _ in range(19):
            digest = self.hub.add_blob("team/slow", os.urandom(MIB))
            self._quirks[digest.hex] = [Quirk(stall=300 * KIB)]
            wire = await stack.enter_async_context(connect(self.proxy.address))
            wire.send(f"/v2/slow.test/team/slow/blobs/{digest}")

    async def _images(self, number: int) -> None:
        """Pulled cold by two at once, and warm, over connections that break; a layer changes on the disk."""
        layers = [os.urandom(600 * KIB) for _ in range(3)]
        image = self.hub.add_image("library/app", str(number), *layers, config=os.urandom(100))
        self._quirks[image.layers[0].digest.hex] = [Quirk(cut=200 * KIB)]
        paths = [f"/v2/library/app/manifests/{number}"]
        paths += [f"/v2/library/app/blobs/{part.digest}" for part in (image.config, *image.layers)]
        for path in paths * 2:
            await asyncio.gather(*(ask(self.proxy.address, path) for _ in range(2)))
        kept = self.proxy.cache / "blobs" / "sha256" / image.layers[2].digest.hex
        if kept.exists():
            (self.proxy.directory / "other").write_bytes(b"what a broken disk has made of it")
            (self.proxy.directory / "other").rename(kept)
            self._spoilt.append(paths[-1])
        if len(self._spoilt) > 3:  # what is open is served on for a second
            await ask(self.proxy.address, self._spoilt.pop(0))

    async def _trouble(self, number: int) -> None:
        """Everything that fails, is refused, is not kept or not waited for."""
        wrong = self.hub.add_blob("team/wrong", os.urandom(100 * KIB))
        self._quirks[wrong.hex] = [Quirk(corrupt=True)] * 8
        large = self.hub.add_blob("team/large", os.urandom(12 * MIB) if number % 4 == 1 else b"small")
        left = self.hub.add_blob("team/left", os.urandom(MIB))
        self._quirks[left.hex] = [Quirk(stall=600 * KIB)]
        for path in (
            f"/v2/wrong.test/team/wrong/blobs/{wrong}",
            f"/v2/team/large/blobs/{large}",
            "/v2/down.test/team/a/manifests/1",
            "/v2/guarded.test/other/a/manifests/1",
            "/v2/private.test/secret/one/manifests/1",
            "/v2/stale.test/team/stale/manifests/1",
            "/v2/library/app/manifests/none",
        ):
            with contextlib.suppress(asyncio.IncompleteReadError):
                await ask(self.proxy.address, path)
        await ask(self.proxy.address, "/v2/library/app/manifests/1", "PUT", {"Content-Length": "0"})
        async with connect(self.proxy.address) as wire:
            await begin(wire, f"/v2/wrong.test/team/left/blobs/{left}", 100 * KIB)
        for part in (self.proxy.cache / "partial").glob("*/*"):
            with contextlib.suppress(OSError):
                os.utime(part, (0, 0))
                os.utime(part.parent, (0, 0))


@asynccontextmanager
async def loaded(directory: Path) -> AsyncIterator[Load]:
    """The service, before the load, with old content that its limit has no room for beside new one."""
    watched = own_address()
    async with Hub() as hub:
        upstreams = {
            "docker.io": upstream(hub, prefetch="auto"),
            "slow.test": upstream(hub, max_fills=1, idle_timeout="20s"),
            "stale.test": upstream(hub),
            "wrong.test": upstream(hub),
            "guarded.test": upstream(hub, repositories=["team/*"]),
            "private.test": upstream(hub),
            "down.test": upstream(hub, endpoints=[_NOBODY]),
        }
        told = settings(
            upstreams,
            server={"metrics_listen": [watched]},
            cache={"max_size": "10MiB"},
            scrub={"every": "1s"},
            fills={"budget": "21s", "abandoned": "stop"},
        )
        proxy = Proxy(directory, told)
        await proxy.start()
        old = [hub.add_blob("team/old", os.urandom(MIB)) for _ in range(8)]
        for digest in old:
            await ask(proxy.address, f"/v2/team/old/blobs/{digest}")
        hub.add_image("team/stale", "1", b"layer")
        await ask(proxy.address, "/v2/stale.test/team/stale/manifests/1")
        assert await proxy.stop() == 0
        week = time.time() - 7 * 86_400
        for digest in old:
            os.utime(proxy.cache / "blobs" / digest.algorithm / digest.hex, (week, week))
        shutil.rmtree(proxy.cache / "index")
        proxy.tolerate("")  # it is there for its errors
        async with proxy:
            yield Load(hub, proxy, watched)
