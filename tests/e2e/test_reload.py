"""SIGHUP: what is taken over while running, and what is refused or waits."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.client import begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, own_address, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e reload")]

MIB = 1 << 20


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(hub: Hub, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A service whose tags are good for an hour."""
    hub.script.clear()
    hub.log.clear()
    async with Proxy(tmp_path, settings({"docker.io": upstream(hub, tag_ttl="1h")})) as proxy:
        yield proxy


async def test_an_upstream_more(proxy: Proxy, hub: Hub) -> None:
    """Unknown before, served after; the others' tokens and tags are as they were."""
    image = hub.add_image("team/more", "1", os.urandom(100))
    assert (await proxy.ask("/v2/team/more/manifests/1")).body == image.body
    answer = await proxy.ask("/v2/quay.io/team/more/manifests/1")
    assert (answer.status, answer.error["code"]) == (404, "NAME_UNKNOWN")
    proxy.settings["upstreams"]["quay.io"] = upstream(hub)
    told = await proxy.reload()
    assert told[-1]["msg"] == "loaded anew: upstreams.quay.io"
    assert (await proxy.ask("/v2/quay.io/team/more/manifests/1")).body == image.body
    assert await proxy.total("upstream_requests_total", registry="quay.io", kind="manifest", code="200") > 0
    hub.log.clear()
    assert (await proxy.ask("/v2/team/more/manifests/1")).headers["Cache-Status"] == "mirrorproxy; hit"
    assert (await proxy.ask(f"/v2/team/more/blobs/{image.config.digest}")).status == 200
    assert hub.count("token") == 0


async def test_what_waits_for_a_restart_is_told_as_long_as_it_does(proxy: Proxy) -> None:
    """At each reload, and no more when the file says again what runs."""
    waits, server = "these changes wait for a restart: server.metrics_listen", proxy.settings["server"]
    runs = server.get("metrics_listen", [])
    for listen, expected in ((["127.0.0.1:0"], True), (["127.0.0.1:0"], True), (runs, False)):
        server["metrics_listen"] = listen
        assert (waits in [line["msg"] for line in await proxy.reload()]) == expected


async def test_an_upstream_less(proxy: Proxy, hub: Hub) -> None:
    """Is not served any more, nor shown; it is when it comes back, from the cache."""
    image = hub.add_image("team/less", "1", os.urandom(100))
    proxy.settings["upstreams"]["quay.io"] = upstream(hub, tag_ttl="1h")
    await proxy.reload()
    assert (await proxy.ask("/v2/quay.io/team/less/manifests/1")).body == image.body
    assert "quay.io/team/less" in (await proxy.ask("/v2/_catalog")).body.decode()
    assert await proxy.total("upstream_up", registry="quay.io") == 1
    quay = proxy.settings["upstreams"].pop("quay.io")
    await proxy.reload()
    assert (await proxy.ask("/v2/quay.io/team/less/manifests/1")).status == 404
    assert "quay.io" not in (await proxy.ask("/v2/_catalog")).body.decode()
    assert not any("upstream_up" in line and "quay.io" in line for line in (await proxy.metrics()).splitlines())
    proxy.settings["upstreams"]["quay.io"] = quay
    await proxy.reload()
    hub.log.clear()
    assert (await proxy.ask("/v2/quay.io/team/less/manifests/1")).body == image.body
    assert hub.log == []


async def test_other_patterns(proxy: Proxy, hub: Hub) -> None:
    """What they forbid now is not served any more, cached or not; what they allow is."""
    image = hub.add_image("team/app", "1", os.urandom(100))
    target = "/v2/team/app/manifests/1"
    assert (await proxy.ask(target)).body == image.body
    for patterns, status in ((["other/*"], 403), (["team/*"], 200), (["team/other"], 403), ([], 200)):
        proxy.settings["upstreams"]["docker.io"]["repositories"] = patterns
        await proxy.reload()
        assert (await proxy.ask(target)).status == status
        assert (await proxy.ask(f"/v2/team/app/blobs/{image.layers[0].digest}", "HEAD")).status == status


async def test_another_time_to_live(proxy: Proxy, hub: Hub) -> None:
    """Counts for what is cached already."""
    image = hub.add_image("team/ttl", "1", os.urandom(100))
    for _ in range(2):
        assert (await proxy.ask("/v2/team/ttl/manifests/1")).body == image.body
    assert hub.count("manifest", "HEAD") == 0
    proxy.settings["upstreams"]["docker.io"]["tag_ttl"] = "0s"
    told = await proxy.reload()
    assert told[-1]["msg"] == "loaded anew: upstreams.docker.io.tag_ttl"
    hub.log.clear()
    assert (await proxy.ask("/v2/team/ttl/manifests/1")).body == image.body
    assert [seen.method for seen in hub.seen("manifest") if seen.authorization] == ["HEAD"]


async def test_under_load(proxy: Proxy, hub: Hub) -> None:
    """A transfer that runs while its upstream is replaced comes to its end; so does one while it is taken away."""
    data = os.urandom(4 * MIB)
    digest = hub.add_blob("team/load", data)
    go_on = asyncio.Event()
    hub.script.next("cdn", Quirk(stall=MIB, release=go_on))
    proxy.settings["upstreams"]["quay.io"] = upstream(hub)
    await proxy.reload()
    async with connect(proxy.address) as wire:
        _, first = await begin(wire, f"/v2/quay.io/team/load/blobs/{digest}", 1000)
        proxy.settings["upstreams"]["quay.io"]["negative_ttl"] = "1m"
        await proxy.reload()
        del proxy.settings["upstreams"]["quay.io"]
        await proxy.reload()
        go_on.set()
        assert first + await wire.reader.readexactly(4 * MIB - 1000) == data
    assert hub.count("cdn") == 1


async def test_a_bad_configuration(proxy: Proxy, hub: Hub) -> None:
    """Changes nothing: the old settings stay, every problem is told, and a good one is taken over after it."""
    image = hub.add_image("team/bad", "1", os.urandom(100))
    proxy.tolerate("not loaded anew")
    good = dict(proxy.settings)
    proxy.settings["fills"] = {"budget": "soon"}
    proxy.settings["log"] = {"levle": "info"}
    proxy.settings["upstreams"] = {}
    proxy.configure()
    before = len(proxy.log())
    proxy.send(signal.SIGHUP)
    await until(lambda: len(proxy.log()) >= before + 3)
    told = [line["msg"] for line in proxy.log()[before:]]
    assert all(message.startswith("not loaded anew, the old settings stay: ") for message in told)
    for words in ("fills.budget", "log.levle: unknown key; did you mean level?", "upstreams"):
        assert any(words in message for message in told)
    assert (await proxy.ask("/v2/team/bad/manifests/1")).body == image.body
    proxy.settings = good | {"log": {"level": "debug"}}
    assert (await proxy.reload())[-1]["msg"] == "loaded anew: log.level"


async def test_no_file_any_more(proxy: Proxy) -> None:
    """The same: it stays as it was."""
    proxy.tolerate("not loaded anew")
    proxy.config.unlink()
    proxy.send(signal.SIGHUP)
    await until(lambda: proxy.said("not loaded anew"))
    assert (await proxy.ask("/v2/")).status == 200


async def test_what_waits_for_a_restart(proxy: Proxy, tmp_path: Path) -> None:
    """Is named; everything else in the same file is taken over."""
    server = proxy.settings["server"]
    proxy.settings["server"] = {**server, "listen": [proxy.address, own_address()], "write_timeout": "5s"}
    proxy.settings["cache"] = {**proxy.settings["cache"], "directory": str(tmp_path / "other"), "max_size": "2GiB"}
    told = await proxy.reload()
    waits = [line for line in told if "restart" in line["msg"]]
    assert [line["level"] for line in waits] == ["warning"]
    assert waits[0]["msg"].endswith("server.listen, cache.directory")
    assert told[-1]["msg"] == "loaded anew: server.write_timeout, cache.max_size"
    assert await proxy.total("cache_limit_bytes") == 2 << 30
    assert not (tmp_path / "other").exists()


async def test_nothing_changed(proxy: Proxy) -> None:
    """As often as one likes, and all at once; it says so."""
    assert (await proxy.reload())[-1]["msg"] == "loaded anew: nothing changed"
    for _ in range(20):
        proxy.send(signal.SIGHUP)
    assert (await proxy.ask("/v2/")).status == 200


async def test_the_log_itself(proxy: Proxy) -> None:
    """Access lines on and off, and how much is told."""
    proxy.settings["log"] = {"access": False, "level": "warning"}
    proxy.configure()
    proxy.send(signal.SIGHUP)
    while (await proxy.logged_now("/v2/")) is not None:
        await asyncio.sleep(0.02)
    proxy.settings["log"] = {}
    await proxy.reload()
    answer = await proxy.ask("/v2/")
    assert (await proxy.logged(answer.headers["X-Request-ID"]))["path"] == "/v2/"
