"""Somebody damages the cache directory behind the service's back, while it serves."""

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from mirrorproxy.names import Digest
from tests.e2e.client import begin, connect
from tests.e2e.proxy import Proxy, until
from tests.fakes.content import Image
from tests.fakes.hub import Hub
from tests.storage.conftest import MIB, Serve
from tests.storage.load import damaged

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "team/app"
TRUSTED = 1.1  # seconds for which a file that is open is not looked at again


class Pulled:
    """An image that was pulled, and what was its."""

    def __init__(self, hub: Hub, proxy: Proxy, *layers: bytes) -> None:
        self.hub = hub
        self.proxy = proxy
        self.layers = layers or (os.urandom(50_000), os.urandom(2 * MIB), os.urandom(10))
        self.image: Image = hub.add_image(NAME, "1", *self.layers, config=os.urandom(100))

    def path(self, digest: Digest) -> Path:
        """Where the cache has it."""
        return self.proxy.cache / "blobs" / digest.algorithm / digest.hex

    def paths(self) -> list[Path]:
        """Where it has all of it."""
        parts = (self.image.manifest, self.image.config, *self.image.layers)
        return [self.path(part.digest) for part in parts]

    async def pull(self) -> list[str]:
        """Pull it as a client does; how each blob was answered."""
        answer = await self.proxy.ask(f"/v2/{NAME}/manifests/1")
        assert (answer.status, answer.body) == (200, self.image.body)
        statuses = []
        for part, data in zip(self.image.layers, self.layers, strict=True):
            answer = await self.proxy.ask(f"/v2/{NAME}/blobs/{part.digest}")
            assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
            statuses.append(answer.headers["Cache-Status"])
        assert (await self.proxy.ask(f"/v2/{NAME}/blobs/{self.image.config.digest}")).status == 200
        await self.proxy.idle()
        return statuses

    async def healed(self) -> None:
        """All is there again, and right, and comes from there: manifests from memory, so after a restart too."""
        async with asyncio.timeout(10):
            while any("hit" not in status for status in await self.pull()):
                await asyncio.sleep(0.05)
        await self.proxy.restart()
        await self.pull()
        assert damaged(self.proxy.cache) == []


def flip(path: Path) -> None:
    """Change one bit; size and times stay."""
    found = path.stat()
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def tamper(path: Path, how: str) -> None:
    """Damage a committed file."""
    match how:
        case "deleted":
            path.unlink()
        case "emptied":
            os.truncate(path, 0)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "longer":
            with path.open("ab") as file:
                file.write(b"more")
        case "a link":
            path.unlink()
            path.symlink_to("/etc/passwd")
        case "a folder":
            path.unlink()
            path.mkdir()
            (path / "file").touch()
        case "of another owner":
            os.chown(path, 12345, 12345)
            path.chmod(0)


async def test_files_heal(serve: Serve, hub: Hub) -> None:
    """What is damaged so that one can see it is a miss, once; nothing of what it was replaced by is served. Layers in
    each of the ways, then manifest and config in one of them.
    """
    ways = ("deleted", "emptied", "cut", "longer", "a link", "a folder", "of another owner")
    async with serve() as proxy:
        pulled = Pulled(hub, proxy, *(os.urandom(size) for size in (50_000, 10, 2 * MIB, 1000, 100_000, 5000, 70_000)))
        await pulled.pull()
        for part, how in zip(pulled.image.layers, ways, strict=True):
            tamper(pulled.path(part.digest), how)
        tamper(pulled.path(pulled.image.manifest.digest), "a link")
        tamper(pulled.path(pulled.image.config.digest), "cut")
        await asyncio.sleep(TRUSTED)
        await pulled.healed()
        assert Path("/etc/passwd").exists()


async def test_whole_folders_that_are_gone(serve: Serve, hub: Hub) -> None:
    """Somebody emptied the cache by hand: pulls go on, and with the next start at the latest it is filled again."""
    async with serve() as proxy:
        pulled = Pulled(hub, proxy)
        await pulled.pull()
        for name in ("blobs", "quarantine", "partial"):
            shutil.rmtree(proxy.cache / name)
        await asyncio.sleep(TRUSTED)
        await pulled.pull()
        await proxy.restart()
        await pulled.healed()
    assert (proxy.cache / "quarantine").is_dir()


async def test_parts_that_were_replaced(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """They are thrown away, and what a link points at is not written to."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    async with serve() as proxy:
        for what in ("data is a link", "data is a folder", "state is a folder", "all is a file"):
            data = os.urandom(100_000)
            digest = hub.add_blob(NAME, data)
            part = proxy.cache / "partial" / f"sha256-{digest.hex}"
            if what == "all is a file":
                part.touch()
            else:
                part.mkdir()
                name = what.split(" ")[0]
                (part / name).symlink_to(victim) if "link" in what else (part / name).mkdir()
            for hit in (False, True):
                answer = await proxy.ask(f"/v2/{NAME}/blobs/{digest}")
                assert (answer.status, answer.body == data) == (200, True)
                assert ("hit" in answer.headers["Cache-Status"]) == hit, what
                await proxy.idle()
        assert victim.read_text() == "precious"


@pytest.mark.parametrize("how", ["deleted", "cut", "random", "forged", "emptied"])
async def test_the_index(serve: Serve, hub: Hub, how: str) -> None:
    """Damaged while it is in use, under load: no request fails; and after a restart all is served without the upstream,
    from what `index.json` says.
    """
    proxy = serve()
    proxy.tolerate("the index")
    async with proxy:
        pulled = Pulled(hub, proxy)
        await pulled.pull()
        await until(lambda: b"docker.io/team/app:1" in (proxy.cache / "index.json").read_bytes())
        database = proxy.cache / "index/cache.db"
        match how:
            case "deleted":
                shutil.rmtree(database.parent)
            case "emptied":
                for path in database.parent.iterdir():
                    os.truncate(path, 0)
            case "cut":
                for path in database.parent.iterdir():
                    os.truncate(path, path.stat().st_size // 2)
            case "random":
                for path in database.parent.iterdir():
                    with path.open("r+b") as file:
                        file.write(os.urandom(path.stat().st_size))
            case "forged":
                await proxy.kill()
                with sqlite3.connect(database) as connection:
                    connection.execute("UPDATE Cache SET mode = 4, filename = '../../../../etc/passwd', raw = 1")
                connection.close()
                await proxy.start()
        for number in range(5):
            hub.add_image(NAME, f"new-{number}", os.urandom(1000), config=os.urandom(10))
            assert (await proxy.ask(f"/v2/{NAME}/manifests/new-{number}")).status == 200
            await pulled.pull()
        await until(lambda: b"docker.io/team/app:1" in (proxy.cache / "index.json").read_bytes(), 30)
        assert await proxy.stop() in (0, -9)
        await hub.stop()
        try:
            await proxy.start()
            async with asyncio.timeout(20):
                while b"index: " in (await proxy.ask("/readyz?verbose")).body:
                    await asyncio.sleep(0.05)
            await pulled.pull()
        finally:
            await hub.start()
    assert "root:" not in proxy.stderr.read_text()


async def test_a_flipped_bit_is_found_before_it_is_served(serve: Serve, hub: Hub) -> None:
    """With `cache.verify: on-read`, by whoever asks first after the file was opened anew; then it is fetched again."""
    async with serve(cache={"verify": "on-read"}) as proxy:
        pulled = Pulled(hub, proxy)
        await pulled.pull()
        hub.log.clear()
        for path in pulled.paths():
            flip(path)
        await asyncio.sleep(TRUSTED)
        await pulled.pull()
        assert hub.count("cdn") == 4
        assert {path.name for path in (proxy.cache / "quarantine").iterdir()} >= {
            f"sha256-{part.digest.hex}" for part in pulled.image.layers
        }
        assert await proxy.total("cache_evictions_total", reason="corrupt") == 4
        await pulled.healed()


async def test_the_scrub_finds_a_flipped_bit(serve: Serve, hub: Hub) -> None:
    """Without any client: it goes into quarantine, is fetched again, counted and logged."""
    proxy = serve(scrub={"every": "1s", "rate": "1GB/s"})
    async with proxy:
        pulled = Pulled(hub, proxy)
        await pulled.pull()
        await proxy.stop()
        hub.log.clear()
        wrong = [pulled.image.layers[1].digest, pulled.image.manifest.digest]
        for digest in wrong:
            flip(pulled.path(digest))
        await proxy.start()
        async with asyncio.timeout(20):
            while await proxy.total("scrub_objects_total", result="refetched") < 2:
                await asyncio.sleep(0.05)
        assert [seen.method for seen in hub.seen("cdn")] == ["GET"]
        assert await proxy.total("scrub_objects_total", result="wrong") == 2
        assert await proxy.total("cache_evictions_total", reason="corrupt") == 2
        assert await proxy.total("scrub_bytes_total") > 2 * MIB
        async with asyncio.timeout(10):
            while not await proxy.total("scrub_last_completed_timestamp_seconds"):
                await asyncio.sleep(0.05)
        assert {path.name for path in (proxy.cache / "quarantine").iterdir()} == {
            f"sha256-{each.hex}" for each in wrong
        }
        assert all(proxy.said(f"{each} was fetched again") for each in wrong)
        hub.log.clear()
        assert all("hit" in status for status in await pulled.pull())
        assert hub.count("cdn") == 0
        on_disk = sum(path.stat().st_blocks * 512 for path in (proxy.cache / "blobs/sha256").iterdir())
        assert await proxy.total("cache_size_bytes") == on_disk


async def test_a_scrub_while_clients_pull(serve: Serve, hub: Hub) -> None:
    """Content that is being read when it is found wrong: its readers end, as broken or as they were."""
    proxy = serve(scrub={"every": "1s", "rate": "1GB/s"})
    async with proxy:
        data = os.urandom(8 * MIB)
        digest = hub.add_blob(NAME, data)
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{digest}")).complete
        await proxy.idle()
        async with connect(proxy.address, limit=1 << 16) as wire:
            _, first = await begin(wire, f"/v2/{NAME}/blobs/{digest}", MIB)
            path = proxy.cache / "blobs/sha256" / digest.hex
            flip(path)  # what this client has already
            await until((proxy.cache / "quarantine" / f"sha256-{digest.hex}").exists)
            assert first + await wire.reader.readexactly(7 * MIB) == data
        await until(path.exists)
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{digest}")).body == data
