"""`mirrorproxy verify`, beside the running service and without one."""

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from mirrorproxy.names import Digest
from tests.cli.conftest import Cache, Ran, stock
from tests.fakes.script import Quirk

pytestmark = pytest.mark.asyncio(loop_scope="module")


def findings(ran: Ran) -> dict[str, str]:
    """The problems that were found, by what has them."""
    return {row["name"]: row["problem"] for row in ran.rows if row["kind"] == "finding"}


def summary(ran: Ran) -> dict[str, Any]:
    """The last row."""
    row = ran.rows[-1]
    assert row["kind"] == "summary"
    return row


def content(cache: Cache, data: bytes) -> Path:
    """Where it is."""
    return cache.proxy.cache / "blobs/sha256" / Digest.of(data).hex


def flip(path: Path) -> None:
    """Change a byte, and nothing else that one could see."""
    found = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


async def test_what_is_right(cache: Cache) -> None:
    """Beside the service and without it: exit code 0, everything was looked at, and what was not pulled is no fault."""
    await stock(cache)
    ran = await cache.run("verify", "--json")
    assert (ran.status, findings(ran), ran.err) == (0, {}, "")
    found = summary(ran)
    assert [row["name"].partition("@")[0] for row in ran.rows if row["kind"] == "incomplete"] == ["ghcr.io/team/app"]
    assert (found["blobs"], found["manifests"], found["incomplete"], found["tags"], found["absent"]) == (8, 3, 1, 3, 0)
    assert found["bytes"] == sum(path.stat().st_size for path in (cache.proxy.cache / "blobs/sha256").iterdir())
    assert await cache.proxy.stop() == 0
    alone = await cache.run("verify", "--json")
    assert (alone.status, summary(alone)) == (0, found)
    plain = await cache.run("verify")
    assert plain.out.splitlines()[-1] == "nothing is wrong"
    await cache.proxy.start()


@pytest.mark.parametrize("running", [True, False])
async def test_finds_and_repairs(cache: Cache, running: bool) -> None:
    """Content that was flipped or replaced, a part whose state lies, what a crash left: named, with exit code 1, and
    left alone without `--repair`. With it all is right: content is fetched again, but for what is gone upstream.
    """
    proxy, hub = cache.proxy, cache.hub
    layers = [os.urandom(50_000) for _ in range(4)]
    name = f"team/broken-{running}".lower()
    image = hub.add_image(name, "1", *layers, config=os.urandom(50))
    await cache.pull(f"docker.io/{name}", "1")
    if not running:
        assert await proxy.stop() == 0
    flip(content(cache, layers[0]))
    gone = content(cache, layers[2])
    flip(gone)
    del hub.repositories[name].blobs[Digest.of(layers[2])]
    link = content(cache, layers[1])
    link.unlink()
    link.symlink_to("/etc/passwd")
    part = proxy.cache / "partial" / f"sha256-{'0' * 64}"
    part.mkdir()
    (part / "data").write_bytes(b"1234")
    (part / "state").write_text(json.dumps({"total": 100, "spans": [[0, 50]]}))
    left = proxy.cache / "partial/tmp-of-another-run"
    left.touch()
    os.utime(left, (0, 0))
    expected = {
        Digest.of(layers[0]): "is 50000 bytes of something else",
        Digest.of(layers[1]): "is a link or a socket",
        Digest.of(layers[2]): "is 50000 bytes of something else",
        f"sha256:{'0' * 64}": "has a state that speaks of 50 bytes, where 4 are",
        "partial/tmp-of-another-run": "was left there by a crash",
    }
    if not running:
        del expected["partial/tmp-of-another-run"]  # whoever opens the cache removes it
    ran = await cache.run("verify", "--json")
    assert (ran.status, findings(ran)) == (1, expected)
    assert (summary(ran)["wrong"], summary(ran)["repaired"]) == (len(expected), 0)
    assert link.is_symlink()
    of = {row["name"]: row["images"] for row in ran.rows if row["kind"] == "finding"}
    assert [of[Digest.of(layer)] for layer in layers[:3]] == [[f"docker.io/{name}:1"]] * 3
    hub.log.clear()
    ran = await cache.run("verify", "--json", "--repair")
    assert (ran.status, findings(ran)) == (0, expected)
    found = summary(ran)
    assert (found["wrong"], found["repaired"], found["refetched"]) == (len(expected), len(expected), 2)
    became = {row["name"]: row["became"] for row in ran.rows if row["kind"] == "finding"}
    assert [became[Digest.of(layer)] for layer in layers[:3]] == ["refetched", "refetched", "gone upstream"]
    assert [content(cache, layer).read_bytes() for layer in layers[:2]] == layers[:2]
    assert hub.sent("cdn") == 100_000
    assert not gone.exists()
    assert not left.exists()
    assert not part.exists()
    assert not link.is_symlink()
    assert (proxy.cache / "quarantine" / f"sha256-{Digest.of(layers[0]).hex}").exists()
    assert (await cache.run("verify")).status == 0
    if not running:
        await proxy.start()
    for layer, descriptor in zip(layers, image.layers, strict=True):
        answer = await proxy.ask(f"/v2/docker.io/{name}/blobs/{descriptor.digest}")
        assert (answer.body == layer) is (layer is not layers[2])
    assert Path("/etc/passwd").exists()


async def repaired(cache: Cache, path: Path, quirk: Quirk) -> str:
    """What is said when a manifest is put right that the service has in memory, and the upstream is like that. The
    service may find it first, when it reads it for itself; then it is pulled, and damaged, again.
    """
    for _ in range(10):
        await cache.pull("docker.io/team/manifest", "1")
        flip(path)
        cache.hub.script.always("manifest", quirk)
        ran = await cache.run("verify", "--repair")
        cache.hub.script.clear()
        assert ran.status == 0
        if "nothing is wrong" not in ran.out:
            return ran.out
    raise TimeoutError


async def test_a_manifest_is_fetched_again(cache: Cache) -> None:
    """Also one that the service has in memory; where the upstream cannot be asked, it is told."""
    image = cache.hub.add_image("team/manifest", "1", os.urandom(100), config=os.urandom(50))
    path = content(cache, image.body)
    text = await repaired(cache, path, Quirk())
    assert path.read_bytes() == image.body
    assert f"blob {Digest.of(image.body)} is {len(image.body)} bytes of something else" in text
    assert "(repaired, refetched)" in text
    assert text.splitlines()[-1] == "1 wrong, 1 of them repaired, 1 piece fetched again"
    text = await repaired(cache, path, Quirk(status=403))
    assert "(repaired, upstream does not give it now)" in text
    assert not path.exists()
    assert (await cache.proxy.ask("/v2/docker.io/team/manifest/manifests/1")).body == image.body


async def test_records_that_lie(cache: Cache) -> None:
    """Rows of the index that look like ours: a blob that is said to be a manifest, a manifest of another size, a tag
    that leads nowhere, one that was checked in the future. What was said and is not so is forgotten.
    """
    proxy, hub = cache.proxy, cache.hub
    layer = os.urandom(1000)
    image = hub.add_image("team/lies", "1", layer, config=os.urandom(50))
    hub.add_image("team/lies", "2", os.urandom(1000), config=os.urandom(50))
    await cache.pull("docker.io/team/lies", "1")
    await cache.pull("docker.io/team/lies", "2")
    assert await proxy.stop() == 0
    media_type = image.manifest.media_type
    with sqlite3.connect(proxy.cache / "index/cache.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(Cache)") if row[1] != "rowid"]

        def forge(like: str, key: str, value: object) -> None:
            row = dict(
                zip(
                    columns,
                    database.execute(f"SELECT {', '.join(columns)} FROM Cache WHERE key = ?", (like,)).fetchone(),
                    strict=True,
                )
            )
            row |= {"key": key, "value": json.dumps(value).encode()}
            database.execute("DELETE FROM Cache WHERE key = ?", (key,))
            database.execute(
                f"INSERT INTO Cache ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                list(row.values()),
            )

        tag = "tag:docker.io/team/lies 1"
        manifest = f"manifest:docker.io/team/lies {image.manifest.digest}"
        forge(manifest, f"manifest:docker.io/team/lies {Digest.of(layer)}", {"t": media_type, "s": 1000})
        forge(manifest, manifest, {"t": media_type, "s": 1})
        forge(tag, "tag:docker.io/team/lies 3", {"d": f"sha256:{'1' * 64}", "c": time.time()})
        forge(tag, "tag:docker.io/team/lies 2", {"d": image.manifest.digest, "c": time.time() + 10**9})
    database.close()
    await proxy.start()
    ran = await cache.run("verify", "--json")
    assert ran.status == 1
    found = findings(ran)
    assert found == {
        f"docker.io/team/lies@{Digest.of(layer)}": found[f"docker.io/team/lies@{Digest.of(layer)}"],
        f"docker.io/team/lies@{image.manifest.digest}": f"is known as 1 bytes; it has {len(image.body)}",
        "docker.io/team/lies:3": f"points at sha256:{'1' * 64}, which is not known as a manifest there",
        "docker.io/team/lies:2": "was last checked in the future",
    }
    assert found[f"docker.io/team/lies@{Digest.of(layer)}"].startswith("is none: ")
    assert (await cache.run("verify", "--repair")).status == 0
    assert (await cache.run("verify")).status == 0
    answer = await proxy.ask("/v2/docker.io/team/lies/manifests/1", "HEAD")
    assert answer.headers["Content-Length"] == str(len(image.body))
    assert (await proxy.ask("/v2/docker.io/team/lies/manifests/3")).status == 404
    blob = await proxy.ask(f"/v2/docker.io/team/lies/blobs/{Digest.of(layer)}")
    assert blob.body == layer


async def test_what_is_somebody_else_s_is_named_and_left_alone(cache: Cache) -> None:
    """It takes room that nobody counts; whether it may go is not ours to say, and it is not wrong."""
    stranger = cache.proxy.cache / "blobs/sha256/README"
    stranger.touch()
    ran = await cache.run("verify", "--repair")
    assert ran.status == 0
    assert ran.out.count("file blobs/sha256/README is no content; look what it is, and remove it") == 1
    assert ran.out.endswith("nothing is wrong\n")
    assert summary(await cache.run("verify", "--json"))["strangers"] == 1
    assert stranger.exists()
    stranger.unlink()


async def test_what_a_pinned_image_lacks(cache: Cache) -> None:
    """It was promised to be here: 1, whatever is repaired."""
    stocked = await stock(cache)
    assert (await cache.call("pin", "ghcr.io/team/app:2")).status == 0
    for words in ((), ("--repair",)):
        ran = await cache.call("verify", "--json", *words)
        assert (ran.status, findings(ran)) == (
            1,
            {"ghcr.io/team/app:2": f"is not complete: {stocked.lacks} is not here"},
        )
    assert (await cache.call("unpin", "ghcr.io/team/app:2")).status == 0
    assert (await cache.call("verify")).status == 0
