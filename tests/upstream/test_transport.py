"""On the wire: TLS, proxies, header sizes, and what is never sent along."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
import trustme

from mirrorproxy.errors import BadAnswer, TimedOut, Unreachable
from mirrorproxy.names import Digest, Tag
from mirrorproxy.tasks import Tasks
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.proxy import Proxy
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

LAYER = b"layer"
TAG = Tag("3.20")


async def pull(upstream: Failover) -> bytes:
    """A manifest and its layer."""
    manifest = await upstream.manifest(ALPINE, TAG)
    blob = await upstream.blob(ALPINE, manifest.contents.layers[0].digest)
    try:
        return await read(blob)
    finally:
        await blob.aclose()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who issues the certificates of a network that inspects TLS."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The certificate that makes its certificates good."""
    path = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(str(path))
    return path


def certificate(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[Hub]:
    """A registry with TLS on all of its origins."""
    names = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "registry.test")
    async with Hub(tls=certificate(authority, *names)) as hub:
        hub.add_image(ALPINE.name, TAG, LAYER)
        yield hub


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A registry without TLS, stocked."""
    hub.add_image(ALPINE.name, TAG, LAYER)
    return hub


class TestTls:
    """With certificates."""

    async def test_a_ca_file_is_trusted(self, secure: Hub, connected: Connect, ca_file: Path) -> None:
        """By registry, token service and storage."""
        assert await pull(connected(secure, ca_file=str(ca_file))) == LAYER

    async def test_others_are_not(self, secure: Hub, connected: Connect) -> None:
        """And it is said why; no request was sent."""
        with pytest.raises(Unreachable, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted"):
            await pull(connected(secure))
        assert secure.count() == 0

    async def test_a_certificate_of_another_host(
        self, authority: trustme.CA, connected: Connect, ca_file: Path
    ) -> None:
        """Is as good as none."""
        async with Hub(tls=certificate(authority, "registry.test")) as hub:
            with pytest.raises(Unreachable, match="IP address mismatch"):
                await pull(connected(hub, ca_file=str(ca_file)))

    @pytest.mark.parametrize("content", [None, "this is no certificate"])
    async def test_a_ca_file_that_cannot_be_used(
        self,
        secure: Hub,
        connected: Connect,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        content: str | None,
    ) -> None:
        """Is named in the log; clients hear of it without its path."""
        path = tmp_path / "broken.crt"
        if content is not None:
            path.write_text(content)
        with pytest.raises(Unreachable, match="ca_file") as caught:
            await pull(connected(secure, ca_file=str(path)))
        assert str(tmp_path) not in str(caught.value)
        assert f"ca_file {path} cannot be used" in caplog.text

    async def test_a_redirect_does_not_leave_tls(
        self, secure: Hub, hub: Hub, connected: Connect, ca_file: Path
    ) -> None:
        """Everybody on the way could read and change what follows."""
        secure.script.always("manifest", Quirk(status=307, headers={"Location": f"{hub.url}/v2/"}))
        with pytest.raises(BadAnswer, match="from TLS to plain HTTP"):
            await pull(connected(secure, ca_file=str(ca_file)))
        assert hub.count() == 0

    async def test_a_token_does_not_leave_tls(self, secure: Hub, hub: Hub, connected: Connect, ca_file: Path) -> None:
        """Not even to the registry's own host."""
        secure.auth = "none"
        challenge = f'Bearer realm="http://127.0.0.1:{hub.token_service.port}/token",service="registry.hub"'
        secure.script.always("manifest", Quirk(status=401, headers={"WWW-Authenticate": challenge}))
        with pytest.raises(BadAnswer, match="without TLS"):
            await pull(connected(secure, ca_file=str(ca_file)))
        assert hub.count() == 0

    async def test_plain_http_spoken_to_tls(self, secure: Hub, connected: Connect) -> None:
        """Is an answer that is none."""
        with pytest.raises((BadAnswer, Unreachable)):
            await pull(connected(secure, endpoints=[secure.url.replace("https", "http")]))

    async def test_tls_spoken_to_plain_http(self, hub: Hub, connected: Connect) -> None:
        """Is said to be TLS's fault."""
        with pytest.raises(Unreachable, match="TLS with"):
            await pull(connected(hub, endpoints=[hub.url.replace("http", "https")]))


class TestProxy:
    """Through HTTP proxies."""

    async def test_plain_requests_are_forwarded(self, hub: Hub, connected: Connect) -> None:
        """Each of them, signed URLs byte for byte."""
        async with Proxy() as proxy:
            assert await pull(connected(hub, proxy=proxy.url)) == LAYER
            assert len(proxy.asked) == hub.count()
            assert {line.partition(" ")[0] for line in proxy.asked} == {"GET"}

    async def test_tls_is_tunnelled(self, secure: Hub, connected: Connect, ca_file: Path) -> None:
        """The proxy sees hosts and ports alone, and connections are kept through it."""
        async with Proxy() as proxy:
            upstream = connected(secure, proxy=proxy.url, ca_file=str(ca_file))
            for _ in range(3):
                assert await pull(upstream) == LAYER
            hosts = [f"CONNECT 127.0.0.{number}" for number in (1, 2, 3)]
            assert sorted(line.rpartition(":")[0] for line in proxy.asked) == hosts

    @pytest.mark.parametrize("login", [None, "ann:s3cret@/"])
    async def test_the_environments_proxy(
        self,
        secure: Hub,
        connected: Connect,
        ca_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        login: str | None,
    ) -> None:
        """`HTTPS_PROXY`, with its password; names are for the proxy to resolve."""
        async with Proxy({"registry.test": "127.0.0.1"}, login=login) as proxy:
            quoted = "ann:s3cret%40%2F@" if login else ""
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", f"//{quoted}"))
            endpoint = f"https://registry.test:{secure.registry.port}"
            assert await pull(connected(secure, endpoints=[endpoint], ca_file=str(ca_file))) == LAYER
            assert set(proxy.asked) == {f"CONNECT registry.test:{secure.registry.port}"}

    async def test_no_proxy(self, secure: Hub, connected: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        """`NO_PROXY` is asked directly."""
        async with Proxy({"registry.test": "127.0.0.1"}) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "other.test,.test")
            with pytest.raises(Unreachable, match=r"the name of registry\.test cannot be resolved"):
                await pull(connected(secure, endpoints=["https://registry.test"]))
            assert proxy.asked == []

    async def test_a_proxy_that_refuses(self, secure: Hub, connected: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        """Is named, its password is not."""
        async with Proxy({"registry.test": "127.0.0.1"}, login="ann:right") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//ann:wr0ng@"))
            with pytest.raises(Unreachable, match=r"the proxy 127\.0\.0\.1:\d+ refuses .* 407") as caught:
                await pull(connected(secure, endpoints=["https://registry.test"]))
            assert "wr0ng" not in str(caught.value)

    async def test_a_proxy_that_refuses_plain_requests(self, hub: Hub, connected: Connect) -> None:
        """Its 407 is not the registry's answer."""
        async with Proxy(login="ann:right") as proxy:
            with pytest.raises(Unreachable, match="proxy"):
                await pull(connected(hub, proxy=proxy.url))

    async def test_a_proxy_that_is_down(self, hub: Hub, connected: Connect) -> None:
        """Is told apart from a registry that is."""
        async with Proxy() as proxy:
            pass
        with pytest.raises(Unreachable, match=r"no connection to the proxy 127\.0\.0\.1:\d+: connection refused"):
            await pull(connected(hub, proxy=proxy.url))


async def test_netrc_is_not_read(hub: Hub, connected: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user keeps there for a host is for other programs."""
    path = tmp_path / "netrc"
    path.write_text("".join(f"machine 127.0.0.{n} login ann password s3cret\n" for n in (1, 2, 3)))
    monkeypatch.setenv("NETRC", str(path))
    assert await pull(connected(hub)) == LAYER
    assert not [seen for seen in hub.log if (seen.authorization or "").startswith("Basic")]


async def test_cookies_are_not_kept(hub: Hub, connected: Connect) -> None:
    """Each request stands for itself. (Asked by name: no jar keeps an address's cookies.)"""
    upstream = connected(hub, endpoints=[f"http://localhost:{hub.registry.port}"])
    hub.script.always("manifest", Quirk(headers={"Set-Cookie": "session=1; Path=/"}))
    await upstream.manifest(ALPINE, TAG)
    await upstream.manifest(ALPINE, TAG)
    assert not [seen for seen in hub.log if "Cookie" in seen.headers]


async def test_long_headers(hub: Hub, upstream: Failover) -> None:
    """A signed URL of 40 KB is followed as it stands."""
    location = f"?signature={'%2B' * 13_000}"
    hub.script.next("manifest", Quirk(status=307, headers={"Location": location}))
    await upstream.manifest(ALPINE, TAG)
    assert hub.seen("manifest")[-1].target.endswith(location)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x0a",
        b"",
    ],
)
async def test_what_is_not_http(hub: Hub, connected: Connect, answer: bytes) -> None:
    """Is an error of the contract, whatever it is."""
    tasks = Tasks()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.start(serve(reader, writer), name="serve")

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises((BadAnswer, Unreachable)):
            await connected(hub, endpoints=[endpoint]).manifest(ALPINE, TAG)
    await tasks.aclose()


async def test_a_host_that_does_not_accept(hub: Hub, connected: Connect, deaf: str) -> None:
    """`TimedOut` after the connect timeout."""
    with pytest.raises(TimedOut, match="did not accept a connection in time"):
        await connected(hub, endpoints=[deaf], connect_timeout=0.1).blob(ALPINE, Digest.of(b""))


async def test_names_that_nobody_answers_for_keep_no_disk_waiting(
    secure: Hub, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up takes half a minute to fail where the network swallows it, and the disk has as many threads as cores,
    and a few: those of its own keep each upstream's look-ups to itself.
    """
    answered, asked = threading.Event(), threading.Semaphore(0)

    def swallowed(*_: object, **__: object) -> NoReturn:
        asked.release()
        answered.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", swallowed)
    tasks = Tasks()
    for number in range(40):
        upstream = connected(secure, endpoints=[f"http://registry{number}.test"])
        tasks.start(upstream.resolve(ALPINE, TAG), name="ask")
    try:
        async with asyncio.timeout(5):
            while not asked.acquire(blocking=False):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(lambda: None)
    finally:
        answered.set()
        await tasks.aclose()
