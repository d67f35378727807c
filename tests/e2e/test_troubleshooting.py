"""docs/troubleshooting.md says what the program says: each answer in its tables is brought about, and found there."""

import os
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
import trustme

from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e troubleshooting")]

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "troubleshooting.md").read_text()
ROWS = re.findall(r"(?m)^\| (\d{3}) \| (`[^|]+`) \|", PAGE)
QUIRKS = {
    "limited": Quirk(status=429, headers={"Retry-After": "30"}),
    "portal": Quirk(html=True),
    "slow": Quirk(delay=5.0),
}
ASKED = {
    "has no such manifest": "/v2/library/alpine/manifests/none",
    "has no such repository": "/v2/library/alpin/manifests/3.20",
    "is not served here; these are:": "/v2/library/alpine/manifests/3.20?ns=foo.example",
    "does not allow this with the credentials": "/v2/hides.test/library/none/manifests/1",
    "is not among the repositories that this mirror serves": "/v2/guarded.test/other/a/manifests/1",
    "this is a pull-through cache": "/v2/library/alpine/blobs/uploads/",
    "too many requests": "/v2/limited.test/library/limited/manifests/1",
    "answered with a web page": "/v2/broken.test/library/portal/manifests/1",
    "which is not trusted with it": "/v2/realm.test/library/alpine/manifests/3.20",
    "cannot be resolved": "/v2/dns.test/library/alpine/manifests/3.20",
    "no connection to": "/v2/down.test/library/alpine/manifests/3.20",
    "did not answer in time": "/v2/broken.test/library/slow/manifests/1",
    "is not trusted": "/v2/tls.test/library/alpine/manifests/3.20",
}
ELSEWHERE = {"too many"}  # tests/web/test_limits.py


class Scene(NamedTuple):
    """A service for which all of it goes wrong."""

    proxy: Proxy
    hub: Hub


def misbehave(seen: Seen) -> Quirk | None:
    """A repository's name says what is wrong with it."""
    return next((quirk for name, quirk in QUIRKS.items() if f"/library/{name}/" in seen.target), None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """With `library/alpine:3.20` pulled once."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with Hub() as hub, Hub(tls=context) as unknown, Hub(hides=True) as hiding:
        hub.add_image("library/alpine", "3.20", b"layer")
        hub.script.when("manifest", misbehave)
        upstreams = {
            "docker.io": upstream(hub),
            "limited.test": upstream(hub),
            "broken.test": upstream(hub, header_timeout="500ms", connect_timeout="400ms", revalidate_timeout="500ms"),
            "hides.test": upstream(hiding),
            "guarded.test": upstream(hub, repositories=["team/*"]),
            "realm.test": upstream(hub, token_realms=[]),
            "dns.test": upstream(hub, endpoints=["http://nowhere.invalid"]),
            "down.test": upstream(hub, endpoints=["http://127.0.0.9:9"]),
            "tls.test": upstream(unknown),
        }
        directory = tmp_path_factory.mktemp("troubles")
        async with Proxy(directory, settings(upstreams, cache={"max_size": "1MiB"})) as proxy:
            await proxy.ask("/v2/library/alpine/manifests/3.20")
            yield Scene(proxy, hub)


@pytest.mark.parametrize(("status", "words"), ROWS, ids=[f"{status} {words}" for status, words in ROWS])
async def test_each_answer_in_the_table_is_one(scene: Scene, status: str, words: str) -> None:
    """With its status, in the answer and in the access log."""
    for phrase in re.findall(r"`([^`]+)`", words):
        if phrase in ELSEWHERE:
            continue
        method = "POST" if phrase == "this is a pull-through cache" else "GET"
        answer = await scene.proxy.ask(ASKED[phrase], method, {"Content-Length": "0"} if method == "POST" else None)
        assert (answer.status, phrase in answer.error["message"]) == (int(status), True), answer.error
        assert phrase in (await scene.proxy.logged(answer.headers["X-Request-ID"]))["error"]


async def test_what_the_page_says_of_headers_and_log(scene: Scene) -> None:
    """Each value of Cache-Status in the table but for `collapsed`; the words of the log and of `/readyz?verbose`."""
    target = "/v2/library/alpine/manifests/3.20"
    big = scene.hub.add_blob("library/alpine", os.urandom(2 << 20))
    wrong = scene.hub.add_blob("library/alpine", os.urandom(100 << 10))
    scene.hub.script.when("cdn", lambda seen: Quirk(corrupt=True) if wrong.hex in seen.target else None)
    seen = [(await scene.proxy.ask(target)).headers["Cache-Status"]]
    scene.hub.script.always("manifest", Quirk(status=503))
    stale = await scene.proxy.ask(target)
    seen += [
        stale.headers["Cache-Status"],
        (await scene.proxy.ask(f"/v2/library/alpine/blobs/{big}")).headers["Cache-Status"],
    ]
    small = scene.hub.add_blob("library/alpine", b"small")
    seen.append((await scene.proxy.ask(f"/v2/library/alpine/blobs/{small}")).headers["Cache-Status"])
    assert seen == [
        "mirrorproxy; hit; detail=revalidated",
        "mirrorproxy; fwd=stale",
        "mirrorproxy; fwd=bypass",
        "mirrorproxy; fwd=miss; stored",
    ]
    assert all(value.replace("; detail=revalidated", "") in PAGE for value in seen)
    assert "detail=revalidated" in PAGE
    assert stale.headers["Age"].isdigit()
    assert not (await scene.proxy.ask(f"/v2/library/alpine/blobs/{wrong}")).complete
    for words in ("is served stale", "downloads pass through and are not kept", "the bytes that upstream sent are not"):
        assert words in PAGE
        await until(lambda words=words: scene.proxy.said(words))  # type: ignore[misc]
    assert (await scene.proxy.ask("/readyz?verbose")).status == 200


async def test_the_page_s_links_lead_somewhere() -> None:
    """To pages that are there, and to sections of its own; its settings and metrics are those of the reference."""
    lines = re.findall(r"(?m)^## (.+)$", PAGE)
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in lines}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        page, _, section = target.partition("#")
        assert (DOCS / page).exists() if page else section in headings, target
    reference, metrics = ((DOCS / name).read_text() for name in ("configuration.md", "metrics.md"))
    assert all(name in reference for name in re.findall(r"`((?:fills|cache|server|partials)\.[a-z_]+)", PAGE))
    assert all(name in metrics for name in re.findall(r"`(mirrorproxy_[a-z_]+)", PAGE))
