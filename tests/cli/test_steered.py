"""`rm`, `prune`, `pin`, `unpin` and `pins`, beside the running service and without one."""

import asyncio
import json
import os
import pty
from pathlib import Path

import pytest

from mirrorproxy.names import Digest
from tests.cli.conftest import Cache, Stocked, stock
from tests.fakes.script import Quirk

pytestmark = pytest.mark.asyncio(loop_scope="module")


def kept(cache: Cache, digest: Digest) -> bool:
    """Is the content on the disk?"""
    return (cache.proxy.cache / "blobs" / digest.algorithm / digest.hex).exists()


async def listed(cache: Cache) -> list[str]:
    """The names that `ls` has."""
    return (await cache.call("ls", "--quiet")).out.split()


async def on_terminal(cache: Cache, answer: str, *words: str) -> tuple[int, str]:
    """Run a command whose standard input is a terminal, on which this is typed: its status, and what it said."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        process = await cache.start(*words, stdin=theirs)
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, (out + err).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def own(images: Stocked) -> list[Digest]:
    """What of `team/app:1` no other image names."""
    one = images.one
    return [one.manifest.digest, one.config.digest, one.layers[1].digest]


@pytest.mark.parametrize("running", [True, False])
async def test_rm_removes_what_no_other_image_needs(cache: Cache, running: bool) -> None:
    """Not in a dry run; with --yes the rest still is a hit, and the next pull fetches no more than what went."""
    images = await stock(cache)
    if not running:
        assert await cache.proxy.stop() == 0
    dry = await cache.run("rm", "ghcr.io/team/app:1", "--dry-run", "--json")
    assert dry.status == 0
    assert all(kept(cache, digest) for digest in own(images))
    ran = await cache.run("rm", "ghcr.io/team/app:1", "--yes", "--json")
    assert (ran.status, ran.err) == (0, "")
    removed, freed = ran.rows
    assert (removed["name"], removed["stays"]) == ("ghcr.io/team/app:1", False)
    assert freed["objects"] == 3
    assert freed["size"] >= images.one.layers[1].size
    assert [{**row, "dry_run": False} for row in dry.rows] == ran.rows
    assert not any(kept(cache, digest) for digest in own(images))
    assert kept(cache, Digest.of(images.base))
    assert await listed(cache) == ["docker.io/library/alpine:3.20", "ghcr.io/team/app:2"]
    if running:
        assert await cache.proxy.total("cache_evictions_total", reason="manual") == 3
        assert cache.proxy.said('a command asks for rm {"references": ["ghcr.io/team/app:1"]')
    else:
        await cache.proxy.start()
    cache.hub.log.clear()
    await cache.pull("docker.io/library/alpine", "3.20")
    assert cache.hub.log == []
    await cache.pull("ghcr.io/team/app", "1")
    assert sorted(str(seen) for seen in cache.hub.seen("cdn")) == ["GET cdn 200"] * 2  # config and one layer


async def test_nothing_goes_without_a_word(cache: Cache) -> None:
    """Neither terminal nor --yes: 2, with what to add. On a terminal: what would go, and a question."""
    images = await stock(cache)
    ran = await cache.call("rm", "ghcr.io/team/app:1")
    assert (ran.status, ran.out) == (2, "")
    assert "--yes" in ran.err
    assert "--dry-run" in ran.err
    for answer in ("n", "", "what?"):
        status, said = await on_terminal(cache, answer, "rm", "ghcr.io/team/app:1")
        assert (status, "would be removed: ghcr.io/team/app:1" in said, "nothing was removed" in said) == (
            1,
            True,
            True,
        )
    assert (await cache.call("prune", "--to", "0")).status == 2
    assert all(kept(cache, digest) for digest in own(images))
    status, said = await on_terminal(cache, "y", "rm", "ghcr.io/team/app:1")
    assert (status, "\nremoved: ghcr.io/team/app:1" in said) == (0, True)
    assert not any(kept(cache, digest) for digest in own(images))


async def test_all_or_nothing(cache: Cache) -> None:
    """One that is not cached, or pinned, and none goes."""
    images = await stock(cache)
    ran = await cache.call("rm", "ghcr.io/team/app:1", "ghcr.io/team/app:7", "--yes")
    assert (ran.status, "did you mean ghcr.io/team/app:" in ran.err) == (3, True)
    assert (await cache.call("pin", "ghcr.io/team/app:2")).status == 0
    ran = await cache.call("rm", "ghcr.io/team/app:1", "ghcr.io/team/app:2", "--yes")
    assert (ran.status, "ghcr.io/team/app:2 is pinned" in ran.err) == (1, True)
    assert all(kept(cache, digest) for digest in own(images))
    assert (await cache.call("unpin", "ghcr.io/team/app:2")).status == 0
    ran = await cache.call("rm", "ghcr.io/team/app:1", "ghcr.io/team/app:2", "--yes", "--json")
    assert [row["kind"] for row in ran.rows] == ["removed", "removed", "freed"]
    assert await listed(cache) == ["docker.io/library/alpine:3.20"]


async def test_another_name_of_the_same_image_keeps_it(cache: Cache) -> None:
    """The tag goes, the content stays; also where another repository has the name. It is not listed where it was."""
    images = await stock(cache)
    digest = images.one.manifest.digest
    cache.hub.tag("team/app", "same", digest)
    await cache.pull("ghcr.io/team/app", "same")
    ran = await cache.call("rm", f"ghcr.io/team/app@{digest}", "--yes")
    assert (ran.status, "remove the tag" in ran.err) == (1, True)
    (removed, freed) = (await cache.call("rm", "ghcr.io/team/app:same", "--yes", "--json")).rows
    assert (removed["stays"], freed["objects"]) == (True, 0)
    assert all(kept(cache, each) for each in own(images))
    assert "ghcr.io/team/app:same" not in await listed(cache)

    image = cache.hub.stock("team/app")
    cache.hub.repositories["team/copy"] = image
    await cache.pull("ghcr.io/team/copy", "1")
    (removed, freed) = (await cache.call("rm", "ghcr.io/team/app:1", "--yes", "--json")).rows
    assert (removed["stays"], freed["objects"]) == (True, 0)
    names = [row["name"] for row in (await cache.call("ls", "--json")).rows]
    assert names == ["docker.io/library/alpine:3.20", "ghcr.io/team/app:2", "ghcr.io/team/copy:1"]
    assert (await cache.call("rm", "ghcr.io/team/copy:1", "--yes")).status == 0
    assert not any(kept(cache, each) for each in own(images))


@pytest.mark.parametrize("running", [True, False])
async def test_prune_spares_what_is_pinned(cache: Cache, running: bool) -> None:
    """Unused for no time: all goes but the pinned image, complete; what was used lately is not "unused for a day"."""
    images = await stock(cache)
    assert (await cache.call("pin", "alpine:3.20")).status == 0
    if not running:
        assert await cache.proxy.stop() == 0
    (nothing,) = (await cache.call("prune", "--unused-for", "1d", "--yes", "--json")).rows
    assert (nothing["objects"], nothing["size"]) == (0, 0)
    dry = await cache.call("prune", "--unused-for", "0s", "--dry-run", "--json")
    assert all(kept(cache, digest) for digest in own(images))
    ran = await cache.call("prune", "--unused-for", "0s", "--yes", "--json")
    assert {row["digest"] for row in dry.rows[:-1]} == {row["digest"] for row in ran.rows[:-1]}
    assert ran.rows[-1]["objects"] == len(ran.rows) - 1 >= len(own(images))
    assert not any(kept(cache, digest) for digest in own(images))
    alpine = images.alpine
    assert all(kept(cache, each.digest) for each in (alpine.manifest, alpine.config, *alpine.layers))
    if not running:
        await cache.proxy.start()
    assert (await cache.call("unpin", "alpine:3.20")).status == 0


async def test_an_image_that_is_being_pulled_stays(cache: Cache) -> None:
    """`prune` leaves it whole, `rm` is refused; what came of a download that did not end goes with its image."""
    images = await stock(cache)
    two, name = images.two, "ghcr.io/team/app:2"
    going_on = asyncio.Event()
    cache.hub.script.always("cdn", Quirk(stall=40_000, release=going_on))
    cache.hub.log.clear()
    async with asyncio.TaskGroup() as tasks:
        pulling = tasks.create_task(cache.proxy.ask(f"/v2/ghcr.io/team/app/blobs/{images.lacks}"))
        while not cache.hub.count("cdn"):
            await asyncio.sleep(0.01)
        ran = await cache.call("rm", name, "--yes")
        assert (ran.status, "is being pulled" in ran.err) == (1, True), ran
        ran = await cache.call("prune", "--unused-for", "0s", "--yes", "--json")
        assert images.one.manifest.digest in {row.get("digest") for row in ran.rows}
        assert all(kept(cache, each.digest) for each in (two.manifest, two.config))
        await cache.proxy.kill()
        going_on.set()
        pulling.cancel()
    cache.hub.script.clear()
    (part,) = (await cache.call("prune", "--to", "0", "--unused-for", "0s", "--dry-run", "--json")).rows[:1]
    assert (part["kind"], part["digest"]) == ("part", images.lacks)
    dry = await cache.call("rm", name, "--dry-run", "--json")
    ran = await cache.call("rm", name, "--yes", "--json")
    assert [{**row, "dry_run": False} for row in dry.rows] == ran.rows
    assert (ran.rows[-1]["objects"], ran.rows[-1]["size"] > part["size"]) == (3, True)
    assert not list((cache.proxy.cache / "partial").glob("sha256-*"))
    await cache.proxy.start()


async def test_prune_wants_to_know_what(cache: Cache) -> None:
    """2 for nothing to go by, and for what is no size or duration, with what is one."""
    for words, said in (
        ((), "--unused-for 7d"),
        (("--to", "many"), "50GiB"),
        (("--unused-for", "7 days"), "1h30m"),
    ):
        ran = await cache.call("prune", "--yes", *words)
        assert (ran.status, said in ran.err) == (2, True), ran


async def test_pins_are_listed_with_what_is_missing(cache: Cache) -> None:
    """A pin of what is not cached is a promise for later: it is told what is missing, and what may have been meant."""
    await stock(cache)
    ran = await cache.call("pin", "ghcr.io/team/app:2", "--json")
    (row,) = ran.rows
    assert (row["name"], row["platform"], row["configured"]) == ("ghcr.io/team/app:2", None, False)
    assert (row["complete"], len(row["missing"])) == (False, 1)
    ran = await cache.call("pin", "ghcr.io/team/app:9", "--platform", "linux/arm64")
    assert (ran.status, "did you mean ghcr.io/team/app:" in ran.err) == (0, True)
    assert (await cache.call("pin", "alpine:3.20")).err == ""
    assert [row["pinned"] for row in (await cache.call("ls", "--json")).rows] == [True, False, True]
    rows = (await cache.call("pins", "--json")).rows
    assert [(row["name"], row["platform"], row["complete"]) for row in rows] == [
        ("ghcr.io/team/app:2", None, False),
        ("ghcr.io/team/app:9", "linux/arm64", False),
        ("docker.io/library/alpine:3.20", None, True),
    ]
    assert "lacks" in (await cache.call("pins")).out
    assert (await cache.call("pin", "ghcr.io/team/app:1", "--platform", "linux/arm64")).err == ""
    (row,) = (await cache.call("ls", "ghcr.io/team/app:1", "--json")).rows
    assert (row["pinned"], row["pinned_for"]) == (True, ["linux/arm64"])
    assert "complete, pinned (linux/arm64)" in (await cache.call("ls", "ghcr.io/team/app:1")).out
    assert "linux/arm64; other platforms may go" in (await cache.call("why", "ghcr.io/team/app:1")).out
    assert (await cache.call("unpin", "ghcr.io/team/app:1", "--platform", "linux/arm64")).status == 0
    ran = await cache.call("unpin", "ghcr.io/team/app:9")
    assert (ran.status, "did you mean ghcr.io/team/app:9 linux/arm64" in ran.err) == (3, True)
    assert (await cache.call("unpin", "ghcr.io/team/app:9", "--platform", "linux/arm64")).status == 0
    for name in ("ghcr.io/team/app:2", "alpine:3.20"):
        assert (await cache.call("unpin", name)).status == 0
    assert (await cache.call("pins", "--json")).rows == []
    assert (await cache.call("pins")).err == "nothing is pinned\n"
    ran = await cache.call("pin", "alpine", "--platform", "../x")
    assert (ran.status, "not a platform" in ran.err) == (2, True)


async def test_what_the_configuration_pins_already(cache: Cache, tmp_path: Path) -> None:
    """Is told, and not written down a second time."""
    await stock(cache)
    assert await cache.proxy.stop() == 0
    config = tmp_path / "pins.yaml"
    config.write_text(json.dumps({"cache": {"directory": str(cache.proxy.cache)}, "pins": ["alpine:3.20"]}))
    ran = await cache.run_plain("pin", "alpine:3.20", "--config", str(config))
    assert (ran.status, ran.out) == (0, "pinned: docker.io/library/alpine:3.20\n")
    assert "the configuration pins it" in ran.err
    await cache.proxy.start()
    assert (await cache.call("pins", "--json")).rows == []


async def test_ls_while_images_go(cache: Cache) -> None:
    """Commands at once beside one service: none fails."""
    await stock(cache)
    ran = await asyncio.gather(
        cache.run("ls", "--json"),
        cache.run("rm", "ghcr.io/team/app:1", "--yes"),
        cache.run("prune", "--unused-for", "0s", "--yes"),
        cache.run("du"),
    )
    assert [each.status in (0, 3) for each in ran] == [True] * 4
