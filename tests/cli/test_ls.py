"""`mirrorproxy ls`, beside the running service and without one."""

import pytest

from tests.cli.conftest import Cache, stock

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_lists_what_was_pulled_beside_the_service_and_without_it(cache: Cache) -> None:
    """The same rows both ways: what each takes by itself and with others, what is missing, until when it is fresh."""
    stocked = await stock(cache)
    for running in (True, False):
        if not running:
            assert await cache.proxy.stop() == 0
        ran = await cache.run("ls", "--json")
        assert (ran.status, ran.err) == (0, "")
        alpine, one, two = ran.rows
        assert [row["name"] for row in ran.rows] == [
            "docker.io/library/alpine:3.20",
            "ghcr.io/team/app:1",
            "ghcr.io/team/app:2",
        ]
        assert alpine["digest"] == stocked.alpine.manifest.digest
        assert alpine["platforms"] == [{"platform": "linux/amd64", "state": "complete"}]
        assert [row["complete"] for row in ran.rows] == [True, True, False]
        assert two["platforms"] == [{"platform": "", "state": "partial"}]
        assert alpine["shared"] == one["shared"] >= len(stocked.base)
        assert two["shared"] == 0
        assert one["own"] >= 100_000 > alpine["own"] > 0
        assert alpine["last_used"] >= alpine["checked"] < alpine["fresh_until"]
        assert one["fresh_until"] == one["checked"]
    await cache.proxy.start()


async def test_a_pattern_chooses(cache: Cache) -> None:
    """As a person would type it; 3 where nothing matches, and what may have been meant."""
    await stock(cache)
    for pattern, names in (("ghcr.io/**:2", ["ghcr.io/team/app:2"]), ("no such thing", []), ("team/*", [])):
        for words in (("--json",), ("--json", "--quiet"), ()):
            ran = await cache.call("ls", pattern, *words)
            assert ran.status == (0 if names else 3)
            assert [row["name"] for row in (ran.rows if words else ())] == (names if words else [])
            assert ("try **team/**" in ran.err) is ("*" in pattern and not names)


async def test_a_table_has_a_line_for_each_image(cache: Cache) -> None:
    """Without a terminal: no colour, nothing cut."""
    await stock(cache)
    ran = await cache.run("ls")
    head, *lines = ran.out.splitlines()
    assert head.split("  ")[0] == "IMAGE"
    assert [line.split()[0] for line in lines] == [
        "docker.io/library/alpine:3.20",
        "ghcr.io/team/app:1",
        "ghcr.io/team/app:2",
    ]
    assert "\x1b" not in ran.out


async def test_the_socket_is_for_its_owner_alone_and_goes_with_the_service(cache: Cache) -> None:
    """0600 in a directory of 0700."""
    socket = cache.proxy.cache / "admin.sock"
    assert socket.is_socket()
    assert socket.lstat().st_mode & 0o777 == 0o600
    assert cache.proxy.cache.stat().st_mode & 0o777 == 0o700
    assert await cache.proxy.stop() == 0
    assert not socket.exists()
    await cache.proxy.start()
