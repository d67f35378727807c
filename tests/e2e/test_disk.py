"""The cache directory: read by the next start, damaged behind the service's back, too small, full."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorproxy.admin import place
from mirrorproxy.names import Digest
from tests.e2e.client import begin, connect, names
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e disk")]

MIB = 1 << 20
HIT = "mirrorproxy; hit"
NAME = "team/app"

Serve = Callable[..., Proxy]


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service in front of the hub: `serve(cache={..}, **upstream)`."""
    hub.script.clear()
    hub.log.clear()

    def make(cache: dict[str, Any] | None = None, within: tuple[str, ...] = (), **changes: Any) -> Proxy:
        upstreams = {"docker.io": upstream(hub, **changes), "quay.io": upstream(hub, **changes)}
        return Proxy(tmp_path, settings(upstreams, cache=cache or {}), within=within)

    return make


async def pulled(proxy: Proxy, hub: Hub) -> dict[str, bytes]:
    """Pull two images, by tag, with all that is in them: what every path answers."""
    answers = {}
    for registry, tag in (("docker.io", "1"), ("quay.io", "2")):
        image = hub.add_image(NAME, tag, os.urandom(300_000), config=os.urandom(100))
        at = f"/v2/{registry}/{NAME}"
        for path in (
            f"{at}/manifests/{tag}",
            f"{at}/manifests/{image.manifest.digest}",
            *(f"{at}/blobs/{part.digest}" for part in (image.config, *image.layers)),
        ):
            answer = await proxy.ask(path)
            assert answer.status == 200
            answers[path] = answer.body
    await proxy.idle()
    return answers


async def serves(proxy: Proxy, answers: dict[str, bytes]) -> None:
    """See that all of it is served."""
    for path, body in answers.items():
        answer = await proxy.ask(path)
        assert (answer.status, answer.complete, answer.body == body) == (200, True, True), path
        assert (await proxy.ask(path, "HEAD")).headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("how", ["kept", "deleted", "rotten"])
async def test_a_restart_without_the_upstream(serve: Serve, hub: Hub, how: str) -> None:
    """Tags and images are served with the upstream gone, also when the index is: index.json has all it takes."""
    proxy = serve()
    async with proxy:
        answers = await pulled(proxy, hub)
        assert await proxy.stop() == 0
        index = proxy.cache / "index"
        match how:
            case "deleted":
                shutil.rmtree(index)
            case "rotten":
                proxy.tolerate("the index cannot be used, a new one is made")
                for path in index.rglob("*"):
                    if path.is_file():
                        path.write_bytes(b"rotten" * 1000)
        await hub.stop()
        try:
            await proxy.start()
            if how != "kept":
                await until(lambda: proxy.said("the index was rebuilt from the disk: 2 manifests"))
            await serves(proxy, answers)
            tags = [answer for path, answer in answers.items() if "/manifests/" in path]
            assert len(tags) == 4
            catalog = await proxy.ask("/v2/_catalog")
            assert names(catalog, "repositories") == [f"docker.io/{NAME}", f"quay.io/{NAME}"]
            other = next(path for path in answers if "/docker.io/" in path and "/blobs/" in path)
            assert (await proxy.ask(other.replace("docker.io", "quay.io"))).status == 504, "shown where it is not known"
        finally:
            await hub.start()


async def test_killed_before_the_index_was_written(serve: Serve, hub: Hub) -> None:
    """After -9 right after a pull: all is served without the upstream, from the index as SQLite kept it."""
    proxy = serve()
    await proxy.start()
    answers = await pulled(proxy, hub)
    await proxy.kill()
    await hub.stop()
    try:
        async with proxy:
            await serves(proxy, answers)
    finally:
        await hub.start()


async def test_the_index_is_rebuilt_while_it_serves(serve: Serve, hub: Hub) -> None:
    """A start with much on the disk and no index is ready before the rebuild is done, and nothing is lost by it."""
    proxy = serve()
    async with proxy:
        answers = await pulled(proxy, hub)
        await proxy.stop()
        shutil.rmtree(proxy.cache / "index")
        await proxy.start()
        await serves(proxy, answers)  # from upstream, where the rebuild has not come by yet
        assert hub.count("cdn") <= 4


async def test_a_forged_row(serve: Serve, hub: Hub) -> None:
    """A row that whoever can write the index puts there runs no code and reads no file: it is not there."""
    proxy = serve()
    async with proxy:
        answers = await pulled(proxy, hub)
        await proxy.stop()
        (database,) = (proxy.cache / "index").glob("*.db")
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE Cache SET mode = 4, filename = '../../../../etc/passwd', raw = 1")
        connection.close()
        await proxy.start()
        await serves(proxy, answers)
    assert "root:" not in proxy.stderr.read_text()


async def test_content_that_is_gone(serve: Serve, hub: Hub) -> None:
    """Removed behind the service's back: fetched again, though the index speaks of it."""
    proxy = serve()
    async with proxy:
        answers = await pulled(proxy, hub)
        await proxy.stop()
        for path in (proxy.cache / "blobs" / "sha256").iterdir():
            path.unlink()
        await proxy.start()
        await serves(proxy, answers)


async def test_content_that_was_cut(serve: Serve, hub: Hub) -> None:
    """A file that is shorter than it should be is no hit."""
    proxy = serve()
    async with proxy:
        answers = await pulled(proxy, hub)
        await proxy.stop()
        for path in (proxy.cache / "blobs" / "sha256").iterdir():
            path.chmod(0o600)
            os.truncate(path, path.stat().st_size // 2)
        await proxy.start()
        await serves(proxy, answers)


async def test_an_oci_layout_at_any_time(serve: Serve, hub: Hub) -> None:
    """What the directory holds is an image layout: index.json names the tags, with digests and sizes that are so."""
    proxy = serve()
    async with proxy:
        await pulled(proxy, hub)
        await proxy.stop()
        assert json.loads((proxy.cache / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        index = json.loads((proxy.cache / "index.json").read_text())
        named = {entry["annotations"].get("org.opencontainers.image.ref.name") for entry in index["manifests"]}
        assert {f"docker.io/{NAME}:1", f"quay.io/{NAME}:2"} <= named
        for entry in index["manifests"]:
            body = (proxy.cache / "blobs" / entry["digest"].replace(":", "/")).read_bytes()
            assert (len(body), Digest.of(body)) == (entry["size"], entry["digest"])
        for path in (proxy.cache / "blobs" / "sha256").iterdir():
            assert path.stat().st_mode & 0o222 == 0
        await proxy.start()


# Too small.


def on_tmpfs(directory: Path, size: str) -> tuple[str, ...]:
    """A command that runs another where `directory` is a file system of so many bytes, which ends with it."""
    directory.mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs "{directory}" && exec "$@"'
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")


def seen_inside(proxy: Proxy) -> Path:
    """The cache directory as the service sees it, in its own mount namespace."""
    return Path(f"/proc/{proxy.pid}/root{proxy.cache}")


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 << 10))


@pytest.fixture
def small(serve: Serve, tmp_path: Path) -> Proxy:
    """A service whose cache is on a file system of 8 MiB."""
    within = on_tmpfs(tmp_path / "cache", "8m")
    return serve(cache={"min_free": "0"}, within=within)


async def test_a_blob_larger_than_the_disk(small: Proxy, hub: Hub) -> None:
    """Comes whole and right, and is not kept; the service goes on, and keeps what fits."""
    data = os.urandom(12 * MIB)
    image = hub.add_image(NAME, "1", data, os.urandom(MIB), config=os.urandom(100))
    async with small:
        assert (await small.ask(f"/v2/{NAME}/manifests/1")).status == 200
        for _ in range(2):
            answer = await small.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
            assert (answer.complete, answer.body == data) == (True, True)
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["Cache-Status"] == "mirrorproxy; fwd=bypass"
        assert hub.count("cdn") == 2
        assert small.said("no room")
        part = await small.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}", headers={"Range": "bytes=9000000-9000099"})
        assert (part.status, part.body) == (206, data[9_000_000:9_000_100])
        for _ in range(2):
            assert (await small.ask(f"/v2/{NAME}/blobs/{image.layers[1].digest}")).complete
            await small.idle()
        answer = await small.ask(f"/v2/{NAME}/blobs/{image.layers[1].digest}")
        assert answer.headers["Cache-Status"] == "mirrorproxy; hit"
        assert await small.total("cache_requests_total", kind="blob", result="bypass") == 3
        assert sum(path.stat().st_size for path in (seen_inside(small) / "partial").rglob("*") if path.is_file()) < MIB


async def test_a_blob_larger_than_the_disk_of_unknown_size(small: Proxy, hub: Hub) -> None:
    """The same, where only the end tells how large it is: the disk is full in the middle of it."""
    data = os.urandom(12 * MIB)
    digest = hub.add_blob(NAME, data)
    hub.script.always("cdn", Quirk(chunked=True))
    async with small:
        answer = await small.ask(f"/v2/{NAME}/blobs/{digest}")
        assert (answer.complete, answer.body == data) == (True, True)
        assert (await small.ask("/readyz")).status == 200


async def test_a_wrong_blob_larger_than_the_disk(small: Proxy, hub: Hub) -> None:
    """What passes through is checked all the same."""
    digest = hub.add_blob(NAME, os.urandom(12 * MIB))
    hub.script.always("cdn", Quirk(corrupt=True))
    async with small:
        answer = await small.ask(f"/v2/{NAME}/blobs/{digest}")
        assert not (answer.status == 200 and answer.complete)


async def test_a_disk_that_is_full_all_at_once(small: Proxy, hub: Hub) -> None:
    """Somebody else fills it in the middle of a download: its clients have the rest past the cache, whole and right."""
    data = os.urandom(6 * MIB)
    digest = hub.add_blob(NAME, data)
    go_on = asyncio.Event()
    hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    async with small:
        async with connect(small.address) as wire, connect(small.address) as second:
            _, first = await begin(wire, f"/v2/{NAME}/blobs/{digest}", MIB // 2)
            _, other = await begin(second, f"/v2/{NAME}/blobs/{digest}", 1000)
            filler = seen_inside(small) / "filler"
            fill(filler)
            go_on.set()
            assert first + await wire.reader.readexactly(6 * MIB - MIB // 2) == data
            assert other + await second.reader.readexactly(6 * MIB - 1000) == data
        assert small.said("No space left on device")
        answer = await small.ask(f"/v2/{NAME}/blobs/{digest}")
        assert (answer.complete, answer.body == data) == (True, True)
        image = hub.add_image(NAME, "new", os.urandom(10), config=os.urandom(10))
        assert (await small.ask(f"/v2/{NAME}/manifests/new")).body == image.body
        assert (await small.ask("/readyz")).status == 200
        filler.unlink()
        async with asyncio.timeout(10):
            while (await small.ask(f"/v2/{NAME}/blobs/{digest}")).headers["Cache-Status"] != "mirrorproxy; hit":
                await small.idle()


async def in_its_mounts(proxy: Proxy, script: str) -> None:
    """Run this where the service's mounts are."""
    words = ("nsenter", "--target", str(proxy.pid), "--user", "--mount", "sh", "-c", script)
    process = await asyncio.create_subprocess_exec(*words)
    assert await process.wait() == 0


async def test_a_disk_that_becomes_read_only(small: Proxy, hub: Hub) -> None:
    """Mounted read-only in the middle of a download: whoever pulls has all of it, what is cached is served, nothing new
    is kept; mounted as before, caching goes on by itself.
    """
    old, data = os.urandom(MIB), os.urandom(3 * MIB)
    cached, digest = hub.add_blob(NAME, old), hub.add_blob(NAME, data)
    go_on = asyncio.Event()
    async with small:
        assert (await small.ask(f"/v2/{NAME}/blobs/{cached}")).complete
        await small.idle()
        hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
        async with connect(small.address) as wire:
            _, first = await begin(wire, f"/v2/{NAME}/blobs/{digest}", MIB // 2)
            # A mount over it: a file system with files that are open for writing cannot be told to be read-only.
            await in_its_mounts(small, f'mount --bind "{small.cache}" "{small.cache}"')
            await in_its_mounts(small, f'mount -o remount,bind,ro "{small.cache}"')
            go_on.set()
            assert first + await wire.reader.readexactly(3 * MIB - MIB // 2) == data
        await small.idle()
        asked = hub.count("cdn")
        for number in range(3):
            answer = await small.ask(f"/v2/{NAME}/blobs/{digest}")
            assert (answer.complete, answer.body == data) == (True, True)
            image = hub.add_image(NAME, f"new{number}", os.urandom(10), config=os.urandom(10))
            assert (await small.ask(f"/v2/{NAME}/manifests/new{number}")).body == image.body
        assert hub.count("cdn") == asked + 3
        answer = await small.ask(f"/v2/{NAME}/blobs/{cached}")
        assert (answer.body == old, answer.headers["Cache-Status"]) == (True, "mirrorproxy; hit")
        assert small.said("Read-only file system")
        assert "cache: " in (await small.ask("/readyz?verbose")).body.decode()
        await in_its_mounts(small, f'mount -o remount,bind,rw "{small.cache}"')
        async with asyncio.timeout(10):
            while (await small.ask(f"/v2/{NAME}/blobs/{digest}")).headers["Cache-Status"] != "mirrorproxy; hit":
                await small.idle()


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_start_on_a_read_only_disk(serve: Serve, hub: Hub, tmp_path: Path, how: str) -> None:
    """What is cached is served, all that the index knew as well, also what it had in its log alone when the service was
    killed; the rest passes through. It is said once. Mounted as before, caching goes on, and commands are answered.
    """
    first = serve()
    async with first:
        answers = await pulled(first, hub)
        await (first.stop() if how == "stopped" else first.kill())
    assert (first.cache / "index/cache.db-wal").exists() is (how == "killed")
    (tmp_path / "cache").rename(tmp_path / "before")
    *namespace, script, name = on_tmpfs(tmp_path / "cache", "8m")
    freeze = f'cp -a "{tmp_path}/before/." "{tmp_path}/cache" && mount -o remount,ro "{tmp_path}/cache" && exec "$@"'
    frozen = serve(cache={"min_free": "0"}, within=(*namespace, script.replace('exec "$@"', freeze), name))
    frozen.tolerate("cannot make the admin socket")
    hub.log.clear()
    async with frozen:
        await serves(frozen, answers)
        assert (hub.count("cdn"), hub.count("manifest", "GET")) == (0, 0), "tags are asked about"
        data = os.urandom(MIB)
        image = hub.add_image(NAME, "new", data, config=os.urandom(10))
        for _ in range(2):
            assert (await frozen.ask(f"/v2/{NAME}/manifests/new")).body == image.body
            answer = await frozen.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
            assert (answer.complete, answer.body == data) == (True, True)
        assert hub.count("cdn") == 2
        assert frozen.said("is on a read-only file system")
        await in_its_mounts(frozen, f'mount -o remount,rw "{frozen.cache}"')
        async with asyncio.timeout(20):
            while (await frozen.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")).headers["Cache-Status"] != HIT:
                await frozen.idle()
            await until(lambda: frozen.said("can be written again"))
            while b"team/app:new" not in (seen_inside(frozen) / "index.json").read_bytes():
                await frozen.ask(f"/v2/{NAME}/manifests/new")
                await asyncio.sleep(0.1)
        with place.address(seen_inside(frozen)) as address:
            _, writer = await asyncio.open_unix_connection(address)
            writer.close()
        assert f"process {frozen.pid}, listening" in (seen_inside(frozen) / "owner").read_text()
        assert frozen.stderr.read_text().count("is on a read-only file system") == 1


async def test_a_start_on_a_full_disk(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """The service starts and passes on what upstream has, even without an index; with room again, that is rebuilt, and
    what was cached is there as before.
    """
    first = serve()
    async with first:
        answers = await pulled(first, hub)
    (tmp_path / "cache").rename(tmp_path / "before")
    shutil.rmtree(tmp_path / "before" / "index")
    *namespace, script, name = on_tmpfs(tmp_path / "cache", "4m")
    fill_it = (
        f'cp -a "{tmp_path}/before/." "{tmp_path}/cache" && cat /dev/zero > "{tmp_path}/cache/filler" 2>&- || exec "$@"'
    )
    full = serve(cache={"min_free": "0"}, within=(*namespace, script.replace('exec "$@"', fill_it), name))
    full.tolerate("the index (failed|cannot be used)")
    async with full:
        assert shutil.disk_usage(seen_inside(full)).free == 0
        await serves(full, answers)
        data = os.urandom(MIB)
        image = hub.add_image(NAME, "new", data, config=os.urandom(10))
        assert (await full.ask(f"/v2/{NAME}/manifests/new")).body == image.body
        answer = await full.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
        assert (answer.complete, answer.body == data) == (True, True)
        assert "index: " in (await full.ask("/readyz?verbose")).body.decode()
        (seen_inside(full) / "filler").unlink()
        async with asyncio.timeout(20):
            while b"index: " in (await full.ask("/readyz?verbose")).body:
                await full.ask("/v2/_catalog")
                await asyncio.sleep(0.05)
        hub.log.clear()
        for path, body in answers.items():
            answer = await full.ask(path)
            assert (answer.body == body, "fwd=miss" in answer.headers["Cache-Status"]) == (True, False)
        assert {seen.method for seen in hub.seen()} <= {"HEAD", "GET"}
        assert hub.count("cdn") == 0
        before = (seen_inside(full) / "index.json").read_bytes()
        assert b"quay.io/team/app:2" in before


async def test_a_cache_smaller_than_a_blob(serve: Serve, hub: Hub) -> None:
    """By its own limit: passed through, and what is here stays."""
    data = os.urandom(3 * MIB)
    large = hub.add_blob(NAME, data)
    small = hub.add_blob(NAME, os.urandom(1000))
    async with serve(cache={"max_size": "2MiB"}) as proxy:
        for digest in (small, large):
            assert (await proxy.ask(f"/v2/{NAME}/blobs/{digest}")).complete
            await proxy.idle()
        answer = await proxy.ask(f"/v2/{NAME}/blobs/{large}")
        assert (answer.complete, answer.body == data) == (True, True)
        assert answer.headers["Cache-Status"] == "mirrorproxy; fwd=bypass"
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{small}")).headers["Cache-Status"] == "mirrorproxy; hit"
