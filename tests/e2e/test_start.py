"""Starting: on every kind of address, and every way in which it cannot be."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import ask, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, own_address, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e start")]

Serve = Callable[..., Proxy]
CANNOT_START, WRONG_CONFIGURATION = os.EX_UNAVAILABLE, os.EX_CONFIG


@pytest.fixture
def serve(hub: Hub, tmp_path: Path) -> Serve:
    """A service in front of the hub: `serve(server={..}, cache={..})`."""
    hub.log.clear()
    hub.script.clear()

    def make(folder: str = "proxy", **changes: Any) -> Proxy:
        chosen = {name: changes.pop(name) for name in ("environ", "arguments", "within") if name in changes}
        return Proxy(tmp_path / folder, settings({"docker.io": upstream(hub)}, **changes), **chosen)

    return make


async def refuses(proxy: Proxy, status: int = CANNOT_START) -> str:
    """Start a service that cannot be: what it says."""
    assert await proxy.run() == status
    text = proxy.stderr.read_text()
    assert "Traceback" not in text
    return text


async def test_a_socket_file(serve: Serve, tmp_path: Path) -> None:
    """`unix:/path`, alone or beside ports; one that a service that was killed left behind is no obstacle."""
    proxy = serve()
    path = tmp_path / "s"
    proxy.settings["server"]["listen"] = [proxy.address, f"unix:{path}"]
    async with proxy:
        assert (await ask(f"unix:{path}", "/v2/")).status == 200
        await proxy.kill()
        assert path.is_socket()
        await proxy.start()
        assert (await ask(f"unix:{path}", "/v2/")).status == 200
        assert (await proxy.ask("/v2/")).status == 200
    assert not path.exists()


async def test_a_socket_file_in_use(serve: Serve, tmp_path: Path) -> None:
    """Belongs to the service that listens there; what is no socket is nobody's to remove."""
    path = tmp_path / "s"
    async with serve(server={"listen": [f"unix:{path}", own_address()]}):
        second = serve("second", server={"listen": [f"unix:{path}"]})
        assert str(path) in await refuses(second)
        assert (await ask(f"unix:{path}", "/v2/")).status == 200
    path.write_text("mine")
    await refuses(second)
    assert path.read_text() == "mine"


async def test_two_addresses(serve: Serve, hub: Hub) -> None:
    """And IPv6: one cache behind all."""
    image = hub.add_image("library/two", "1", b"layer")
    proxy = serve()
    with socket.socket(socket.AF_INET6) as free:
        free.bind(("::1", 0))
        port = free.getsockname()[1]
    others = [own_address(), f"[::1]:{port}"]
    proxy.settings["server"]["listen"] = [proxy.address, *others]
    async with proxy:
        for address in (proxy.address, *others):
            answer = await ask(address, f"/v2/library/two/blobs/{image.layers[0].digest}")
            assert answer.body == b"layer"
    assert hub.count("cdn") == 1


async def test_metrics_on_a_port_of_their_own(serve: Serve, hub: Hub) -> None:
    """There alone, beside the health pages, which are at both; content is at the other. A stop is seen there last."""
    image = hub.add_image("library/watched", "1", b"layer")
    target = f"/v2/library/watched/blobs/{image.layers[0].digest}"
    address = own_address()
    hub.script.next("cdn", Quirk(stall=1, release=(release := asyncio.Event())))
    async with serve(server={"metrics_listen": [address]}) as proxy:
        for page in ("/livez", "/readyz", "/healthz"):
            assert (await proxy.ask(page)).status == (await ask(address, page)).status == 200
        assert b"mirrorproxy_build_info" in (await ask(address, "/metrics")).body
        hidden = await proxy.ask("/metrics")
        assert (hidden.status, "server.metrics_listen" in hidden.error["message"]) == (404, True)
        for path in ("/v2/", "/v2/_catalog", target):
            refused = await ask(address, path)
            assert (refused.status, "server.listen" in refused.error["message"]) == (404, True)
        assert (await ask(address, "/v2/a/blobs/uploads/", "POST", {"Content-Length": "0"})).status == 405
        assert hub.log == []
        async with connect(proxy.address) as wire:
            wire.send(target)
            await until(lambda: hub.count("cdn") == 1)
            proxy.send(signal.SIGTERM)
            async with asyncio.timeout(5):
                while (await ask(address, "/readyz")).body != b"draining\n":
                    await asyncio.sleep(0.01)
            release.set()
            assert (await wire.answer()).body == b"layer"
        assert await proxy.ended() == 0


async def test_a_port_in_use(serve: Serve) -> None:
    """Is told with the address, and nothing is left running or locked."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        proxy = serve()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        proxy.settings["server"]["listen"] = [proxy.address, taken]
        text = await refuses(proxy)
        assert "cannot start" in text
        assert f"{taken} (server.listen, --listen): Address already in use" in text
        proxy.settings["server"] = {"listen": [proxy.address], "metrics_listen": [taken]}
        proxy.stderr.unlink()
        text = await refuses(proxy)
        assert f"{taken} (server.metrics_listen): Address already in use" in text
        assert "--listen" not in text
    proxy.settings["server"] = {"listen": [proxy.address]}
    proxy.stderr.unlink()
    async with proxy:
        assert (await proxy.ask("/v2/")).status == 200


async def test_any_free_port(serve: Serve) -> None:
    """Port 0: the log has the one that it became."""
    proxy = serve(server={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"]})
    await proxy.launch()
    await until(lambda: proxy.said("metrics and health pages are on"))
    (serves, health) = (line["msg"].rpartition(" on ")[2] for line in proxy.log() if " on 127.0.0.1:" in line["msg"])
    assert (await ask(serves, "/v2/")).status == 200
    assert (await ask(health, "/readyz")).status == 200
    assert await proxy.stop() == 0


async def test_an_address_that_is_not_ours(serve: Serve) -> None:
    """Is told with the address."""
    proxy = serve(server={"listen": ["192.0.2.1:5000"]})
    assert "192.0.2.1" in await refuses(proxy)


async def test_a_second_service_on_one_cache(serve: Serve) -> None:
    """Is refused, with the name of the first, which goes on."""
    async with serve() as first:
        second = serve("second", cache={"directory": str(first.cache)})
        text = await refuses(second)
        assert str(first.pid) in text
        assert first.address in text
        assert str(first.cache) in text
        assert (await first.ask("/v2/")).status == 200
    second.stderr.unlink()
    async with second:  # the first one has let go
        assert (await second.ask("/v2/")).status == 200


async def test_a_cache_that_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    """A file in its place, a folder that is read-only: told with the path, in words."""
    (tmp_path / "file").write_text("")
    text = await refuses(serve(cache={"directory": str(tmp_path / "file")}))
    assert str(tmp_path / "file") in text
    text = await refuses(serve("other", cache={"directory": "/proc/mirrorproxy"}))
    assert "/proc/mirrorproxy" in text


async def test_a_read_only_cache(serve: Serve, tmp_path: Path) -> None:
    """A file system mounted read-only, with no cache on it: told with the path and the reason."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = f'mount -t tmpfs -o ro tmpfs {place} && exec "$@"'
    proxy = serve(
        cache={"directory": str(place)}, within=("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    )
    text = await refuses(proxy)
    assert str(place) in text
    assert "read-only" in text.lower()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"cache": {"max_sise": "1GiB"}}, "cache.max_sise: unknown key; did you mean max_size?"),
        ({"server": {"listen": ["nowhere"]}}, "server.listen"),
        ({"fills": {"budget": "soon"}}, "fills.budget"),
        ({"log": {"level": "loud"}}, "log.level"),
    ],
)
async def test_a_wrong_configuration(serve: Serve, wrong: dict[str, Any], words: str) -> None:
    """Exit status 78, and the key."""
    proxy = serve(**wrong)
    assert words in await refuses(proxy, WRONG_CONFIGURATION)
    assert not proxy.cache.exists()


async def test_everything_that_is_wrong_at_once(serve: Serve) -> None:
    """Each problem with its line."""
    proxy = serve(fills={"budget": "soon"}, log={"level": "loud"}, sever={})
    text = await refuses(proxy, WRONG_CONFIGURATION)
    lines = proxy.config.read_text().splitlines()
    for key, line in (("fills.budget", "  budget: soon"), ("log.level", "  level: loud"), ("sever", "sever: {}")):
        assert f"{proxy.config}:{lines.index(line) + 1}: {key}" in text


async def test_no_configuration_there(serve: Serve) -> None:
    """The file that was named has to be."""
    proxy = serve()
    proxy.configure = lambda: None  # type: ignore[method-assign]  # nobody writes it
    assert str(proxy.config) in await refuses(proxy, WRONG_CONFIGURATION)


async def test_flags_and_environment(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """Win over the file, in this order."""
    image = hub.add_image("team/flags", "1", b"layer")
    address, cache = own_address(), tmp_path / "elsewhere"
    proxy = serve(
        environ={"MIRRORPROXY__CACHE__DIRECTORY": str(tmp_path / "not here"), "MIRRORPROXY__LOG__ACCESS": "false"},
        arguments=("--cache-dir", str(cache), "--listen", address, "--upstream", f"ghcr.io={hub.url}"),
        fills={"budget": "1m"},
    )
    proxy.address = address
    async with proxy:
        assert (cache / "oci-layout").exists()
        answer = await proxy.ask("/v2/ghcr.io/team/flags/manifests/1")
        assert answer.status == 502
        assert "add " + hub.token_service.origin in answer.error["message"]  # which the flag cannot say
        assert (await proxy.ask("/v2/team/flags/manifests/1")).body == image.body
    assert proxy.stdout.read_text() == ""
    assert not (tmp_path / "not here").exists()


async def test_no_network(serve: Serve, hub: Hub) -> None:
    """Nothing is dialled at the start: with the upstream down it is ready at once, and serves when that comes."""
    image = hub.add_image("team/later", "1", b"layer")
    await hub.stop()
    try:
        async with serve() as proxy:
            assert (await proxy.ask("/readyz")).body == b"ready\n"
            assert (await proxy.ask("/v2/")).status == 200
            assert (await proxy.ask("/v2/team/later/manifests/1")).status == 504
            assert (await proxy.ask("/readyz")).status == 200
            await hub.start()
            assert (await proxy.ask("/v2/team/later/manifests/1")).body == image.body
    finally:
        await hub.start() if hub.registry._runner is None else None


async def test_nothing_is_asked_by_itself(serve: Serve, hub: Hub) -> None:
    """Not at the start, not for the health pages, metrics or the catalog."""
    async with serve() as proxy:
        for page in ("/livez", "/readyz?verbose", "/metrics", "/v2/", "/v2/_catalog", "/"):
            assert (await proxy.ask(page)).status == 200
        await asyncio.sleep(0.2)
        assert hub.log == []


async def test_its_directory(serve: Serve) -> None:
    """Is for its owner's eyes; the layout says what it is."""
    async with serve() as proxy:
        assert proxy.cache.stat().st_mode & 0o777 == 0o700
        assert '"1.0.0"' in (proxy.cache / "oci-layout").read_text()
        assert {path.name for path in proxy.cache.iterdir()} >= {
            "oci-layout",
            "index.json",
            "blobs",
            "partial",
            "index",
        }
