"""What the service tells of itself: access log, log, metrics, health. And what it never tells."""

import base64
import json
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.client import connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.web.wire import Answer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e told")]

PASSWORD = "hunter2-hunter2"
VARIABLE = "swordfish-swordfish"
IDENTITY = "identity-token-of-mine"
MIB = 1 << 20


class Scene(NamedTuple):
    """A service with three upstreams that want a login each, one way each."""

    proxy: Proxy
    hub: Hub
    basic: Hub
    identity: Hub


@pytest_asyncio.fixture(loop_scope="module")
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Running, at its most talkative."""
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    async with (
        Hub(users={"robot": PASSWORD}) as hub,
        Hub(auth="basic", redirects=False, users={"robot": VARIABLE}) as basic,
        Hub(identity_token=IDENTITY) as identity,
    ):
        auth = base64.b64encode(b"<token>:").decode()
        login = {"auths": {"docker-config.test": {"auth": auth, "identitytoken": IDENTITY}}}
        (tmp_path / "config.json").write_text(json.dumps(login))
        (tmp_path / "config.json").chmod(0o600)
        upstreams = {
            "docker.io": upstream(hub, credentials={"username": "robot", "password_file": "password"}),
            "basic.test": upstream(basic, credentials={"username": "robot", "password_env": "ROBOT_PASSWORD"}),
            "docker-config.test": upstream(identity, credentials={"docker_config": "config.json"}),
        }
        proxy = Proxy(tmp_path, settings(upstreams, log={"level": "debug"}), environ={"ROBOT_PASSWORD": VARIABLE})
        async with proxy:
            yield Scene(proxy, hub, basic, identity)


async def test_the_access_log(scene: Scene) -> None:
    """One JSON line a request, with what a query or an alert needs."""
    image = scene.hub.add_image("library/alpine", "3.20", os.urandom(200_000))
    layer = image.layers[0]
    target = f"/v2/library/alpine/blobs/{layer.digest}"
    told = [
        await scene.proxy.ask("/v2/library/alpine/manifests/3.20?ns=docker.io", headers={"User-Agent": 'a "client" é'}),
        await scene.proxy.ask(target, headers={"X-Request-ID": "my-own.id_1"}),
    ]
    await scene.proxy.idle()
    told += [
        await scene.proxy.ask(target, headers={"Range": "bytes=0-99"}),
        await scene.proxy.ask(target, "HEAD"),
        await scene.proxy.ask("/v2/library/alpine/manifests/none"),
        await scene.proxy.ask("/v2/library/alpine/manifests/1", "PUT", headers={"Content-Length": "0"}),
    ]
    lines = [await scene.proxy.logged(answer.headers["X-Request-ID"]) for answer in told]
    assert len(scene.proxy.requests()) == 6
    manifest, cold, part, head, missing, push = lines
    for line in lines:
        assert set(line) - {"error"} == {
            *("time", "level", "msg", "request_id", "client", "method", "path", "registry", "repository", "reference"),
            *("kind", "cache", "status", "bytes", "duration_ms", "ttfb_ms", "user_agent", "aborted"),
        }
        assert (line["msg"], line["level"], line["client"]) == ("request", "info", "127.0.0.1")
        stamp = datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - stamp).total_seconds()) < 60
        assert line["duration_ms"] > 0
        assert line["aborted"] is False
    assert len({line["request_id"] for line in lines}) == 6
    assert manifest["path"] == "/v2/library/alpine/manifests/3.20?ns=docker.io"
    assert manifest["user_agent"].startswith('a "client"')
    named = [(line["registry"], line["repository"], line["reference"], line["kind"]) for line in lines[:5]]
    assert named[:2] == [
        ("docker.io", "library/alpine", "3.20", "manifest"),
        ("docker.io", "library/alpine", layer.digest, "blob"),
    ]
    assert cold["request_id"] == "my-own.id_1"
    assert [line["cache"] for line in lines] == ["miss", "miss", "hit", "hit", "miss", None]
    assert [line["status"] for line in lines] == [200, 200, 206, 200, 404, 405]
    assert [line["bytes"] for line in lines[:4]] == [image.manifest.size, 200_000, 100, 0]
    assert 0 < cold["ttfb_ms"] <= cold["duration_ms"]
    assert head["ttfb_ms"] is None
    assert part["ttfb_ms"] is not None
    assert "has no such manifest" in missing["error"]
    assert "error" not in cold
    assert push["method"] == "PUT"


async def test_metrics(scene: Scene) -> None:
    """The names that dashboards rely on, at 0 from the start; they count what happens, by registry alone."""
    before = await scene.proxy.metrics()
    found = {family.name for family in text_string_to_metric_families(before)}
    assert found >= {
        f"mirrorproxy_{name}"
        for name in (
            *("cache_requests", "response_bytes", "upstream_requests", "upstream_received_bytes"),
            *("http_request_duration_seconds", "http_time_to_first_byte_seconds", "fills_inflight", "fill_readers"),
            *("fill_resumes", "cache_size_bytes", "cache_limit_bytes", "cache_objects", "filesystem_free_bytes"),
            *("cache_evictions", "cache_evicted_bytes", "digest_mismatches", "auth_failures", "upstream_up"),
            *("upstream_ratelimit_remaining", "upstream_ratelimit_limit", "build_info"),
        )
    }
    counters = [
        sample
        for family in text_string_to_metric_families(before)
        for sample in family.samples
        if sample.name.endswith("_total") and "registry" in sample.labels
    ]
    assert len(counters) > 100
    assert {sample.value for sample in counters} == {0}
    data = os.urandom(MIB)
    scene.hub.ratelimit = (100, 42)
    image = scene.hub.add_image("library/counted", "1", data)
    target = f"/v2/library/counted/blobs/{image.layers[0].digest}"
    for path in ("/v2/library/counted/manifests/1", target, target):
        await scene.proxy.ask(path)
        await scene.proxy.idle()
    total = scene.proxy.total
    blob = {"registry": "docker.io", "kind": "blob"}
    assert await total("cache_requests_total", **blob, result="miss") == 1
    assert await total("cache_requests_total", **blob, result="hit") == 1
    assert await total("response_bytes_total", **blob) == 2 * MIB
    assert await total("upstream_received_bytes_total", **blob) == MIB
    assert await total("upstream_requests_total", registry="docker.io", kind="token", code="200") == 1
    assert await total("upstream_ratelimit_remaining", registry="docker.io") == 42
    assert await total("upstream_up", registry="docker.io") == 1
    assert await total("cache_objects") == 2
    assert MIB < await total("cache_size_bytes") < 2 * MIB
    assert await total("http_request_duration_seconds_count", endpoint="blob", code="200") == 2
    text = await scene.proxy.metrics()
    for word in ("library/counted", "sha256:", image.layers[0].digest.hex, 'tag="'):
        assert word not in text


async def test_health(scene: Scene) -> None:
    """Upstream trouble is told, and takes no node out."""
    await scene.proxy.ask("/v2/library/alpine/manifests/1")
    assert (await scene.proxy.ask("/readyz?verbose")).body == b"ready\n"
    await scene.hub.stop()
    assert (await scene.proxy.ask("/v2/library/alpine/manifests/2")).status == 504
    for page in ("/livez", "/healthz", "/readyz"):
        assert (await scene.proxy.ask(page)).status == 200
    verbose = await scene.proxy.ask("/readyz?verbose")
    assert verbose.status == 200
    assert scene.hub.url.removeprefix("http://") in verbose.body.decode()
    assert await scene.proxy.total("upstream_up", registry="docker.io") == 0
    await scene.hub.start()
    assert (await scene.proxy.ask("/v2/library/alpine/manifests/3")).status == 404
    assert (await scene.proxy.ask("/readyz?verbose")).body == b"ready\n"


async def test_no_secret_is_ever_told(scene: Scene) -> None:
    """No password, token or signed URL: in no log at its most talkative, metric, error, header, page nor file."""
    answers: list[Answer] = []
    client = "c1ient-s3cr3t"

    async def pull(target: str, method: str = "GET") -> None:
        headers = {"Authorization": f"Basic {client}", "Cookie": client}
        answers.append(await scene.proxy.ask(target, method, headers))

    hubs = {"docker.io": scene.hub, "basic.test": scene.basic, "docker-config.test": scene.identity}
    for registry, hub in hubs.items():
        image = hub.add_image("team/app", "1", os.urandom(MIB), config=os.urandom(100))
        at = f"/v2/{registry}/team/app"
        await pull(f"{at}/manifests/1")
        await pull(f"{at}/blobs/{image.layers[0].digest}")
        await pull(f"{at}/blobs/{image.config.digest}?X-Token={client}")
        for quirk in (Quirk(status=403), Quirk(status=500), Quirk(corrupt=True), Quirk(cut=400_000), Quirk(html=True)):
            hub.script.always("cdn" if hub.redirects else "blob", quirk)
            await pull(f"{at}/blobs/{hub.add_blob('team/app', os.urandom(MIB))}")
        hub.script.clear()
        for location in (f"gopher://{client}", f"http://127.0.0.1:1/{client}?sig={client}", f"http://u:{client}@x/"):
            hub.script.always("blob", Quirk(status=307, headers={"Location": location}))
            for method in ("GET", "HEAD"):
                await pull(f"{at}/blobs/{hub.add_blob('team/app', os.urandom(100))}", method)
        hub.script.clear()
        hub.script.always("token", Quirk(status=401, body=f'{{"errors":[{{"message":"{client}"}}]}}'.encode()))
        hub.script.always("manifest", Quirk(status=401))
        await pull(f"{at}/manifests/2")
        hub.script.clear()
        await pull(f"{at}/tags/list?n=5&token={client}")
        await hub.stop()
        await pull(f"{at}/manifests/2")
        await hub.start()
    assert {answer.status for answer in answers} >= {200, 403, 502, 503, 504}
    for page in ("/metrics", "/readyz?verbose", "/v2/_catalog", "/"):
        await pull(page)
    async with connect(scene.proxy.address) as wire:
        wire.writer.write(f"GET /v2/ HTTP/1.1\r\nAuthorization : Basic {client}\r\n\r\n".encode())
        answers.append(await wire.answer())
    scene.proxy.settings["fills"] = {"budget": client}
    scene.proxy.configure()
    assert await scene.proxy.stop() == 0
    basics = {base64.b64encode(f"robot:{word}".encode()).decode() for word in (PASSWORD, VARIABLE)}
    secrets = {PASSWORD, VARIABLE, IDENTITY, client, *basics}
    for hub in hubs.values():
        secrets |= hub.secrets()
        secrets |= {seen.authorization.partition(" ")[2] for seen in hub.log if seen.authorization}
        secrets |= {match for seen in hub.seen("cdn") for match in re.findall("X-Signature=([^&]*)", seen.target)}
    assert len(secrets) > 20
    told = {
        "log": scene.proxy.stderr.read_text(),
        "access log": scene.proxy.stdout.read_text(),
        "answers": "".join(str(answer._replace(body=answer.body[:10_000])) for answer in answers),
        "layout": (scene.proxy.cache / "index.json").read_text(),
        "index": "".join(
            path.read_bytes().decode("latin-1") for path in (scene.proxy.cache / "index").rglob("*") if path.is_file()
        ),
    }
    assert "level" in told["log"]
    assert [(where, secret) for where, text in told.items() for secret in secrets if secret in text] == []


async def test_text_for_people(scene: Scene) -> None:
    """`format: text`: lines to read, and no JSON."""
    await scene.proxy.stop()
    for log in (scene.proxy.stderr, scene.proxy.stdout):
        log.unlink()
    scene.proxy.settings["log"] = {"format": "text"}
    await scene.proxy.start()
    await scene.proxy.ask("/v2/library/alpine/manifests/1")
    assert await scene.proxy.stop() == 0
    for log in (scene.proxy.stderr, scene.proxy.stdout):
        lines = log.read_text().splitlines()
        assert lines
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    scene.proxy.stderr.unlink()
    scene.proxy.stderr.write_text("")


async def test_logs_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk under both: pulls go on as if nothing were."""
    async with Hub() as hub:
        image = hub.add_image("library/alpine", "3.20", os.urandom(100))
        within = ("sh", "-c", 'exec "$@" >/dev/full 2>/dev/full', "sh")
        async with Proxy(tmp_path, settings({"docker.io": upstream(hub)}), within=within) as proxy:
            for _ in range(3):
                assert (await proxy.ask("/v2/library/alpine/manifests/3.20")).body == image.body
                await hub.stop()
                assert (await proxy.ask("/v2/library/alpine/manifests/3.20")).status == 200
                await hub.start()
