"""What an upstream answers instead of what was asked for: the client's status without a copy, and the copy with one."""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from mirrorproxy.manifests import OCI_MANIFEST
from mirrorproxy.names import Digest
from tests.e2e.client import code
from tests.e2e.conftest import Place
from tests.fakes.script import Quirk
from tests.web.wire import Answer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e failures")]

PLACES = 240
UPSTREAM = {"header_timeout": "400ms", "revalidate_timeout": "400ms"}

# What goes wrong, with the status and the code that a client is shown.
FAULTS: dict[str, tuple[Quirk, int, str]] = {
    "401": (Quirk(status=401), 403, "DENIED"),
    "403": (Quirk(status=403), 403, "DENIED"),
    "429": (Quirk(status=429, headers={"Retry-After": "77"}), 429, "TOOMANYREQUESTS"),
    "500": (Quirk(status=500), 503, "UNAVAILABLE"),
    "503": (Quirk(status=503, headers={"Retry-After": "66"}), 503, "UNAVAILABLE"),
    "511": (Quirk(status=511), 502, "UNAVAILABLE"),
    "418": (Quirk(status=418), 502, "UNAVAILABLE"),
    "a web page": (Quirk(html=True), 502, "UNAVAILABLE"),
    "a web page that says 404": (
        Quirk(status=404, html=True, headers={"Docker-Distribution-Api-Version": None}),
        502,
        "",
    ),
    "a redirect to nowhere": (Quirk(status=307, headers={"Location": "gopher://nowhere/"}), 502, "UNAVAILABLE"),
    "a reset": (Quirk(reset=True), 504, "UNAVAILABLE"),
    "no answer": (Quirk(hold=asyncio.Event()), 504, "UNAVAILABLE"),
}
NOT_FOUND = {
    "manifest": "MANIFEST_UNKNOWN",
    "blob": "BLOB_UNKNOWN",
    "tags": "NAME_UNKNOWN",
    "referrers": "UNKNOWN",
}

NO_SUCH_KEY = Quirk(
    status=404,
    body=b"<Error><Code>NoSuchKey</Code></Error>",
    headers={"Content-Type": "application/xml", "Docker-Distribution-Api-Version": None},
)

# What is asked for: method, kind of path, and which request upstream goes wrong.
REQUESTS: dict[str, tuple[str, str, str]] = {
    "token": ("GET", "manifests", "token"),
    "token of a blob": ("GET", "blobs", "token"),
    "manifest": ("GET", "manifests", "manifest"),
    "HEAD of a manifest": ("HEAD", "manifests", "manifest"),
    "manifest by digest": ("GET", "digest", "manifest"),
    "blob": ("GET", "blobs", "blob"),
    "HEAD of a blob": ("HEAD", "blobs", "blob"),
    "storage": ("GET", "blobs", "cdn"),
    "HEAD at the storage": ("HEAD", "blobs", "cdn"),
    "tags": ("GET", "tags", "tags"),
    "referrers": ("GET", "referrers", "referrers"),
}


async def pull(place: Place, method: str, what: str) -> Answer:
    """Ask for one of the things that `stock` put in."""
    digest = Digest.of(manifest(place.repository))
    path = {
        "manifests": ("manifests", "1"),
        "digest": ("manifests", digest),
        "blobs": ("blobs", Digest.of(blob(place.repository))),
        "tags": ("tags", "list"),
        "referrers": ("referrers", digest),
    }[what]
    return await place.proxy.ask(place.path(*path), method)


def blob(seed: str) -> bytes:
    """A blob of this repository alone."""
    return seed.encode() * 1000


def manifest(seed: str) -> bytes:
    """An artifact that is this blob."""
    data = blob(seed)
    layer = {"mediaType": "text/x", "digest": Digest.of(data), "size": len(data)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]}).encode()


def stock(place: Place) -> None:
    """Put in one of each kind."""
    place.hub.add_blob(place.repository, blob(place.repository))
    subject = place.hub.add_manifest(place.repository, manifest(place.repository), "1")
    reference = {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    place.hub.add_manifest(place.repository, {"artifactType": "text/x", "layers": [], "subject": reference}, "of-it")


def expected(kind: str, fault: str) -> tuple[int, str]:
    """What the client is shown: storage that refuses is no registry that says no, nor does it know credentials."""
    _, status, word = FAULTS[fault]
    if kind == "cdn" and fault in ("401", "403", "418", "511", "a web page that says 404"):
        return 503, "UNAVAILABLE"
    return status, word


async def shows(place: Place, what: str, fault: str) -> None:
    """Check what a client is shown of a fault where there is no copy."""
    method, path, kind = REQUESTS[what]
    stock(place)
    place.spoil(kind, FAULTS[fault][0])
    answer = await pull(place, method, path)
    status, word = expected(kind, fault)
    assert answer.status == status, fault
    assert method == "HEAD" or not word or code(answer) == word
    assert answer.headers["X-Request-ID"]
    if status in (429, 503):
        seconds = int(answer.headers["Retry-After"])
        assert seconds in {"429": range(70, 78), "503": range(60, 67)}.get(fault, range(1, 31))


@pytest.mark.parametrize("what", REQUESTS)
async def test_without_a_copy(places: Callable[[], Place], what: str) -> None:
    """The client is told what happened, in a status that it acts rightly upon: an outage is never "not found"."""
    await asyncio.gather(*(shows(places(), what, fault) for fault in FAULTS))


@pytest.mark.parametrize("what", [what for what in REQUESTS if not what.startswith("token")])
async def test_not_found(place: Place, what: str) -> None:
    """404 where the registry said so; storage that lacks what the registry has is out of order."""
    method, path, kind = REQUESTS[what]
    stock(place)
    place.spoil(kind, NO_SUCH_KEY if kind == "cdn" else Quirk(status=404))
    answer = await pull(place, method, path)
    if kind == "cdn":
        assert answer.status == 503
        return
    assert answer.status == 404
    assert method == "HEAD" or code(answer) == NOT_FOUND[kind]


@pytest.mark.parametrize("what", ["token", "token of a blob"])
async def test_no_token_service_there(place: Place, what: str) -> None:
    """That the token service answers 404 does not say that the image is not there."""
    method, path, kind = REQUESTS[what]
    stock(place)
    place.spoil(kind, Quirk(status=404))
    assert (await pull(place, method, path)).status == 502


async def serves_the_copy(place: Place, what: str, fault: str) -> None:
    """Check that a copy is served where the upstream has this fault."""
    method, path, kind = REQUESTS[what]
    stock(place)
    first = await pull(place, "GET", path)
    assert first.status == 200
    if kind == "token":
        place.hub.revoke_tokens()
    place.spoil(kind, FAULTS[fault][0])
    asked = len(place.seen(kind))
    answer = await pull(place, method, path)
    assert len(place.seen(kind)) > asked, "upstream was not asked at all"
    assert (answer.status, answer.body) == (200, first.body if method == "GET" else b""), fault
    assert answer.headers["Content-Type"] == first.headers["Content-Type"]
    assert answer.headers["Cache-Status"] == "mirrorproxy; fwd=stale"
    assert 0 <= int(answer.headers["Age"]) <= 30
    if kind not in ("tags", "referrers"):
        assert answer.headers["Docker-Content-Digest"] == Digest.of(first.body)


@pytest.mark.parametrize("what", [what for what in REQUESTS if REQUESTS[what][1] in ("manifests", "tags", "referrers")])
async def test_with_a_copy(places: Callable[[], Place], what: str) -> None:
    """The copy is served, and is marked as what it is."""
    await asyncio.gather(*(serves_the_copy(places(), what, fault) for fault in FAULTS))


async def test_content_by_its_digest_is_not_asked_for_again(place: Place) -> None:
    """What is here under its digest is right for ever: upstream is not asked, whatever it would answer."""
    stock(place)
    for what in ("digest", "blobs"):
        assert (await pull(place, "GET", what)).status == 200
    await place.proxy.idle()
    place.hub.log.clear()
    for kind in ("token", "manifest", "blob", "cdn"):
        place.spoil(kind, Quirk(status=404))
    for what in ("digest", "blobs"):
        for method in ("GET", "HEAD"):
            answer = await pull(place, method, what)
            assert (answer.status, answer.headers["Cache-Status"]) == (200, "mirrorproxy; hit")
    assert place.hub.log == []


@pytest.mark.parametrize("what", ["manifests", "tags", "referrers"])
async def test_gone_for_good(place: Place, what: str) -> None:
    """404 from a registry that is well is an answer, copy or not; when it is back, so is the answer."""
    kind = {"manifests": "manifest"}.get(what, what)
    stock(place)
    assert (await pull(place, "GET", what)).status == 200
    place.hub.script.always(kind, Quirk(status=404))
    assert (await pull(place, "GET", what)).status == 404
    place.hub.script.always(kind, Quirk(status=500))
    assert (await pull(place, "GET", what)).status == (503 if what == "manifests" else 200)


async def test_a_failing_upstream_is_left_alone(place: Place) -> None:
    """A tag that could not be checked is not checked again at once: one time-out, not one for each pull."""
    stock(place)
    await pull(place, "GET", "manifests")
    place.hub.script.always("manifest", Quirk(status=500))
    await pull(place, "GET", "manifests")
    asked = len(place.seen())
    for _ in range(5):
        answer = await pull(place, "GET", "manifests")
        assert (answer.status, answer.headers["Cache-Status"]) == (200, "mirrorproxy; fwd=stale")
    assert len(place.seen()) == asked


async def test_all_is_well_again(place: Place) -> None:
    """What failed is asked for again by the next client: no failure is believed but a "no"."""
    stock(place)
    for kind in ("manifest", "blob", "tags", "referrers"):
        place.hub.script.always(kind, Quirk(status=500))
    wanted = ("manifests", "blobs", "tags", "referrers")
    assert [(await pull(place, "GET", what)).status for what in wanted] == [503] * 4
    place.hub.script.clear()
    assert [(await pull(place, "GET", what)).status for what in wanted] == [200] * 4


async def test_a_short_failure_is_not_seen(place: Place) -> None:
    """One that another try gets over, on any kind."""
    stock(place)
    for kind in ("token", "manifest", "blob", "cdn", "tags", "referrers"):
        place.hub.script.next(kind, Quirk(status=502))
    for what in ("manifests", "blobs", "tags", "referrers"):
        assert (await pull(place, "GET", what)).status == 200


async def test_the_hosts_are_away(place: Place) -> None:
    """Nobody listens: 504 for what is not here, and all that is here."""
    stock(place)
    wanted = ("manifests", "digest", "blobs", "tags", "referrers")
    before = {what: (await pull(place, "GET", what)).body for what in wanted}
    await place.hub.stop()
    try:
        for what in wanted:
            answer = await pull(place, "GET", what)
            assert (answer.status, answer.body) == (200, before[what])
        unknown = (
            ("manifests", "2"),
            ("blobs", Digest.of(os.urandom(8))),
            ("manifests", Digest.of(b"")),
            ("referrers", Digest.of(b"")),
        )
        for answer in await asyncio.gather(*(place.get(*each) for each in unknown)):
            assert (answer.status, code(answer)) == (504, "UNAVAILABLE")
        assert {answer.status for answer in await asyncio.gather(*(place.head(*each) for each in unknown))} == {504}
        verbose = (await place.proxy.ask("/readyz?verbose")).body.decode()
        assert place.hub.url.removeprefix("http://") in verbose
    finally:
        await place.hub.start()


async def test_the_token_service_alone_is_away(place: Place) -> None:
    """It counts as an upstream that cannot be asked, not as one that says no."""
    stock(place)
    body = (await pull(place, "GET", "manifests")).body
    place.hub.revoke_tokens()
    await place.hub.stop_token_service()
    try:
        answer = await pull(place, "GET", "manifests")
        assert (answer.status, answer.body) == (200, body)
        assert (await pull(place, "GET", "blobs")).status == 504
    finally:
        await place.hub.start_token_service()
    assert (await pull(place, "GET", "blobs")).status == 200


async def test_what_an_error_says(place: Place) -> None:
    """Who failed and how, and what is wrong with the configuration; no word of what upstream's page says."""
    stock(place)
    secret: dict[str, Any] = {"errors": [{"code": "DENIED", "message": "s3cr3t-of-upstream", "detail": "s3cr3t-too"}]}
    place.hub.script.always("manifest", Quirk(status=403, body=json.dumps(secret).encode()))
    answer = await pull(place, "GET", "manifests")
    assert answer.status == 403
    assert "s3cr3t" not in str(answer)
    assert place.hub.registry.origin.removeprefix("http://") in answer.error["message"]
