"""Which registry is meant, by all four ways to say it; and who may have what."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.e2e.client import code, names
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.content import Image
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e naming")]

PASSWORD = "hunter2-and-more"


class Scene(NamedTuple):
    """Docker Hub, another registry, and one with a login; each has `library/alpine`, and not the same."""

    proxy: Proxy
    hub: Hub
    other: Hub
    private: Hub
    alpine: Image
    others: Image
    secret: Image


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """All of it, running."""
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o600)
    async with Hub() as hub, Hub(auth="none", redirects=False) as other, Hub(users={"robot": PASSWORD}) as private:
        alpine = hub.add_image("library/alpine", "3.20", os.urandom(100), config=os.urandom(50))
        others = other.add_image("library/alpine", "3.20", os.urandom(100), config=os.urandom(50))
        other.add_image("a/b/c/d/e", "1", os.urandom(100))
        secret = private.add_image("team/app", "1", os.urandom(100), config=os.urandom(50))
        private.private = {"team/app", "else/app"}
        private.add_image("else/app", "1", os.urandom(100), config=os.urandom(50))
        login = {"credentials": {"username": "robot", "password_file": "password"}, "repositories": ["team/*"]}
        upstreams = {
            "docker.io": upstream(hub, tag_ttl="1h"),
            "ghcr.io": upstream(other, tag_ttl="1h"),
            "registry.corp.example": upstream(private, tag_ttl="1h", **login),
        }
        async with Proxy(folder, settings(upstreams)) as proxy:
            yield Scene(proxy, hub, other, private, alpine, others, secret)


HUBS = {
    "bare": "/v2/library/alpine/manifests/3.20",
    "bare without library": "/v2/alpine/manifests/3.20",
    "prefix": "/v2/docker.io/library/alpine/manifests/3.20",
    "prefix without library": "/v2/docker.io/alpine/manifests/3.20",
    "mount": "/docker.io/v2/library/alpine/manifests/3.20",
    "mount without library": "/docker.io/v2/alpine/manifests/3.20",
    "ns": "/v2/library/alpine/manifests/3.20?ns=docker.io",
    "ns and prefix": "/v2/docker.io/library/alpine/manifests/3.20?ns=docker.io",
    "ns, prefix and mount": "/docker.io/v2/docker.io/library/alpine/manifests/3.20?ns=docker.io",
    "index.docker.io": "/v2/index.docker.io/library/alpine/manifests/3.20",
    "registry-1.docker.io": "/v2/library/alpine/manifests/3.20?ns=registry-1.docker.io",
    "two aliases": "/index.docker.io/v2/alpine/manifests/3.20?ns=registry-1.docker.io",
    "another host": "http://mirror.example/v2/library/alpine/manifests/3.20",
}
OTHERS = {
    "prefix": "/v2/ghcr.io/library/alpine/manifests/3.20",
    "mount": "/ghcr.io/v2/library/alpine/manifests/3.20",
    "ns": "/v2/library/alpine/manifests/3.20?ns=ghcr.io",
    "ns and prefix": "/v2/ghcr.io/library/alpine/manifests/3.20?ns=ghcr.io",
    "upper case": "/v2/library/alpine/manifests/3.20?ns=GHCR.IO",
}


@pytest.mark.parametrize("form", HUBS)
async def test_docker_hub(scene: Scene, form: str) -> None:
    """By every form and alias: one image, asked for once."""
    answer = await scene.proxy.ask(HUBS[form])
    assert answer.body == scene.alpine.body
    blob = HUBS[form].replace("manifests/3.20", f"blobs/{scene.alpine.config.digest}")
    assert (await scene.proxy.ask(blob)).status == 200
    assert len([seen for seen in scene.hub.seen("manifest", "GET") if seen.authorization]) == 1
    assert scene.hub.count("cdn") == 1
    assert {seen.target.partition("/manifests")[0] for seen in scene.hub.seen("manifest")} == {"/v2/library/alpine"}
    assert answer.headers.get("OCI-Namespace") == (HUBS[form].partition("?ns=")[2] or None)


@pytest.mark.parametrize("form", OTHERS)
async def test_another_registry(scene: Scene, form: str) -> None:
    """By every form: its own image, though it has the same name."""
    assert (await scene.proxy.ask(OTHERS[form])).body == scene.others.body
    assert scene.other.count("manifest", "GET") == 1


async def test_only_the_hub_has_a_library(scene: Scene) -> None:
    """`alpine` of another registry is `alpine`."""
    answer = await scene.proxy.ask("/v2/ghcr.io/alpine/manifests/3.20")
    assert (answer.status, code(answer)) == (404, "NAME_UNKNOWN")
    assert scene.other.seen("manifest")[-1].target == "/v2/alpine/manifests/3.20"


async def test_a_long_name(scene: Scene) -> None:
    """Of many parts."""
    assert (await scene.proxy.ask("/v2/ghcr.io/a/b/c/d/e/manifests/1")).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v2/quay.io/a/b/manifests/1",
        "/quay.io/v2/a/b/manifests/1",
        "/v2/a/b/manifests/1?ns=quay.io",
        "/v2/localhost:5000/a/b/manifests/1",
        "/v2/192.0.2.1/a/manifests/1",
        "/quay.io/v2/",
        "/v2/?ns=quay.io",
        "/v2/quay.io/a/tags/list",
    ],
)
async def test_an_unknown_registry(scene: Scene, target: str) -> None:
    """404 NAME_UNKNOWN, with the names of those that are served; nobody is asked."""
    asked = [len(hub.log) for hub in (scene.hub, scene.other, scene.private)]
    dialled = await scene.proxy.total("upstream_requests_total")
    answer = await scene.proxy.ask(target)
    assert (answer.status, code(answer)) == (404, "NAME_UNKNOWN")
    assert "docker.io, ghcr.io, registry.corp.example" in answer.error["message"]
    assert [len(hub.log) for hub in (scene.hub, scene.other, scene.private)] == asked
    assert await scene.proxy.total("upstream_requests_total") == dialled


async def test_what_has_two_meanings(scene: Scene) -> None:
    """A path and an `ns` that disagree are refused."""
    for target in ("/v2/ghcr.io/a/manifests/1?ns=docker.io", "/docker.io/v2/a/manifests/1?ns=ghcr.io"):
        answer = await scene.proxy.ask(target)
        assert (answer.status, code(answer)) == (400, "NAME_INVALID")


async def test_lists_in_all_forms(scene: Scene) -> None:
    """Tags by page: the link to the next one is in the client's own form, and works."""
    for name in ("3.18", "3.19"):
        scene.other.tag("library/alpine", name, scene.others.manifest.digest)
    for form in OTHERS.values():
        target: str | None = form.replace("manifests/3.20", "tags/list") + ("&" if "?" in form else "?") + "n=1"
        found: list[str] = []
        while target is not None:
            answer = await scene.proxy.ask(target)
            found += names(answer, "tags")
            link = answer.headers.get("Link")
            target = None if link is None else link.partition("<")[2].partition(">")[0]
        assert found == ["3.18", "3.19", "3.20"]
    assert not [seen for seen in scene.other.seen("tags") if "ns=" in seen.target]


async def test_the_catalog(scene: Scene) -> None:
    """What is cached, and no more: of all registries, or of one; by page."""
    for target in (HUBS["bare"], OTHERS["ns"], "/v2/ghcr.io/a/b/c/d/e/manifests/1"):
        await scene.proxy.ask(target)
    catalog = await scene.proxy.ask("/v2/_catalog")
    assert names(catalog, "repositories") == ["docker.io/library/alpine", "ghcr.io/a/b/c/d/e", "ghcr.io/library/alpine"]
    for target in ("/ghcr.io/v2/_catalog", "/v2/_catalog?ns=ghcr.io"):
        assert names(await scene.proxy.ask(target), "repositories") == ["a/b/c/d/e", "library/alpine"]
    first = await scene.proxy.ask("/v2/_catalog?n=2")
    assert names(first, "repositories") == ["docker.io/library/alpine", "ghcr.io/a/b/c/d/e"]
    following = first.headers["Link"].partition("<")[2].partition(">")[0]
    assert names(await scene.proxy.ask(following), "repositories") == ["ghcr.io/library/alpine"]


async def test_one_repositorys_blob_is_not_anothers(scene: Scene) -> None:
    """A blob that is here is shown under a repository only where that has it, by its own registry's word."""
    digest = scene.alpine.layers[0].digest
    assert (await scene.proxy.ask(f"/v2/library/alpine/blobs/{digest}")).status == 200
    for target in (f"/v2/ghcr.io/library/alpine/blobs/{digest}", f"/v2/library/other/blobs/{digest}"):
        for method in ("GET", "HEAD"):
            assert (await scene.proxy.ask(target, method)).status == 404
    manifest = scene.alpine.manifest.digest
    assert (await scene.proxy.ask(HUBS["bare"])).status == 200
    assert (await scene.proxy.ask(f"/v2/ghcr.io/library/alpine/manifests/{manifest}")).status == 404


async def test_shared_bytes(scene: Scene) -> None:
    """A blob that two registries have is fetched once; the second is asked whether it has it."""
    data = os.urandom(100_000)
    digest = scene.hub.add_blob("library/alpine", data)
    scene.other.add_blob("library/alpine", data)
    assert (await scene.proxy.ask(f"/v2/library/alpine/blobs/{digest}")).body == data
    await scene.proxy.idle()
    scene.other.log.clear()
    for _ in range(2):
        assert (await scene.proxy.ask(f"/v2/ghcr.io/library/alpine/blobs/{digest}")).body == data
    assert [seen.method for seen in scene.other.log] == ["HEAD"]


async def test_a_layer_is_no_manifest(scene: Scene) -> None:
    """Though its bytes are here, and upstream might believe it."""
    await scene.proxy.ask(HUBS["bare"])
    digest = scene.alpine.layers[0].digest
    await scene.proxy.ask(f"/v2/library/alpine/blobs/{digest}")
    assert (await scene.proxy.ask(f"/v2/library/alpine/manifests/{digest}")).status == 404


# A registry with a login.


async def test_what_the_patterns_allow(scene: Scene) -> None:
    """Is pulled with the login, which goes to the token service alone."""
    at = "/v2/registry.corp.example/team/app"
    assert (await scene.proxy.ask(f"{at}/manifests/1")).body == scene.secret.body
    for part in (scene.secret.config, *scene.secret.layers):
        assert (await scene.proxy.ask(f"{at}/blobs/{part.digest}")).status == 200
    with_login = [seen.kind for seen in scene.private.log if (seen.authorization or "").startswith("Basic")]
    assert set(with_login) == {"token"}
    assert {seen.authorization for seen in scene.private.seen("cdn")} == {None}


@pytest.mark.parametrize("name", ["else/app", "team", "teams/app", "team/app/deeper", "x/team/app"])
async def test_what_they_do_not(scene: Scene, name: str) -> None:
    """403 DENIED, whether it is there or not, cached or not; upstream is not asked."""
    scene.private.log.clear()
    denied = await scene.proxy.total("auth_failures_total", direction="client")
    digest = scene.secret.layers[0].digest
    places = (
        "manifests/1",
        f"manifests/{scene.secret.manifest.digest}",
        f"blobs/{digest}",
        "tags/list",
        f"referrers/{digest}",
    )
    for place in places:
        for target in (
            f"/v2/registry.corp.example/{name}/{place}",
            f"/registry.corp.example/v2/{name}/{place}",
            f"/v2/{name}/{place}?ns=registry.corp.example",
        ):
            answer = await scene.proxy.ask(target)
            assert (answer.status, code(answer)) == (403, "DENIED")
            assert (await scene.proxy.ask(target, "HEAD")).status == 403
    assert scene.private.log == []
    assert await scene.proxy.total("auth_failures_total", direction="client") == denied + 2 * 3 * len(places)


async def test_a_login_and_no_patterns(scene: Scene, tmp_path: Path) -> None:
    """On an address that others can reach: the start is refused, and the way out told. On loopback it serves all."""
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    login = {"credentials": {"username": "robot", "password_file": "password"}}
    proxy = Proxy(tmp_path, settings({"registry.corp.example": upstream(scene.private, **login)}))
    address = proxy.address
    proxy.settings["server"]["listen"] = ["0.0.0.0:5000"]
    assert await proxy.run() == os.EX_CONFIG
    assert "add repositories" in proxy.stderr.read_text()
    assert PASSWORD not in proxy.stderr.read_text()
    proxy.stderr.unlink()
    proxy.settings["server"]["listen"] = [address]
    async with proxy:
        assert (await proxy.ask("/v2/else/app/manifests/1")).status == 200


async def test_a_password_that_changes(scene: Scene, tmp_path: Path) -> None:
    """In its file, while the service runs: the next pull that needs it uses the new one."""
    path = tmp_path / "password"
    path.write_text("old-password")
    path.chmod(0o600)
    login = {"credentials": {"username": "robot", "password_file": "password"}}
    proxy = Proxy(tmp_path, settings({"registry.corp.example": upstream(scene.private, **login)}))
    async with proxy:
        answer = await proxy.ask("/v2/team/app/manifests/1")
        assert (answer.status, code(answer)) == (403, "DENIED")
        path.write_text(PASSWORD)
        async with asyncio.timeout(10):
            while (await proxy.ask("/v2/team/app/manifests/1")).status != 200:
                await asyncio.sleep(0.05)
    assert PASSWORD not in proxy.stderr.read_text()
