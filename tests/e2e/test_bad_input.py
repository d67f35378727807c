"""What nobody should send: refused in the protocol's words; nothing is asked upstream, nothing written."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from mirrorproxy.names import Digest
from tests.e2e.client import connect, say
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.web.test_malformed import MALFORMED
from tests.web.wire import Answer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e bad input")]

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
MANIFEST = "library/alpine/manifests"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A service whose upstream has what is asked for, if it were asked."""
    for name in ("library/alpine", "a", "library/a", "etc/passwd"):
        for tag in ("latest", "1", "passwd"):
            hub.add_image(name, tag, b"layer")
    upstreams = {"docker.io": upstream(hub), "ghcr.io": upstream(hub)}
    async with Proxy(tmp_path_factory.mktemp("proxy"), settings(upstreams)) as proxy:
        began = (proxy.cache / "index.json").stat().st_mtime_ns
        await until(lambda: (proxy.cache / "index.json").stat().st_mtime_ns > began)  # it is written once at each start
        yield proxy


@pytest.fixture(autouse=True)
def _nothing_happens(hub: Hub, proxy: Proxy) -> Iterator[None]:
    """Whatever a test here sends: upstream is not asked, no file changes, nothing fails in the service."""
    hub.log.clear()
    before = proxy.files()
    yield
    assert [str(seen) for seen in hub.log] == []
    assert proxy.files() == before
    assert proxy.complaints() == []
    assert "Traceback" not in proxy.stderr.read_text()


def refused(answer: Answer) -> dict[str, object]:
    """The error of an answer that refuses."""
    assert 400 <= answer.status < 500, answer
    assert answer.complete
    assert answer.headers["X-Request-ID"]
    return answer.error


NAMES = {
    "upper case": "/v2/Library/alpine/manifests/latest",
    "upper case on GitHub": "/v2/ghcr.io/Owner/image/manifests/latest",
    "a leading dash": "/v2/-a/manifests/latest",
    "a leading dot": "/v2/.a/manifests/latest",
    "a trailing dot": "/v2/library/a./manifests/latest",
    "two dots": "/v2/library/a..b/manifests/latest",
    "three underscores": "/v2/library/a___b/manifests/latest",
    "an underscore and a dot": "/v2/library/a_.b/manifests/latest",
    "an empty component": "/v2/library//alpine/manifests/latest",
    "an empty name": "/v2//manifests/latest",
    "a trailing slash": "/v2/library/alpine//manifests/latest",
    "a plus": "/v2/a+b/manifests/latest",
    "a tilde": "/v2/~root/manifests/latest",
    "an at sign": "/v2/a@b/manifests/latest",
    "a colon": "/v2/library/a:b/manifests/latest",
    "a star": "/v2/*/manifests/latest",
    "a blank": "/v2/a%20b/manifests/latest",
    "an escaped slash": "/v2/library%2Falpine/manifests/latest",
    "an escaped upper case letter": "/v2/%41/manifests/latest",
    "an escaped NUL": "/v2/a%00/manifests/latest",
    "an escaped line end": "/v2/a%0d%0aHost:%20x/manifests/latest",
    "an escaped question mark": "/v2/a%3fns=ghcr.io/manifests/latest",
    "an escaped hash": "/v2/a%23/manifests/latest",
    "half an escape": "/v2/a%2/manifests/latest",
    "no escape": "/v2/a%zz/manifests/latest",
    "an escaped escape": "/v2/a%2561/manifests/latest",
    "a letter of another alphabet": "/v2/%D0%B0/manifests/latest",
    "a full-width letter": "/v2/%EF%BD%81/manifests/latest",
    "no UTF-8": "/v2/%ff%fe/manifests/latest",
    "256 characters": f"/v2/{'a' * 256}/manifests/latest",
    "64 KiB": f"/v2/{'a/' * 32_768}a/manifests/latest",
    "a backslash": "/v2/library\\alpine/manifests/latest",
    "another registry": "/v2/evil.example/a/manifests/latest",
    "another registry's port": "/v2/docker.io:5000/library/alpine/manifests/latest",
    "an address": "/v2/169.254.169.254/latest/manifests/meta-data",
    "an address of version 6": "/v2/[::1]/a/manifests/latest",
    "localhost": "/v2/localhost/a/manifests/latest",
    "another registry first": "/evil.example/v2/a/manifests/latest",
    "no registry first": "/-/v2/a/manifests/latest",
    "credentials": "/v2/user:secret@docker.io/library/alpine/manifests/latest",
}
DIGESTS = {
    "short": f"sha256:{HEX[:-1]}",
    "long": f"sha256:{HEX}0",
    "upper case": f"sha256:{HEX.upper()}",
    "no hex": f"sha256:{'g' * 64}",
    "nothing": "sha256:",
    "no algorithm": f":{HEX}",
    "another algorithm": f"md5:{HEX[:32]}",
    "upper case algorithm": f"SHA256:{HEX}",
    "the wrong length for it": f"sha512:{HEX}",
    "a path": f"sha256:../../../../etc/passwd{HEX}"[:71],
    "an escaped path": f"sha256:..%2f..%2f{HEX}",
    "an escaped colon and a path": f"sha256%3A%2e%2e%2f{HEX}",
    "two of them": f"{DIGEST}@{DIGEST}",
    "64 KiB": f"sha256:{'a' * 65_536}",
    "an escaped line end": f"sha256:{HEX}%0a",
    "an escaped NUL": f"sha256:{HEX}%00",
}
TAGS = {
    "a leading dot": ".tag",
    "a leading dash": "-tag",
    "INVALID_MANIFEST_NAME": ".INVALID_MANIFEST_NAME",
    "129 characters": "a" * 129,
    "64 KiB": "a" * 65_536,
    "a plus": "1+1",
    "a blank": "a%20b",
    "an escaped slash": "a%2fb",
    "two dots": "..",
    "escaped dots": "%2e%2e",
    "nothing": "",
    "a letter of another alphabet": "%C3%A9",
    "an escaped line end": "latest%0d%0aX:%20y",
    "a digest that is none": f"sha256:{HEX}0",
}
TRAVERSALS = {
    "dots": "/v2/../../../../etc/passwd",
    "dots to a manifest": "/v2/../../etc/passwd/manifests/latest",
    "dots in a name": "/v2/library/../../etc/passwd/manifests/latest",
    "dots after the name": "/v2/library/alpine/manifests/../../../../../etc/passwd",
    "dots after a blob": f"/v2/library/alpine/blobs/../../{HEX}",
    "escaped dots": "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/latest",
    "escaped slashes": "/v2/..%2f..%2fetc%2fpasswd/manifests/latest",
    "all escaped": "/v2/%2e%2e%2f%2e%2e%2fetc%2fpasswd/manifests/latest",
    "escaped twice": "/v2/%252e%252e%252fetc/manifests/latest",
    "half escaped": "/v2/.%2e/.%2E/etc/passwd/manifests/latest",
    "overlong UTF-8": "/v2/%c0%ae%c0%ae/%c0%af/etc/passwd/manifests/latest",
    "IIS": "/v2/..%u2215..%u2215etc/manifests/latest",
    "backslashes": "/v2/..\\..\\etc\\passwd/manifests/latest",
    "escaped backslashes": "/v2/..%5c..%5cetc%5cpasswd/manifests/latest",
    "a semicolon": "/v2/..;/..;/etc/passwd/manifests/latest",
    "two slashes": "/v2//etc/passwd/manifests/latest",
    "two slashes first": "//etc/passwd",
    "NUL": "/v2/..%00/etc/passwd/manifests/latest",
    "before it all": "/../../v2/library/alpine/manifests/latest",
    "a mount": "/../v2/library/alpine/manifests/latest",
    "an escaped mount": "/%2e%2e/v2/library/alpine/manifests/latest",
    "the index": "/index.json",
    "the layout": "/oci-layout",
    "a blob's file": f"/blobs/sha256/{HEX}",
    "many": f"/v2{'/..' * 600}/etc/passwd/manifests/latest",
}
NS = {
    "another registry": "evil.example",
    "an URL": "http://evil.example",
    "an address": "169.254.169.254",
    "credentials": "user:secret@docker.io",
    "a path": "docker.io/../evil",
    "an escaped path": "docker.io%2f..%2fevil",
    "a line end": "docker.io%0d%0aHost:%20evil.example",
    "NUL": "docker.io%00",
    "upper case and a blank": "DOCKER.IO%20",
    "half an escape": "docker.io%2",
    "two of them": "docker.io&ns=ghcr.io",
    "the same twice": "docker.io&ns=docker.io",
    "two in disguise": "docker.io&%6es=ghcr.io",
    "nothing": "",
    "64 KiB": "a" * 65_536,
    "no UTF-8": "%ff",
}
QUERIES = {
    "no number": "n=x",
    "a negative number": "n=-1",
    "an endless number": f"n={'9' * 5000}",
    "a fraction": "n=1.5",
    "a number in another alphabet": "n=%D9%A1",
    "no escape": "last=%zz",
    "a control character": "last=\x01",
    "a thousand parameters": "&".join(["a=b"] * 1000),
    "64 KiB": f"last={'a' * 65_536}",
}


@pytest.mark.parametrize("target", [*NAMES.values(), *TRAVERSALS.values()], ids=[*NAMES, *TRAVERSALS])
async def test_names(proxy: Proxy, target: str) -> None:
    """4xx with an error of the protocol, by GET and HEAD."""
    async with connect(proxy.address) as wire:
        refused(await wire.ask(target))
    async with connect(proxy.address) as wire:
        assert 400 <= (await wire.ask(target, "HEAD")).status < 500


@pytest.mark.parametrize("digest", DIGESTS.values(), ids=DIGESTS)
async def test_digests(proxy: Proxy, digest: str) -> None:
    """Of blobs, manifests and the subjects of referrers."""
    for kind in ("blobs", "manifests", "referrers"):
        async with connect(proxy.address) as wire:
            refused(await wire.ask(f"/v2/library/alpine/{kind}/{digest}"))


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
async def test_tags(proxy: Proxy, tag: str) -> None:
    """That can name nothing."""
    async with connect(proxy.address) as wire:
        refused(await wire.ask(f"/v2/{MANIFEST}/{tag}"))


@pytest.mark.parametrize("ns", NS.values(), ids=NS)
async def test_ns(proxy: Proxy, ns: str) -> None:
    """What names no configured registry, or more than one."""
    for target in (f"{MANIFEST}/latest", f"library/alpine/blobs/{DIGEST}", "library/alpine/tags/list", ""):
        async with connect(proxy.address) as wire:
            answer = await wire.ask(f"/v2/{target}?ns={ns}")
            refused(answer)
            assert "OCI-Namespace" not in answer.headers


@pytest.mark.parametrize(
    "target", [f"/docker.io/v2/{MANIFEST}/latest?ns=ghcr.io", "/v2/ghcr.io/a/b/tags/list?ns=docker.io"]
)
async def test_ns_that_disagrees(proxy: Proxy, target: str) -> None:
    """With the registry in the path."""
    async with connect(proxy.address) as wire:
        refused(await wire.ask(target))


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
async def test_queries(proxy: Proxy, query: str) -> None:
    """Of lists."""
    for target in ("library/alpine/tags/list", f"library/alpine/referrers/{DIGEST}", "_catalog"):
        async with connect(proxy.address) as wire:
            refused(await wire.ask(f"/v2/{target}?{query}"))


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_no_http(proxy: Proxy, data: str) -> None:
    """What does not parse, or is two requests to some: one answer, and the end of the connection."""
    async with connect(proxy.address) as wire:
        wire.writer.write(data.encode("latin-1"))
        refused(await wire.answer())
        assert await wire.ended(), "something was answered that was smuggled in"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "CONNECT"])
async def test_methods(proxy: Proxy, method: str) -> None:
    """Whatever would write, or does anything but read: refused, and the methods that there are."""
    for target in (
        f"/v2/{MANIFEST}/1",
        f"/v2/library/alpine/blobs/{DIGEST}",
        "/v2/library/alpine/blobs/uploads/",
        "/v2/",
    ):
        async with connect(proxy.address) as wire:
            answer = await wire.ask(target, method, {"Content-Length": "0"})
            refused(answer)
            if answer.status == 405:
                assert answer.headers["Allow"] == "GET, HEAD"


HEADERS = {
    "a field of 64 KiB": {"X-Any": "a" * 65_536},
    "an authorization of 64 KiB": {"Authorization": "a" * 65_536},
    "a name of 64 KiB": {"a" * 65_536: "x"},
    "many fields": {f"X-{number}": "a" * 100 for number in range(2000)},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
async def test_headers(proxy: Proxy, headers: dict[str, str]) -> None:
    """Too many, or too large."""
    async with connect(proxy.address) as wire:
        refused(await wire.ask("/v2/", headers=headers))


@pytest.mark.parametrize(
    "target",
    ["http://evil.example/v2/", "http://169.254.169.254/latest/meta-data", "https://evil.example/", "evil.example:443"],
)
async def test_not_a_proxy_for_everything(proxy: Proxy, target: str) -> None:
    """A target with a host in it is answered as what it is here, if it is anything; nobody else is asked."""
    answer = await say(proxy.address, f"GET {target} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
    assert answer.status < 500
    if answer.status >= 400:
        refused(answer)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:99999", "[", "a" * 5000, "a b", ""])
async def test_hosts(proxy: Proxy, host: str) -> None:
    """The Host field decides nothing."""
    answer = await say(proxy.address, f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.status in (200, 400)


async def test_what_an_error_echoes(proxy: Proxy) -> None:
    """Not all of what was sent, and nothing that a browser or a terminal would act upon."""
    async with connect(proxy.address) as wire:
        answer = await wire.ask("/v2/<script>alert(1)</script>/manifests/latest")
        assert answer.headers["Content-Type"] == "application/json"
    async with connect(proxy.address) as wire:
        answer = await wire.ask("/v2/a%1b[31m/manifests/latest")
        assert b"\x1b" not in answer.body
    async with connect(proxy.address) as wire:
        answer = await wire.ask(f"/v2/{'a' * 4000}/manifests/latest")
        assert len(answer.body) < 1500


async def test_half_a_request(proxy: Proxy) -> None:
    """A client that ends in the middle of its head gets no 5xx, and does no harm."""
    for data in (b"GET", b"GET /v2/ HTTP/1.1\r\n", b"GET /v2/ HTTP/1.1\r\nHost: x\r\nA", b"\r\n", b"\0" * 100):
        async with connect(proxy.address) as wire:
            wire.writer.write(data)
            wire.writer.write_eof()
            answer = (await wire.reader.read()).split(b" ")
            assert len(answer) == 1 or answer[1] == b"400"
    async with connect(proxy.address) as wire:
        assert (await wire.ask("/v2/")).status == 200


async def test_ranges_of_a_blob_that_is_here(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The whole, or 416 where none of it is meant: never a 5xx, nothing upstream, nothing written."""
    data = bytes(range(256)) * 40
    digest: Digest = hub.add_blob("library/ranges", data)
    target = f"/v2/library/ranges/blobs/{digest}"
    odd = [
        *(
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-1",
            "bytes=--1",
            "bytes=0x1-0x2",
            "bits=0-1",
        ),
        *("bytes=0-1,", "bytes=0-0,2-2", ",".join(["bytes=0-0"] * 500), "bytes=-0", "bytes=+1-+2", "bytes=1.5-2"),
        *(f"bytes={'9' * 4000}-", f"bytes=-{'9' * 4000}", f"bytes=0-{'9' * 4000}", "bytes=10240-", "bytes=99999-"),
        *("bytes=\u0661-", "bytes = 0-1", "BYTES=0-1", "bytes=0-1;x", "bytes=0-1 2"),
    ]
    async with Proxy(tmp_path_factory.mktemp("ranges"), settings({"docker.io": upstream(hub)})) as proxy:
        assert (await proxy.ask(target)).body == data
        await proxy.idle()
        hub.log.clear()
        blobs = {name: mark for name, mark in proxy.files().items() if not name.startswith("index")}
        for text in odd:
            for headers in ({"Range": text}, {"Range": text, "If-Range": f'"{digest}"'}):
                answer = await proxy.ask(target, headers=headers)
                assert answer.complete
                if answer.status == 200:
                    assert answer.body == data
                elif answer.status == 206:
                    assert answer.body in data
                else:
                    assert (answer.status, answer.error["code"]) == (416, "RANGE_INVALID")
                    assert answer.headers["Content-Range"] == f"bytes */{len(data)}"
        assert hub.log == []
        assert {name: mark for name, mark in proxy.files().items() if not name.startswith("index")} == blobs
