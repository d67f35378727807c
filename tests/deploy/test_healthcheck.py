"""`mirrorproxy healthcheck` beside a running service, as a container's HEALTHCHECK calls it."""

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.client import begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, own_address, until
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("deploy healthcheck")]


async def healthcheck(*argv: str | Path, **environ: str) -> tuple[int, str]:
    """Run it: its status and the one line that it prints."""
    command = (sys.executable, "-m", "mirrorproxy", "healthcheck", *map(str, argv))
    environ = {"HOME": "/nowhere", **environ}
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1, env=environ)
    out, err = await process.communicate()
    assert err == b""
    assert out.endswith(b"\n")
    assert out.count(b"\n") == 1
    assert process.returncode is not None
    return process.returncode, out.decode().rstrip("\n")


def _service(hub: Hub, directory: Path, **changes: Any) -> Proxy:
    return Proxy(directory, settings({"docker.io": upstream(hub)}, **changes))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _is_no_registry(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    writer.close()


async def test_a_service_is_asked_where_it_listens(hub: Hub, tmp_path: Path) -> None:
    """At the first address that its settings have, be it all of the machine's, or a socket file."""
    proxy = _service(hub, tmp_path / "proxy")
    hosts = ("127.0.0.1", "0.0.0.0", "[::1]", "[::]", "localhost")
    addresses = [proxy.address, *(f"{host}:{_free_port()}" for host in hosts), f"unix:{tmp_path / 's'}"]
    proxy.settings["server"]["listen"] = addresses
    async with proxy:
        checks = [healthcheck("--config", proxy.config, "--listen", address) for address in addresses]
        assert await asyncio.gather(*checks) == [(0, f"ready (200 at {address})") for address in addresses]
        assert await healthcheck("--config", proxy.config, "--live") == (0, f"ok (200 at {proxy.address})")


async def test_over_tls_whatever_the_certificate_says(hub: Hub, tmp_path: Path) -> None:
    """It is made out for the names that clients use, by an authority that only they need to know."""
    issued = trustme.CA().issue_cert("mirror.example.com")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    issued.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    proxy = _service(hub, tmp_path, server={"tls": {"cert": "tls.crt", "key": "tls.key"}})
    secure, proxy.address = proxy.address, f"unix:{tmp_path}/s"
    await proxy.launch()
    await until(lambda: proxy.said("serves docker.io"))
    assert await healthcheck("--config", proxy.config) == (0, f"ready (200 at {secure})")
    assert await proxy.stop() == 0
    assert await healthcheck("--config", proxy.config) == (1, f"no answer at {secure}: Connection refused")


async def test_a_service_that_is_stopping_is_alive_and_not_ready(hub: Hub, tmp_path: Path) -> None:
    """Where health pages have an address of their own, it is asked: that answers while transfers get time to end."""
    health = own_address()
    proxy = _service(hub, tmp_path, server={"metrics_listen": [health]})
    digest = hub.add_blob("team/image", bytes(20 << 20))
    async with proxy, connect(proxy.address) as wire:
        await begin(wire, f"/v2/team/image/blobs/{digest}", 1)
        assert await healthcheck("--config", proxy.config) == (0, f"ready (200 at {health})")
        proxy.send(signal.SIGTERM)
        await until(lambda: proxy.said("stopping"))
        assert await healthcheck("--config", proxy.config) == (1, f"draining (503 at {health})")
        assert await healthcheck("--config", proxy.config, "--live") == (0, f"ok (200 at {health})")


async def test_flags_and_environment_count_as_for_the_service(hub: Hub, tmp_path: Path) -> None:
    """The file can be named by the environment, which the service and its check have in common."""
    async with _service(hub, tmp_path) as proxy:
        well = (0, f"ready (200 at {proxy.address})")
        assert await healthcheck(MIRRORPROXY_CONFIG=str(proxy.config)) == well
        assert await healthcheck(MIRRORPROXY_CONFIG="", MIRRORPROXY__SERVER__LISTEN=proxy.address) == well
        assert await healthcheck("--listen", proxy.address) == well


async def test_what_is_wrong_is_one_line_and_status_1(tmp_path: Path) -> None:
    """Docker knows no other status: nothing listens, something else does, or nobody can know where."""
    address = own_address()
    assert await healthcheck("--listen", address) == (1, f"no answer at {address}: Connection refused")
    assert await healthcheck("--listen", "unix:/nowhere/s") == (
        1,
        "no answer at unix:/nowhere/s: No such file or directory",
    )
    status, text = await healthcheck("--listen", "127.0.0.1:0")
    assert (status, text) == (1, "the service listens on port 0, any free one: name the port with --listen")
    status, text = await healthcheck("--listen", "nonsense", "--cache-dir", "")
    assert status == 1
    assert text.startswith("the configuration cannot be used: ")
    host, port = address.split(":")
    async with await asyncio.start_server(_is_no_registry, host, int(port)):
        assert await healthcheck("--listen", address) == (1, f"no answer at {address}: it does not speak HTTP")
