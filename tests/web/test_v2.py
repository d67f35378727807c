"""The registry protocol: exact statuses and fields, over real sockets."""

import json
from collections.abc import Mapping

import pytest

from mirrorproxy import errors, manifests
from mirrorproxy.names import Digest
from mirrorproxy.registry import Outcome, Result
from tests.contracts.registry_contract import ARTIFACT_TYPE, SAMPLE
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, Served
from tests.web.test_memory import serving_sample
from tests.web.wire import Answer, connect

ALWAYS = {"Date", "Docker-Distribution-API-Version", "X-Request-ID"}
IMMUTABLE = "private, max-age=31536000, immutable"
IMAGE = SAMPLE.tags["latest"]
IMAGE_TYPE, IMAGE_BODY = SAMPLE.manifests[IMAGE]
LAYER = max(SAMPLE.blobs, key=lambda digest: len(SAMPLE.blobs[digest]))
SIZE = len(SAMPLE.blobs[LAYER])
ABSENT = Digest.of(b"absent")


def fields(answer: Answer) -> dict[str, str]:
    """An answer's fields, without those that every one has."""
    assert ALWAYS <= set(answer.headers)
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert len(answer.headers) == len(set(answer.headers)), "a field came twice"
    return {name: value for name, value in answer.headers.items() if name not in ALWAYS}


@pytest.mark.parametrize("target", ["/v2/", "/v2", "/docker.io/v2/", "/v2/?ns=ghcr.io"])
async def test_the_base_is_there_whatever_upstream_does(served: Served, target: str) -> None:
    """200 and `{}`; clients ping it first. Nothing is asked."""
    served.registry.fail("resolve", errors.Unreachable("no network"))
    answer = await served.ask(target)
    assert (answer.status, answer.body) == (200, b"{}")
    assert fields(answer)["Content-Type"] == "application/json"
    assert served.registry.asked == []


@pytest.mark.parametrize(
    ("reference", "cache_control"), [("latest", "private, no-cache"), (IMAGE, IMMUTABLE)], ids=["tag", "digest"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_manifest(served: Served, method: str, reference: str, cache_control: str) -> None:
    """To the letter, and the same for both methods but for the body; HEAD fetches no manifest."""
    answer = await served.ask(f"/v2/sample/manifests/{reference}", method)
    assert answer.status == 200
    assert fields(answer) == {
        "Content-Type": IMAGE_TYPE,
        "Content-Length": str(len(IMAGE_BODY)),
        "Docker-Content-Digest": IMAGE,
        "ETag": f'"{IMAGE}"',
        "Cache-Control": cache_control,
        "Cache-Status": "mirrorproxy; hit",
        "Age": "0",
    }
    assert answer.body == (IMAGE_BODY if method == "GET" else b"")
    asked = "manifest" if method == "GET" else "resolve"
    assert served.registry.asked == [f"{asked} docker.io/library/sample {reference}"]


@pytest.mark.parametrize("digest", list(SAMPLE.manifests))
async def test_every_media_type_comes_as_it_is(served: Served, digest: Digest) -> None:
    """Byte for byte, without parameters in the type."""
    answer = await served.ask(f"/v2/sample/manifests/{digest}")
    assert (answer.headers["Content-Type"], answer.body) == SAMPLE.manifests[digest]


@pytest.mark.parametrize("digest", list(SAMPLE.blobs), ids=lambda digest: str(len(SAMPLE.blobs[digest])))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_blob(served: Served, method: str, digest: Digest) -> None:
    """To the letter. HEAD opens no transfer."""
    data = SAMPLE.blobs[digest]
    answer = await served.ask(f"/v2/sample/blobs/{digest}", method)
    assert answer.status == 200
    assert fields(answer) == {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(data)),
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": IMMUTABLE,
        "Cache-Status": "mirrorproxy; hit",
        "Age": "0",
    }
    assert answer.body == (data if method == "GET" else b"")
    assert answer.complete
    asked = (
        f"blob docker.io/library/sample {digest} 0-" if method == "GET" else f"stat docker.io/library/sample {digest}"
    )
    assert served.registry.asked == [asked]


@pytest.mark.parametrize(
    ("outcome", "cache_status", "age"),
    [
        (Outcome(Result.HIT, 61.9), "mirrorproxy; hit", "61"),
        (Outcome(Result.HIT, 1, stored=True), "mirrorproxy; hit", "1"),
        (Outcome(Result.MISS), "mirrorproxy; fwd=miss", None),
        (Outcome(Result.MISS, stored=True), "mirrorproxy; fwd=miss; stored", None),
        (Outcome(Result.COALESCED, stored=True), "mirrorproxy; fwd=miss; collapsed; stored", None),
        (Outcome(Result.REVALIDATED, 0.2), "mirrorproxy; hit; detail=revalidated", "0"),
        (Outcome(Result.STALE, 7200), "mirrorproxy; fwd=stale", "7200"),
        (Outcome(Result.BYPASS), "mirrorproxy; fwd=bypass", None),
    ],
    ids=str,
)
async def test_how_it_came_about(served: Served, outcome: Outcome, cache_status: str, age: str | None) -> None:
    """RFC 9211, for manifests, blobs and lists alike; Age where it is from the cache."""
    served.registry.outcome = outcome
    for target in ("manifests/latest", f"blobs/{LAYER}", "tags/list", f"referrers/{IMAGE}"):
        answer = await served.ask(f"/v2/sample/{target}")
        assert answer.headers["Cache-Status"] == cache_status
        assert answer.headers.get("Age") == age
    for kind in ("manifest", "blob", "tags", "referrers"):
        assert served.value("cache_requests_total", registry="docker.io", kind=kind, result=outcome.result) == 1


@pytest.mark.parametrize(
    "value",
    ["{0}", '"{0}"', 'W/"{0}"', '"x", "{0}"', 'W/"x" ,W/"{0}"', "*"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "digest"), [("manifests/latest", IMAGE), (f"manifests/{IMAGE}", IMAGE), (f"blobs/{LAYER}", LAYER)]
)
async def test_what_the_client_has_is_not_sent(
    served: Served, method: str, target: str, digest: Digest, value: str
) -> None:
    """304 for every way to write If-None-Match, with the fields that a 304 has; no blob is opened for it."""
    headers = {"If-None-Match": value.format(digest), "Range": "bytes=0-1"}
    answer = await served.ask(f"/v2/sample/{target}", method, headers)
    assert answer.status == 304
    assert {"ETag", "Docker-Content-Digest", "Cache-Control", "Cache-Status"} <= set(answer.headers)
    assert not {"Content-Length", "Content-Type", "Transfer-Encoding"} & set(answer.headers)
    assert not [line for line in served.registry.asked if line.startswith("blob")]


@pytest.mark.parametrize("value", ['"sha256:0"', "", '"', f'"{IMAGE}x"', IMAGE.upper()])
async def test_what_the_client_has_not_is_sent(served: Served, value: str) -> None:
    """Another ETag, or none."""
    assert (await served.ask("/v2/sample/manifests/latest", headers={"If-None-Match": value})).status == 200


async def test_if_none_match_does_not_hide_that_nothing_is_there(served: Served) -> None:
    """`*` matches what exists."""
    for target in ("manifests/absent", f"blobs/{ABSENT}"):
        assert (await served.ask(f"/v2/sample/{target}", headers={"If-None-Match": "*"})).status == 404


@pytest.mark.parametrize(
    ("headers", "fresh"),
    [
        ({}, False),
        ({"Cache-Control": "no-cache"}, True),
        ({"Cache-Control": "max-age=0, No-Cache"}, True),
        ({"Cache-Control": "max-age=60"}, False),
        ({"Pragma": "no-cache"}, True),
        ({"Pragma": "no-cache", "Cache-Control": "max-age=60"}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_client_can_have_upstream_asked(
    served: Served, method: str, headers: Mapping[str, str], fresh: bool
) -> None:
    """`Cache-Control: no-cache`, or the Pragma of older clients."""
    await served.ask("/v2/sample/manifests/latest", method, headers)
    assert served.registry.asked[0].endswith(" fresh") == fresh


@pytest.mark.parametrize(
    ("target", "ns"),
    [
        ("/v2/library/sample/manifests/latest", None),
        ("/v2/docker.io/library/sample/manifests/latest", None),
        ("/docker.io/v2/sample/manifests/latest", None),
        ("/v2/library/sample/manifests/latest?ns=docker.io", "docker.io"),
        ("/v2/index.docker.io/sample/manifests/latest?ns=registry-1.docker.io", "registry-1.docker.io"),
    ],
)
async def test_the_upstream_named_in_every_way(served: Served, target: str, ns: str | None) -> None:
    """One content for all four forms; OCI-Namespace says `ns` again, as it was sent, where it was."""
    answer = await served.ask(target)
    assert (answer.status, answer.body) == (200, IMAGE_BODY)
    assert answer.headers.get("OCI-Namespace") == ns


async def test_tags(served: Served) -> None:
    """The list as it came; an error of upstream's is not an empty list."""
    answer = await served.ask("/v2/sample/tags/list")
    assert json.loads(answer.body) == {"name": "library/sample", "tags": sorted(SAMPLE.tags)}
    assert fields(answer) == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "Cache-Control": "private, no-cache",
        "Cache-Status": "mirrorproxy; hit",
        "Age": "0",
    }


@pytest.mark.parametrize(
    ("target", "next_page"),
    [
        ("/v2/sample/tags/list?n=2", "/v2/library/sample/tags/list?n=2&last=docker"),
        ("/docker.io/v2/sample/tags/list?n=2", "/docker.io/v2/library/sample/tags/list?n=2&last=docker"),
        (
            "/v2/index.docker.io/library/sample/tags/list?n=2&ns=docker.io",
            "/v2/index.docker.io/library/sample/tags/list?n=2&last=docker&ns=docker.io",
        ),
    ],
)
async def test_the_next_page_is_linked_in_the_clients_form(served: Served, target: str, next_page: str) -> None:
    """A client follows the link as it stands, to the end; `ns` is not passed on."""
    answer = await served.ask(target)
    assert answer.headers["Link"] == f'<{next_page}>; rel="next"'
    last = await served.ask(next_page)
    assert json.loads(last.body)["tags"] == ["index", "latest"]
    assert "Link" not in last.headers
    assert served.registry.asked == [
        "tags docker.io/library/sample n=2",
        "tags docker.io/library/sample n=2&last=docker",
    ]


async def test_referrers(served: Served) -> None:
    """With the filter, when upstream applied it."""
    answer = await served.ask(f"/v2/sample/referrers/{IMAGE}")
    assert answer.headers["Content-Type"] == manifests.OCI_INDEX
    assert len(json.loads(answer.body)["manifests"]) == 1
    assert "OCI-Filters-Applied" not in answer.headers
    filtered = await served.ask(f"/v2/sample/referrers/{IMAGE}?artifactType={ARTIFACT_TYPE.replace('/', '%2F')}")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert served.registry.asked[-1].endswith("artifactType=application%2Fvnd.example.signature")


@pytest.mark.parametrize(
    ("target", "names", "link"),
    [
        ("/v2/_catalog", ["docker.io/library/other", "docker.io/library/sample"], None),
        ("/v2/_catalog?ns=docker.io", ["library/other", "library/sample"], None),
        ("/ghcr.io/v2/_catalog", [], None),
        ("/v2/_catalog?n=1", ["docker.io/library/other"], "/v2/_catalog?n=1&last=docker.io%2Flibrary%2Fother"),
        ("/v2/_catalog?n=1&last=docker.io%2Flibrary%2Fother", ["docker.io/library/sample"], None),
        ("/v2/_catalog?n=0", [], None),
        (
            "/docker.io/v2/_catalog?n=1&ns=docker.io",
            ["library/other"],
            "/docker.io/v2/_catalog?n=1&last=library%2Fother&ns=docker.io",
        ),
    ],
)
async def test_the_catalog_of_what_is_cached(served: Served, target: str, names: list[str], link: str | None) -> None:
    """Of all registries with their names, of one without; in pages."""
    other = SAMPLE.repository._replace(name="library/other")
    served.registry.put_manifest(other, IMAGE_BODY, IMAGE_TYPE, "1")
    answer = await served.ask(target)
    assert json.loads(answer.body) == {"repositories": names}
    assert answer.headers.get("Link") == (None if link is None else f'<{link}>; rel="next"')


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v2/sample/blobs/uploads/"),
        ("PUT", "/v2/sample/manifests/latest"),
        ("DELETE", f"/v2/sample/blobs/{LAYER}"),
        ("PATCH", "/v2/sample/blobs/uploads/1"),
        ("GET", "/v2/sample/blobs/uploads/1"),
        ("OPTIONS", "/v2/"),
        ("POST", "/livez"),
    ],
)
async def test_pushes_are_refused(served: Served, method: str, target: str) -> None:
    """405 UNSUPPORTED with Allow, and nothing is asked."""
    answer = await served.ask(target, method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.error["code"] == "UNSUPPORTED"
    assert served.registry.asked == []


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v2/sample/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/sample/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/sample/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("/v2/absent/manifests/latest", 404, "NAME_UNKNOWN"),
        ("/v2/absent/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/sample/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
        ("/v2/SAMPLE/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/sample/blobs/sha256:1", 400, "DIGEST_INVALID"),
        ("/v2/sample/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/sample/manifests/latest?ns=evil.example", 404, "NAME_UNKNOWN"),
        ("/v2/evil.example/sample/manifests/latest", 404, "NAME_UNKNOWN"),
        ("/v1/search", 404, "UNKNOWN"),
        ("/nothing", 404, "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_not_there(served: Served, method: str, target: str, status: int, code: str) -> None:
    """The status and the OCI code; a HEAD says the same without a body, and the connection goes on."""
    async with connect(served.port) as wire:
        answer = await wire.ask(target, method)
        assert answer.status == status
        if method == "GET":
            assert answer.error["code"] == code
        else:
            assert int(answer.headers["Content-Length"]) > 0
        assert (await wire.ask("/v2/")).status == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (errors.Unreachable("x"), 504, "UNAVAILABLE", None),
        (errors.TimedOut("x", retry_after=3), 504, "UNAVAILABLE", None),
        (errors.BadAnswer("x"), 502, "UNAVAILABLE", None),
        (errors.DigestMismatch("x"), 502, "DIGEST_INVALID", None),
        (errors.Unauthorized("x"), 403, "DENIED", None),
        (errors.RateLimited("x"), 429, "TOOMANYREQUESTS", "5"),
        (errors.RateLimited("x", retry_after=17.2), 429, "TOOMANYREQUESTS", "18"),
        (errors.ServerFailed("x", retry_after=0), 503, "UNAVAILABLE", "1"),
        (errors.ServerFailed("x", retry_after=1e9), 503, "UNAVAILABLE", "86400"),
        (errors.UpstreamError("x"), 502, "UNAVAILABLE", None),
        (errors.Overloaded("x", retry_after=2), 503, "UNAVAILABLE", "2"),
        (errors.CacheFailed("x"), 503, "UNAVAILABLE", "5"),
        (errors.Denied("x", detail={"why": "policy"}), 403, "DENIED", None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_went_wrong(
    served: Served, error: errors.MirrorproxyError, status: int, code: str, retry_after: str | None
) -> None:
    """One table for every kind; never a 404 for an outage."""
    calls = {
        "manifest": "manifests/latest",
        "blob": f"blobs/{LAYER}",
        "tags": "tags/list",
        "referrers": f"referrers/{IMAGE}",
    }
    for method, target in calls.items():
        served.registry.fail(method, error)
        answer = await served.ask(f"/v2/sample/{target}")
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.error["message"] == "x"
        assert answer.error["detail"] == error.detail
        assert answer.headers.get("Retry-After") == retry_after
        assert served.value("cache_requests_total", registry="docker.io", kind=method, result="error") == 1


async def test_a_no_from_memory_says_so(served: Served) -> None:
    """Cache-Status and the books tell it from a fresh one."""
    error = errors.ManifestUnknown("gone")
    error.negative = True
    served.registry.fail("manifest", error)
    answer = await served.ask("/v2/sample/manifests/latest")
    assert answer.headers["Cache-Status"] == "mirrorproxy; hit; detail=negative"
    assert served.value("cache_requests_total", registry="docker.io", kind="manifest", result="negative") == 1


async def test_an_error_of_our_own_tells_the_client_nothing(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """500 with the request's id, whose traceback is in the log; the connection goes on."""
    served.registry.fail("manifest", ZeroDivisionError("the password is 1234"))
    async with connect(served.port) as wire:
        answer = await wire.ask("/v2/sample/manifests/latest")
        assert answer.status == 500
        assert b"1234" not in answer.body
        assert (await wire.ask("/v2/")).status == 200
    (record,) = [record for record in caplog.records if record.exc_info]
    assert answer.headers["X-Request-ID"] in record.getMessage()


async def test_what_upstream_wrote_breaks_no_line(serve: Serve) -> None:
    """A media type with a line break in it, a next page that would end the link."""
    registry = serving_sample(MemoryRegistry())

    served = await serve(registry)
    listing = await registry.tags(SAMPLE.repository)

    async def tags(*_: object) -> object:
        return type(listing)(
            b"{}", "application/json\r\nX-Evil: 1", 'n=1>; rel="next", <http://evil.example/\r\n', "a\x00é"
        )

    registry.tags = tags  # type: ignore[assignment, method-assign]  # one method of one object, for one test
    answer = await served.ask("/v2/sample/tags/list")
    assert "X-Evil" not in answer.headers
    assert answer.headers["Content-Type"] == "application/json??X-Evil: 1"
    assert answer.headers["OCI-Filters-Applied"] == "a??"
    link = answer.headers["Link"]
    assert link.startswith("</v2/library/sample/tags/list?n=1%3E;%20rel=%22next%22,%20%3Chttp://evil.example/%0D%0A>")
    assert link.count("<") == link.count(">") == 1
