"""Whatever clients and upstreams send: the metrics have no more series than the configuration and the code allow."""

import asyncio
import os
import random

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mirrorproxy.registry import Kind, Result
from tests.e2e.client import PATIENCE, connect, rest
from tests.e2e.conftest import Place
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e labels")]

WORKERS = (1, 2)
REQUESTS = 400
ENDPOINTS = {"base", "manifest", "blob", "tags", "referrers", "catalog", "push", "page", "unknown"}
ALLOWED = {
    "kind": {*map(str, Kind), "token"},
    "result": {*map(str, Result)},
    "method": {"GET", "HEAD", "other"},
    "endpoint": ENDPOINTS,
}
PIECES = [
    "v2",
    "",
    ".",
    "..",
    "%2e%2e",
    "%00",
    "library",
    "UPPER",
    "a" * 300,
    "manifests",
    "blobs",
    "tags",
    "list",
    "é",
]
PIECES += ["sha256:" + "0" * 64, "sha256:x", "latest", "ghcr.io", "evil.example:1", "_catalog", "metrics", "uploads"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "X" * 200, "g", "GET\t", "\xff"]


def hostile(chance: random.Random) -> bytes:
    """One request, more or less."""
    number = chance.getrandbits(32)
    path = "/" + "/".join(chance.choice(PIECES) for _ in range(chance.randrange(7)))
    query = chance.choice(["", "?ns=", f"?ns={number}.example", "?ns=docker.io&ns=x", "?n=1e9", "?" + "&" * 50])
    first = f"{chance.choice(METHODS)} {path}{query} HTTP/1.1\r\n"
    rest = f"Host: {number}.example\r\nX-{number}: {number}\r\nConnection: close\r\n\r\n"
    return (first + rest).encode("latin-1", "replace")


async def send(place: Place, data: bytes) -> None:
    """Send it, and wait for the end."""
    async with asyncio.timeout(PATIENCE), connect(place.proxy.address) as wire:
        wire.writer.write(data)
        await rest(wire)


async def series(place: Place) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series of ours that is there, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(await place.proxy.metrics())
        for sample in family.samples
        if sample.name.startswith("mirrorproxy_")
    }


async def test_clients_make_no_series(place: Place) -> None:
    """400 requests of every kind of nonsense: labels take words of ours alone, and not many of them."""
    chance = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "labels"))
    for _ in range(REQUESTS // 20):
        await asyncio.gather(*(send(place, hostile(chance)) for _ in range(20)))
    found = await series(place)
    registries = set(place.proxy.settings["upstreams"])
    for name, labels in found:
        told = dict(labels)
        assert told.get("registry", "r0.test") in registries, name
        if name.startswith(("mirrorproxy_http_", "mirrorproxy_cache_requests", "mirrorproxy_response")):
            assert set(told) <= {*ALLOWED, "registry", "code", "le"}, name
            assert all(told[label] in words for label, words in ALLOWED.items() if label in told), told
    answers = [dict(labels) for name, labels in found if name == "mirrorproxy_http_request_duration_seconds_count"]
    assert {labels["code"] for labels in answers} <= {"200", "304", "400", "403", "404", "405", "429", "502", "503"}
    assert 5 < len(answers) < 40
    assert not any(word in str(found) for word in ("evil", ".example", "UPPER", "BREW"))


async def test_upstreams_make_few(place: Place) -> None:
    """A status that HTTP does not know is `other`, however many of them come."""
    for status in range(460, 500):
        place.spoil("manifest", Quirk(status=status))
        await place.get("manifests", str(status))
    found = {
        dict(labels)["code"] for name, labels in await series(place) if name == "mirrorproxy_upstream_requests_total"
    }
    assert "other" in found
    assert not {str(status) for status in range(460, 500)} & found


async def test_openmetrics_is_openmetrics(place: Place) -> None:
    """As Prometheus asks for it; its parser is stricter than that of the text format."""
    image = place.image()
    await place.get("manifests", "1")
    await place.get("blobs", image.layers[0].digest)
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3"
    answer = await place.proxy.ask("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(answer.body.decode())}  # type: ignore[no-untyped-call]
    assert families["mirrorproxy_cache_requests"].type == "counter"
    assert families["mirrorproxy_http_request_duration_seconds"].type == "histogram"
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
