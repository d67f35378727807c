"""HTTPS for clients, and certificates that are replaced while the service runs."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.authority import Authority
from tests.e2e.client import ask, begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e tls")]

MIB = 1 << 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """With a certificate issued."""
    authority = Authority(tmp_path)
    authority.issue()
    return authority


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(hub: Hub, authority: Authority, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A service over TLS. (Its own probe here is without: it has a second address.)"""
    hub.script.clear()
    hub.log.clear()
    tls = {"cert": "tls.crt", "key": "tls.key"}  # relative to the configuration file
    proxy = Proxy(tmp_path, settings({"docker.io": upstream(hub)}, server={"tls": tls}), tls=authority.client())
    async with proxy:
        yield proxy


async def serial(proxy: Proxy, client: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection sees."""
    async with connect(proxy.address, client) as wire:
        certificate = wire.writer.get_extra_info("peercert")
        assert (await wire.ask("/v2/")).status == 200
        return int(certificate["serialNumber"], 16)


async def test_pulls(proxy: Proxy, hub: Hub, authority: Authority) -> None:
    """Manifests and large blobs, cold and warm, whole and in part."""
    data = os.urandom(8 * MIB)
    image = hub.add_image("team/tls", "1", data)
    target = f"/v2/team/tls/blobs/{image.layers[0].digest}"
    assert (await proxy.ask("/v2/team/tls/manifests/1")).body == image.body
    for _ in range(2):
        answer = await proxy.ask(target)
        assert (answer.complete, answer.body == data) == (True, True)
    assert (await proxy.ask(target, headers={"Range": "bytes=4000000-"})).body == data[4_000_000:]
    assert hub.count("cdn") == 1
    assert proxy.said(" over HTTPS")


async def test_no_tls_on_a_tls_port(proxy: Proxy, authority: Authority) -> None:
    """Is the end of the connection, and no harm; nor is a client that does not trust us."""
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await ask(proxy.address, "/v2/")
    with pytest.raises(ssl.SSLCertVerificationError):
        await ask(proxy.address, "/v2/", tls=ssl.create_default_context())
    assert (await ask(proxy.address, "/v2/", tls=authority.client())).status == 200


@pytest.mark.parametrize("cipher", ["CHACHA20", "AES128", "AES256"])
async def test_the_client_chooses_the_cipher(proxy: Proxy, authority: Authority, cipher: str) -> None:
    """It knows what its processor is fast at."""
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # of the later one Python's client cannot say an order
    client.set_ciphers(f"ECDHE+{cipher}:ECDHE+CHACHA20:ECDHE+AESGCM")
    async with connect(proxy.address, client) as wire:
        assert (await wire.ask("/v2/")).status == 200
        assert cipher in wire.writer.get_extra_info("cipher")[0]


async def test_a_new_certificate(proxy: Proxy, hub: Hub, authority: Authority) -> None:
    """New connections see it within 10 s; one that there is goes on."""
    data = os.urandom(8 * MIB)
    digest = hub.add_blob("team/tls", data)
    client = authority.client()
    before = await serial(proxy, client)
    async with connect(proxy.address, client, limit=1 << 16) as wire:
        _, first = await begin(wire, f"/v2/team/tls/blobs/{digest}", MIB)
        authority.issue()
        async with asyncio.timeout(10):
            while await serial(proxy, client) == before:
                await asyncio.sleep(0.05)
        assert first + await wire.reader.readexactly(7 * MIB) == data
    assert proxy.said("is in use now")


async def test_the_end_of_the_certificate(proxy: Proxy, authority: Authority) -> None:
    """Is shown, for an alert, and that of a new one from then on."""
    end = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert await proxy.total("tls_certificate_expiry_timestamp_seconds") > datetime(2100, 1, 1, tzinfo=UTC).timestamp()
    authority.issue(end)
    async with asyncio.timeout(10):
        while await proxy.total("tls_certificate_expiry_timestamp_seconds") != end.timestamp():
            await asyncio.sleep(0.05)


async def test_half_a_replacement(proxy: Proxy, authority: Authority) -> None:
    """A certificate without its key is not taken over; the old one serves until both are there."""
    proxy.tolerate("the new certificate is not taken over")
    client = authority.client()
    before = await serial(proxy, client)
    key = authority.key.read_bytes()
    authority.issue()
    fitting = authority.key.read_bytes()
    authority.key.write_bytes(key)
    async with asyncio.timeout(10):
        while not proxy.said("not taken over"):
            await asyncio.sleep(0.05)
    assert await serial(proxy, client) == before
    authority.key.write_bytes(fitting)
    async with asyncio.timeout(10):
        while await serial(proxy, client) == before:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("what", ["missing", "empty", "another key"])
async def test_certificates_that_cannot_be_used(hub: Hub, authority: Authority, tmp_path: Path, what: str) -> None:
    """The start is refused, and the file named."""
    match what:
        case "missing":
            authority.cert.unlink()
        case "empty":
            authority.cert.write_text("")
        case _:
            key = authority.key.read_bytes()
            authority.issue()
            authority.key.write_bytes(key)
    tls = {"cert": str(authority.cert), "key": str(authority.key)}
    proxy = Proxy(tmp_path / "proxy", settings({"docker.io": upstream(hub)}, server={"tls": tls}))
    assert await proxy.run() in (os.EX_UNAVAILABLE, os.EX_CONFIG)
    text = proxy.stderr.read_text()
    assert "Traceback" not in text
    assert str(authority.cert) in text
