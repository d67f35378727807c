"""Ways to the upstream: several endpoints, proxies, certificates of one's own."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme

from tests.e2e.client import code
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.proxy import Proxy as Egress
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e ways")]

MIB = 1 << 20
NAME = "team/app"
DEAD = "http://127.0.0.1:9"


# Endpoints.


@pytest_asyncio.fixture(loop_scope="module")
async def hubs() -> AsyncIterator[list[Hub]]:
    """Two that have the same."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Hub(auth="none")) for _ in range(2)]


def serve(folder: Path, hubs: list[Hub], *endpoints: str, **changes: Any) -> Proxy:
    """A service whose one upstream has these endpoints, else those of the hubs."""
    chosen = list(endpoints) or [hub.url for hub in hubs]
    return Proxy(folder, settings({"docker.io": upstream(hubs[0], endpoints=chosen, **changes)}))


async def test_the_first_one_is_down(hubs: list[Hub], tmp_path: Path) -> None:
    """The second answers within the same request, for all kinds; later requests do not even try the first."""
    data = os.urandom(MIB)
    _, image = [hub.add_image(NAME, "1", data) for hub in hubs]
    async with serve(tmp_path, hubs, DEAD, hubs[1].url) as proxy:
        began = asyncio.get_running_loop().time()
        assert (await proxy.ask(f"/v2/{NAME}/manifests/1")).body == image.body
        assert asyncio.get_running_loop().time() - began < 1.0
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")).body == data
        assert (await proxy.ask(f"/v2/{NAME}/tags/list")).status == 200
        assert await proxy.total("upstream_up", endpoint="127.0.0.1:9") == 0
        assert await proxy.total("upstream_up", endpoint=hubs[1].url.removeprefix("http://")) == 1
        assert await proxy.total("upstream_requests_total", code="0") == 1
        assert "127.0.0.1:9" in (await proxy.ask("/readyz?verbose")).body.decode()
    assert [seen.kind for seen in hubs[1].log] == ["manifest", "blob", "cdn", "tags"]


@pytest.mark.parametrize(
    "quirk", [Quirk(status=500), Quirk(status=401), Quirk(status=429), Quirk(html=True), Quirk(reset=True)]
)
async def test_the_first_one_is_ill(hubs: list[Hub], tmp_path: Path, quirk: Quirk) -> None:
    """The second answers, whatever is wrong with the first."""
    _, image = [hub.add_image(NAME, "1", b"layer") for hub in hubs]
    hubs[0].script.always("manifest", quirk)
    async with serve(tmp_path, hubs) as proxy:
        assert (await proxy.ask(f"/v2/{NAME}/manifests/1")).body == image.body
    assert [hub.count("manifest") for hub in hubs] == [1, 1]


async def test_one_that_breaks_in_mid_blob(hubs: list[Hub], tmp_path: Path) -> None:
    """The other one has the rest: of a blob it makes no difference who sends which bytes."""
    data = os.urandom(MIB)
    _, digest = [hub.add_blob(NAME, data) for hub in hubs]
    hubs[0].script.always("cdn", Quirk(cut=400_000))
    async with serve(tmp_path, hubs, connections=1) as proxy:
        answer = await proxy.ask(f"/v2/{NAME}/blobs/{digest}")
        assert (answer.complete, answer.body) == (True, data)
    assert [seen.range for seen in hubs[1].seen("cdn")] == ["bytes=400000-"]


async def test_one_that_sends_wrong_bytes(hubs: list[Hub], tmp_path: Path) -> None:
    """Is asked last from then on."""
    data = os.urandom(1000)
    _, digest = [hub.add_blob(NAME, data) for hub in hubs]
    hubs[0].script.always("cdn", Quirk(corrupt=True))
    async with serve(tmp_path, hubs) as proxy:
        assert (await proxy.ask(f"/v2/{NAME}/blobs/{digest}")).body == data
        hubs[0].log.clear()
        assert (await proxy.ask(f"/v2/{NAME}/tags/list")).status == 200
        assert hubs[0].log == []


async def test_all_are_down(hubs: list[Hub], tmp_path: Path) -> None:
    """504, and the names of all."""
    async with serve(tmp_path, hubs, DEAD, "http://127.0.0.2:9") as proxy:
        answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
        assert (answer.status, code(answer)) == (504, "UNAVAILABLE")
        assert "127.0.0.1:9" in answer.error["message"]
        assert "127.0.0.2:9" in answer.error["message"]


async def test_another_mirrorproxy(hubs: list[Hub], tmp_path: Path) -> None:
    """An endpoint with a path: a site's cache behind the machine's, for any registry, and each asks once."""
    data = os.urandom(MIB)
    image = hubs[0].add_image(NAME, "1", data)
    upstreams = {"docker.io": upstream(hubs[1]), "quay.io": upstream(hubs[0])}
    async with Proxy(tmp_path / "site", settings(upstreams)) as site:
        own = {"quay.io": upstream(hubs[0], endpoints=[f"http://{site.address}/quay.io"])}
        async with Proxy(tmp_path / "node", settings(own)) as node:
            assert (await node.ask(f"/v2/{NAME}/manifests/1")).body == image.body
            assert (await node.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")).body == data
            assert (await node.ask(f"/v2/{NAME}/manifests/none")).status == 404
            assert (await node.ask(f"/v2/{NAME}/tags/list")).status == 200
    paths = {line["path"].partition("/team")[0] for line in site.requests()}
    assert paths == {"/quay.io/v2"}
    assert (hubs[0].count("cdn"), hubs[1].count()) == (1, 0)


# Proxies and certificates.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Nobody's but this upstream's."""
    return trustme.CA()


@pytest_asyncio.fixture(loop_scope="module")
async def secured(authority: trustme.CA) -> AsyncIterator[Hub]:
    """A hub over TLS, by names that only the proxy on the way can resolve."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    names = ("registry.corp.example", "auth.corp.example", "storage.corp.example")
    authority.issue_cert(*names).configure_cert(context)
    hub = Hub(tls=context)
    for server, name in zip((hub.registry, hub.token_service, hub.storage), names, strict=True):
        server.name = name
    async with hub:
        yield hub


RESOLVED = {
    "registry.corp.example": "127.0.0.1",
    "auth.corp.example": "127.0.0.2",
    "storage.corp.example": "127.0.0.3",
}


def serve_secured(folder: Path, hub: Hub, authority: trustme.CA, *, environ: dict[str, str], **changes: Any) -> Proxy:
    """A service whose upstream is that hub, trusted by a `ca_file`."""
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    chosen = upstream(hub, token_realms=[], **{"ca_file": "ca.pem", **changes})
    return Proxy(folder, settings({"registry.corp.example": chosen}), environ=environ)


@pytest.mark.parametrize("how", ["HTTPS_PROXY", "https_proxy", "proxy:"])
async def test_through_a_proxy(secured: Hub, authority: trustme.CA, tmp_path: Path, how: str) -> None:
    """All that is asked goes through it: registry, token service of its domain, storage; nothing is resolved here."""
    data = os.urandom(MIB)
    image = secured.add_image(NAME, "1", data)
    async with Egress(RESOLVED) as egress:
        environ = {} if how == "proxy:" else {how: egress.url}
        changes = {"proxy": egress.url} if how == "proxy:" else {}
        async with serve_secured(tmp_path, secured, authority, environ=environ, **changes) as proxy:
            assert (await proxy.ask(f"/v2/{NAME}/manifests/1")).body == image.body
            answer = await proxy.ask(f"/v2/{NAME}/blobs/{image.layers[0].digest}")
            assert (answer.complete, answer.body) == (True, data)
        ports = [server.port for server in (secured.registry, secured.token_service, secured.storage)]
        wanted = {f"CONNECT {name}:{port}" for name, port in zip(RESOLVED, ports, strict=True)}
        assert set(egress.asked) == wanted


async def test_a_proxy_with_a_login(secured: Hub, authority: trustme.CA, tmp_path: Path) -> None:
    """Which is told to nobody else; a wrong one is a matter between the two of us."""
    image = secured.add_image(NAME, "1", b"layer")
    async with Egress(RESOLVED, login="egress:let-me-out") as egress:
        for login, status in (("egress:let-me-out", 200), ("egress:wr0ng-word", 504)):
            url = egress.url.replace("://", f"://{login}@")
            folder = tmp_path / login.partition(":")[2]
            async with serve_secured(folder, secured, authority, environ={"HTTPS_PROXY": url}) as proxy:
                answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
                assert answer.status == status
            told = proxy.stderr.read_text() + proxy.stdout.read_text() + str(answer)
            assert login.partition(":")[2] not in told
    assert image
    assert not [seen for seen in secured.log if "Proxy-Authorization" in seen.headers]


async def test_no_proxy(secured: Hub, authority: trustme.CA, tmp_path: Path) -> None:
    """Names in NO_PROXY are asked directly (here: cannot be, since they do not resolve)."""
    async with Egress(RESOLVED) as egress:
        environ = {"HTTPS_PROXY": egress.url, "NO_PROXY": ".corp.example"}
        async with serve_secured(tmp_path, secured, authority, environ=environ) as proxy:
            answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
            assert answer.status == 504
            assert "resolved" in answer.error["message"]
        assert egress.asked == []


async def test_a_proxy_that_is_down(secured: Hub, authority: trustme.CA, tmp_path: Path) -> None:
    """504, and the proxy's name; nobody is asked directly instead."""
    async with serve_secured(tmp_path, secured, authority, environ={"HTTPS_PROXY": DEAD}) as proxy:
        answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
        assert answer.status == 504
        assert "127.0.0.1:9" in answer.error["message"]
    assert secured.log == []


async def test_a_certificate_that_nobody_trusts(secured: Hub, authority: trustme.CA, tmp_path: Path) -> None:
    """Without `ca_file`, or with another one: 504, and why; nothing is sent."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    async with Egress(RESOLVED) as egress:
        for ca_file in (None, str(tmp_path / "other.pem")):
            folder = tmp_path / ("none" if ca_file is None else "other")
            async with serve_secured(
                folder, secured, authority, environ={"HTTPS_PROXY": egress.url}, ca_file=ca_file
            ) as proxy:
                answer = await proxy.ask(f"/v2/{NAME}/manifests/1")
                assert answer.status == 504
                assert "certificate" in answer.error["message"]
    assert secured.log == []


async def test_a_name_that_the_certificate_does_not_have(secured: Hub, authority: trustme.CA, tmp_path: Path) -> None:
    """Is refused though the authority is trusted."""
    async with Egress({"other.corp.example": "127.0.0.1"}) as egress:
        endpoint = f"https://other.corp.example:{secured.registry.port}"
        async with serve_secured(
            tmp_path, secured, authority, environ={"HTTPS_PROXY": egress.url}, endpoints=[endpoint]
        ) as proxy:
            assert (await proxy.ask(f"/v2/{NAME}/manifests/1")).status == 504
    assert secured.log == []
