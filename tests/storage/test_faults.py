"""Faults at each kind of call by which the cache reaches the disk: a pull never fails for them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.client import begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.content import Image
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.storage.conftest import MIB
from tests.storage.faults import failing

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("faults")]

WRITES = {
    "pwrite64": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "fdatasync": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "fsync": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "rename": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "mkdir": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "ftruncate": ("EIO", "EROFS"),
    "fchmod": ("EIO", "EROFS"),
    "unlink,unlinkat,rmdir": ("EIO", "EROFS"),
}
CASES = [(calls, error) for calls, errors in WRITES.items() for error in errors]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """The service, one for all faults: what is left of one would show in the next."""
    async with Proxy(tmp_path_factory.mktemp("proxy"), settings({"docker.io": upstream(hub)})) as proxy:
        proxy.tolerate("the index|index.json|no new one|cannot")
        yield proxy


async def pull(proxy: Proxy, name: str, image: Image, layers: list[bytes]) -> list[str]:
    """Pull an image and check all of it; what became of each part in the cache."""
    found = []
    answer = await proxy.ask(f"/v2/{name}/manifests/1")
    assert (answer.status, answer.body) == (200, image.body)
    found.append(answer.headers["Cache-Status"])
    for part, data in zip(image.layers, layers, strict=True):
        answer = await proxy.ask(f"/v2/{name}/blobs/{part.digest}")
        assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
        found.append(answer.headers["Cache-Status"])
    return found


async def recovers(proxy: Proxy, name: str, image: Image, layers: list[bytes]) -> None:
    """Caching goes on by itself."""
    async with asyncio.timeout(20):
        while True:
            await proxy.idle()
            statuses = await pull(proxy, name, image, layers)
            if all("hit" in status for status in statuses[1:]):
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(("calls", "error"), CASES)
async def test_a_pull_never_fails(proxy: Proxy, hub: Hub, calls: str, error: str) -> None:
    """Neither one that begins now, nor one that is under way; and when the fault is over caching goes on."""
    name = f"team/{calls.split(',')[0]}-{error.lower()}"
    layers = [os.urandom(100_000), os.urandom(2 * MIB), os.urandom(2 * MIB)]
    image = hub.add_image(name, "1", *layers, config=os.urandom(100))
    go_on = asyncio.Event()
    hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    lines, counted = len(proxy.log()), await failures(proxy)
    async with connect(proxy.address) as wire:
        _, first = await begin(wire, f"/v2/{name}/blobs/{image.layers[2].digest}", MIB)
        async with failing(proxy, *calls.split(","), error=error) as injected:
            if calls == "fdatasync":  # of what is under way, once a second
                await until(lambda: "(INJECTED)" in injected.read_text())
            go_on.set()
            assert first + await wire.reader.readexactly(MIB) == layers[2]
            await pull(proxy, name, image, layers)
            statuses = await pull(proxy, name, image, layers)
    assert "(INJECTED)" in injected.read_text()
    if calls in ("mkdir", "ftruncate"):  # the disk takes nothing, which shows before the first byte
        assert [each.partition("fwd=")[2] for each in statuses[1:3]] == ["bypass"] * 2
    if calls not in ("fdatasync", "unlink,unlinkat,rmdir"):  # which keep nothing from being kept
        assert await failures(proxy) >= counted + 4
    assert len([line for line in proxy.log()[lines:] if line["level"] == "warning"]) <= 4, "said at each access"
    await recovers(proxy, name, image, layers)
    assert not await tells(proxy)


@pytest.mark.parametrize("calls", ["preadv2,pread64", "openat"])
async def test_content_that_cannot_be_read(proxy: Proxy, hub: Hub, calls: str) -> None:
    """A hit whose file fails in the middle goes on with bytes from upstream; so does one that cannot be opened. Then
    the file is looked at, and replaced.
    """
    name = f"team/unreadable-{calls[:5]}"
    layers = [os.urandom(3 * MIB)]
    image = hub.add_image(name, "1", *layers, config=os.urandom(100))
    digest = image.layers[0].digest
    assert "miss" in (await pull(proxy, name, image, layers))[1]
    await proxy.idle()
    path = proxy.cache / "blobs/sha256" / digest.hex
    before = path.stat().st_ino
    hub.log.clear()
    if calls == "openat":
        await asyncio.sleep(1.1)  # what is open is not looked at for a second
        proxy.send(signal.SIGHUP)  # an answer that was remembered is not given again
    async with failing(proxy, *calls.split(","), error="EIO", paths=(path,)) as injected:
        answer = await proxy.ask(f"/v2/{name}/blobs/{digest}")
        assert (answer.status, answer.complete, answer.body == layers[0]) == (200, True, True)
        part = await proxy.ask(f"/v2/{name}/blobs/{digest}", headers={"Range": "bytes=1000000-2999999"})
        assert (part.status, part.body == layers[0][1_000_000:3_000_000]) == (206, True)
        assert "(INJECTED)" in injected.read_text()
        if calls != "openat":
            assert hub.count("cdn") >= 2
            await until(lambda: not path.exists() or path.stat().st_ino != before)
    await recovers(proxy, name, image, layers)


async def failures(proxy: Proxy) -> float:
    """How often something was not kept."""
    return await proxy.total("cache_requests_total", result="bypass") + await proxy.total("fills_not_kept_total")


async def tells(proxy: Proxy) -> bool:
    """Do the health pages speak of it?"""
    return b"downloads pass through" in (await proxy.ask("/readyz?verbose")).body
