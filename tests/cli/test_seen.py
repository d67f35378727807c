"""`du`, `why` and `refresh`, beside the running service and without one."""

import os
import shutil

import pytest

from mirrorproxy.manifests import OCI_INDEX
from mirrorproxy.names import Digest
from tests.cli.conftest import Cache, stock
from tests.fakes.script import Quirk

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_du_counts_each_piece_once_in_the_total(cache: Cache) -> None:
    """What two repositories of two registries share is both's, and once in the total, which is what the disk has."""
    images = await stock(cache)
    for running in (True, False):
        if not running:
            assert await cache.proxy.stop() == 0
        ran = await cache.call("du", "--json")
        assert (ran.status, ran.err) == (0, "")
        found = {(row["scope"], row["name"]): row for row in ran.rows}
        one, other = found["repository", "docker.io/library/alpine"], found["repository", "ghcr.io/team/app"]
        assert one["shared"] == other["shared"] >= len(images.base)
        assert found["registry", "ghcr.io"]["shared"] == one["shared"]
        assert one["size"] == one["own"] + one["shared"]
        files = [path.stat() for path in (cache.proxy.cache / "blobs").rglob("*") if path.is_file()]
        total = found["total", ""]
        assert (total["size"], total["objects"]) == (sum(max(f.st_blocks, 1) * 512 for f in files), len(files))
        assert one["own"] + other["own"] + one["shared"] == total["size"]
        assert found["other", ""]["objects"] == found["partial", ""]["objects"] == 0
    await cache.proxy.start()
    table = await cache.call("du")
    assert "TOTAL" in table.out.splitlines()[-1]


async def test_du_tells_what_is_nobodys(cache: Cache) -> None:
    """Content that no repository is known to have is a row of its own, and in the total."""
    await stock(cache)
    data = os.urandom(9000)
    path = cache.proxy.cache / "blobs" / "sha256" / Digest.of(data).hex
    path.write_bytes(data)
    found = {row["scope"]: row for row in (await cache.call("du", "--json")).rows}
    assert (found["other"]["objects"], found["other"]["size"]) == (1, path.stat().st_blocks * 512)
    path.unlink()


async def test_why_tells_the_story_of_an_image(cache: Cache) -> None:
    """What is here, from which endpoint, how fresh, what a pull does, what would survive: with a service or without."""
    images = await stock(cache)
    endpoint = cache.hub.registry.origin.partition("://")[2]
    ran = await cache.call("why", "alpine:3.20", "--json")
    (row,) = ran.rows
    assert row["name"] == "docker.io/library/alpine:3.20"
    assert (row["digest"], row["manifest"], row["fresh"]) == (images.alpine.manifest.digest, True, True)
    assert (row["tag_endpoint"], row["endpoints"]) == (endpoint, [endpoint])
    assert (row["pull"], row["survives"]) == ("hit", ["linux/amd64"])
    (two,) = (await cache.call("why", "ghcr.io/team/app:2", "--json")).rows
    assert (two["pull"], two["survives"], two["fresh"]) == ("fetch", [], False)
    assert [(each["missing"], each["missing_bytes"]) for each in two["platforms"]] == [(1, 50_000)]
    (one,) = (await cache.call("why", f"ghcr.io/team/app@{images.one.manifest.digest}", "--json")).rows
    assert (one["pull"], one["fresh_until"], one["survives"]) == ("hit", None, ["linux/arm64"])
    told = await cache.call("why", "ghcr.io/team/app:1")
    assert "upstream is asked about the tag" in told.out
    assert f"checked 0 s ago by {endpoint}" in told.out or f"by {endpoint}" in told.out


async def test_what_a_pull_would_do_is_what_it_does(cache: Cache) -> None:
    """`hit` asks upstream nothing, `check` one HEAD."""
    await stock(cache)
    for name, repository, tag, asked in (
        ("alpine:3.20", "docker.io/library/alpine", "3.20", []),
        ("ghcr.io/team/app:1", "ghcr.io/team/app", "1", ["HEAD"]),
    ):
        (row,) = (await cache.call("why", name, "--json")).rows
        assert row["pull"] == ("check" if asked else "hit")
        cache.hub.log.clear()
        await cache.pull(repository, tag)
        assert [seen.method for seen in cache.hub.seen("manifest") if seen.status == 200] == asked


async def test_names_that_are_nearly_right(cache: Cache) -> None:
    """Exit 3 and what may have been meant: another tag, another repository, a slip of the shift key."""
    await stock(cache)
    for wrong, right in (
        ("ghcr.io/team/app:3", "ghcr.io/team/app:2"),
        ("ghcr.io/team/ap:1", "ghcr.io/team/app:1"),
        ("ghcr.io/library/alpine:3.20", "docker.io/library/alpine:3.20"),
        ("alpine", "docker.io/library/alpine:3.20"),
    ):
        ran = await cache.call("why", wrong)
        assert (ran.status, ran.out) == (3, ""), wrong
        assert "is not in the cache" in ran.err
        assert f"did you mean {right}" in ran.err
    for action, status in (("why", 3), ("pin", 0)):  # a right name of something that is not here yet
        ran = await cache.call(action, "nginx:1.27")
        assert (ran.status, "did you mean" in ran.err) == (status, False)
    assert (await cache.call("unpin", "nginx:1.27")).status == 0
    ran = await cache.call("why", "Alpine:3.20")
    assert ran.status == 2
    assert "did you mean docker.io/library/alpine:3.20" in ran.err


@pytest.mark.parametrize(
    "name",
    ["", "/", ":", "@", "../../etc/passwd", "a//b", "alpine@sha256:12", "alpine@md5:00", "x" * 600, "a:b:c", "\x1b[31m",
     "ghcr.io/" + "a" * 300, "alpine:" + "t" * 200, "[::1", "é"],
)  # fmt: skip
async def test_hostile_names_are_named_and_harmless(cache: Cache, name: str) -> None:
    """Exit 2 with the reason, and nothing that a terminal would obey."""
    ran = await cache.call("why", "--", name)
    assert ran.status == 2, ran
    assert "\x1b" not in ran.err
    assert "Traceback" not in ran.err


async def test_refresh_asks_now_and_tells_what_changed(cache: Cache) -> None:
    """A fresh tag is asked about all the same; one that moved is told with what it was; its manifest is kept."""
    images = await stock(cache)
    cache.hub.log.clear()
    (row,) = (await cache.call("refresh", "alpine:3.20", "--json")).rows
    assert (row["changed"], row["before"], row["digest"]) == (False, *[images.alpine.manifest.digest] * 2)
    assert [seen.method for seen in cache.hub.seen("manifest") if seen.status == 200] == ["HEAD"]
    moved = cache.hub.add_image("library/alpine", "3.20", b"another layer")
    for running in (True, False):
        if not running:
            assert await cache.proxy.stop() == 0
            moved, before = cache.hub.add_image("library/alpine", "3.20", b"a third layer"), moved
        else:
            before = images.alpine
        (row,) = (await cache.call("refresh", "alpine:3.20", "--json")).rows
        assert (row["changed"], row["before"]) == (True, before.manifest.digest)
        assert row["digest"] == moved.manifest.digest
        kept = cache.proxy.cache / "blobs" / "sha256" / moved.manifest.digest.hex
        assert kept.read_bytes() == moved.body
        (row,) = (await cache.call("why", "alpine:3.20", "--json")).rows
        assert (row["pull"], row["endpoints"]) == ("fetch", [cache.hub.registry.origin.partition("://")[2]])
    await cache.proxy.start()


async def test_refresh_of_what_upstream_does_not_have_or_does_not_tell(cache: Cache) -> None:
    """3 where it says no; 75 where it cannot be asked, and what is cached stays; 2 for a digest, 3 for no registry."""
    images = await stock(cache)
    ran = await cache.call("refresh", "ghcr.io/team/app:nope")
    assert (ran.status, "ghcr.io/team/app:nope: " in ran.err) == (3, True)
    cache.hub.script.always("manifest", Quirk(status=503))
    ran = await cache.call("refresh", "ghcr.io/team/app:1")
    assert (ran.status, ran.out) == (75, "")
    assert "503" in ran.err
    cache.hub.script.clear()
    assert (await cache.call("why", "ghcr.io/team/app:1")).status == 0
    ran = await cache.call("refresh", f"ghcr.io/team/app@{images.one.manifest.digest}")
    assert (ran.status, "never changes" in ran.err) == (2, True)
    ran = await cache.call("refresh", "nowhere.example/app")
    assert (ran.status, "not one of the configured registries" in ran.err) == (3, True)


async def test_what_would_survive_does(cache: Cache) -> None:
    """One platform of an index was pulled, of another some: with the upstream gone the first one can be pulled."""
    hub = cache.hub
    names = ("amd64", "arm64", "riscv64")
    images = {name: hub.add_image("team/many", name, os.urandom(3000), config=name.encode()) for name in names}
    entries = [
        {
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.size,
            "platform": {"os": "linux", "architecture": name},
        }
        for name, image in images.items()
    ]
    hub.add_manifest("team/many", {"manifests": entries}, "all", media_type=OCI_INDEX)

    async def pull(name: str, *, layers: bool = True) -> bool:
        """As a client does."""
        image = images[name]
        paths = ["manifests/all", f"manifests/{image.manifest.digest}", f"blobs/{image.config.digest}"]
        paths += [f"blobs/{layer.digest}" for layer in image.layers if layers]
        return all([(await cache.proxy.ask(f"/v2/ghcr.io/team/many/{path}")).status == 200 for path in paths])

    assert await pull("amd64")
    assert await pull("arm64", layers=False)
    await cache.proxy.idle()
    (row,) = (await cache.call("why", "ghcr.io/team/many:all", "--json")).rows
    assert [(each["platform"], each["state"]) for each in row["platforms"]] == [
        ("linux/amd64", "complete"),
        ("linux/arm64", "partial"),
        ("linux/riscv64", "absent"),
    ]
    assert (row["survives"], row["pull"]) == (["linux/amd64"], "fetch")
    assert [each["missing_bytes"] for each in row["platforms"]] == [0, 3000, None]
    part = cache.proxy.cache / "partial" / f"sha256-{images['arm64'].layers[0].digest.hex}"
    part.mkdir()
    (part / "data").write_bytes(b"x" * 1000)
    (part / "state").write_text('{"total": 3000, "spans": [[0, 1000]]}')
    (row,) = (await cache.call("why", "ghcr.io/team/many:all", "--json")).rows
    assert (row["begun_bytes"], row["downloading"], row["platforms"][1]["missing_bytes"]) == (1000, 0, 2000)
    assert "1 missing piece to fetch, 2,000 bytes" in row["pull_words"]
    assert "1 kB of what is missing are here" in (await cache.call("why", "ghcr.io/team/many:all")).out
    shutil.rmtree(part)
    cut = cache.proxy.cache / "blobs" / "sha256" / images["amd64"].layers[0].digest.hex
    data = cut.read_bytes()
    cut.chmod(0o600)
    cut.write_bytes(data[:-1])
    (listed,) = (await cache.call("ls", "ghcr.io/team/many:all", "--json")).rows
    assert [each["state"] for each in listed["platforms"]] == ["partial", "partial", "absent"]
    cut.write_bytes(data)
    assert "linux/arm64 could not" in row["survives_words"]
    (listed,) = (await cache.call("ls", "ghcr.io/team/many:all", "--json")).rows
    assert listed["complete"] is False
    await hub.registry.stop()
    try:
        assert [await pull(name) for name in images] == [True, False, False]
    finally:
        await hub.registry.start(hub._at_registry)
