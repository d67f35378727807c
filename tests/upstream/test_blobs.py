"""Blobs from an upstream: whole, in part, broken in every way; redirects and signed URLs."""

import asyncio
import itertools
import random
from contextlib import aclosing

import pytest

from mirrorproxy.errors import (
    BadAnswer,
    BlobUnknown,
    DigestMismatch,
    ServerFailed,
    TimedOut,
    Unreachable,
    UpstreamError,
)
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.registry import Outcome, Result, Transfer
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

DATA = random.Random(7).randbytes(1_000_000)
DIGEST = Digest.of(DATA)


@pytest.fixture(autouse=True)
def _stocked(hub: Hub) -> None:
    """There is a layer to pull."""
    hub.add_blob(ALPINE.name, DATA)


async def received(transfer: Transfer, start: int, end: int | None = None) -> tuple[bytes, UpstreamError | None]:
    """What came of a transfer, and how it broke."""
    got = b""
    try:
        async for chunk in transfer.chunks(start, end):
            got += chunk
    except UpstreamError as error:
        return got, error
    finally:
        await transfer.aclose()
    return got, None


async def test_a_whole_blob(hub: Hub, upstream: Failover, metrics: Metrics) -> None:
    """One GET at the registry, one at the storage, no HEAD; counted in bytes."""
    async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
        assert (blob.digest, blob.size, blob.first) == (DIGEST, len(DATA), 0)
        assert blob.outcome == Outcome(Result.MISS, endpoint=hub.registry.origin.partition("://")[2])
        assert await read(blob) == DATA
    assert [str(seen) for seen in hub.log] == ["GET blob 401", "GET token 200", "GET blob 307", "GET cdn 200"]
    labels = {"registry": "docker.io", "kind": "blob"}
    assert metrics.collectors.get_sample_value("mirrorproxy_upstream_received_bytes_total", labels) == len(DATA)
    for code, count in (("401", 1), ("307", 1), ("200", 1)):
        counted = metrics.collectors.get_sample_value("mirrorproxy_upstream_requests_total", labels | {"code": code})
        assert counted == count


async def test_headers_of_ours_and_nothing_else(hub: Hub, upstream: Failover) -> None:
    """`identity`, our name, the range; the same at the storage, without the token."""
    async with aclosing(await upstream.blob(ALPINE, DIGEST, 10, 20)) as blob:
        await read(blob, 10, 20)
    for seen in (hub.seen("blob")[-1], *hub.seen("cdn")):
        assert {name.title() for name in seen.headers} - {"Authorization"} == {
            "Host",
            "Accept",
            "Accept-Encoding",
            "Range",
            "User-Agent",
        }
        assert seen.headers["Accept-Encoding"] == "identity"
        assert seen.headers["User-Agent"].startswith("mirrorproxy/")
        assert seen.range == "bytes=10-19"


@pytest.mark.parametrize(
    ("start", "end", "header"),
    [
        (0, None, None),
        (5, None, "bytes=5-"),
        (0, 1, "bytes=0-0"),
        (999_999, None, "bytes=999999-"),
        (10, 70_000, "bytes=10-69999"),
        (999_000, 2_000_000, "bytes=999000-1999999"),
    ],
)
async def test_a_part(hub: Hub, upstream: Failover, start: int, end: int | None, header: str | None) -> None:
    """Exactly what was asked for is asked for; the size is the whole's."""
    async with aclosing(await upstream.blob(ALPINE, DIGEST, start, end)) as blob:
        assert (blob.size, blob.first) == (len(DATA), start)
        assert await read(blob, start, end) == DATA[start:end]
    assert hub.seen("cdn")[-1].range == header


async def test_a_part_behind_the_end(upstream: Failover) -> None:
    """Nothing comes; how large the blob is, is known."""
    for start in (len(DATA), len(DATA) + 5):
        async with aclosing(await upstream.blob(ALPINE, DIGEST, start)) as blob:
            assert (blob.size, blob.first) == (len(DATA), start)
            assert await read(blob, start) == b""


@pytest.mark.parametrize("content_range", [None, "bytes */1000000", "bytes */?"])
async def test_a_part_that_is_refused_for_no_reason(hub: Hub, upstream: Failover, content_range: str | None) -> None:
    """416 for what lies within the blob, or without its size."""
    hub.script.always("cdn", Quirk(status=416, headers={"Content-Range": content_range}))
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST, 600_000)


async def test_an_empty_blob(hub: Hub, upstream: Failover) -> None:
    """Is one."""
    async with aclosing(await upstream.blob(ALPINE, hub.add_blob(ALPINE.name, b""))) as blob:
        assert blob.size == 0
        assert await read(blob) == b""


async def test_bytes_are_read_once_and_in_order(upstream: Failover) -> None:
    """In several goes, skipping what is not wanted; going back is an error of the caller's."""
    async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
        assert await read(blob, 0, 10) == DATA[:10]
        assert await read(blob, 10, 300_000) == DATA[10:300_000]
        assert await read(blob, 500_000, 500_001) == DATA[500_000:500_001]
        with pytest.raises(ValueError, match="read already"):
            await read(blob, 400_000)
        assert await read(blob, 500_001) == DATA[500_001:]


async def test_connections_are_kept(hub: Hub, upstream: Failover) -> None:
    """Each origin has one connection for ten blobs, a 401 and a redirect each time included."""
    for _ in range(10):
        async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
            await read(blob)
    assert len({(seen.kind, seen.connection) for seen in hub.log}) == 3


async def test_connections_are_kept_where_redirects_take_their_time(hub: Hub, upstream: Failover) -> None:
    """Their little bodies are read to the end; it is no great matter where that takes too long."""
    hub.script.always("blob", Quirk(rate=500))
    for _ in range(3):
        async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
            await read(blob)
    assert len({seen.connection for seen in hub.seen("blob")}) == 1


async def test_a_redirect_whose_body_stalls(hub: Hub, upstream: Failover, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is in its headers."""
    monkeypatch.setattr("mirrorproxy.upstream.answers._DRAIN_TIME", 0.05)
    hub.script.always("blob", Quirk(stall=0))
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)


async def test_a_connection_that_was_closed_meanwhile(
    hub: Hub, upstream: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is no failure, and costs no try: the request goes over a new one at once."""
    monkeypatch.setattr("mirrorproxy.upstream.retry.ATTEMPTS", 1)
    for _ in range(2):
        async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
            await read(blob)
        hub.script.next("blob", Quirk(reset=True))  # what a server looks like that closed as we asked
    assert [seen.status for seen in hub.seen("blob")] == [401, 307, 0, 307]


async def test_a_server_that_ignores_ranges(hub: Hub, upstream: Failover) -> None:
    """Sends the whole: `first` says so, and what was not asked for can be skipped."""
    hub.script.always("cdn", Quirk(ignore_range=True))
    async with aclosing(await upstream.blob(ALPINE, DIGEST, 600_000)) as blob:
        assert (blob.size, blob.first) == (len(DATA), 0)
        assert await read(blob, 600_000) == DATA[600_000:]


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 599999-999999/1000000",
        "bytes 600001-999999/1000000",
        "bytes 600000-999998/1000000",
        "bytes 600000-999999/1000001",
        "bytes 600000-1999999/1000000",
        "bytes 600000-600000/*",
        "bytes */1000000",
        "600000-999999",
        "",
    ],
)
async def test_a_range_that_was_not_asked_for(hub: Hub, upstream: Failover, content_range: str) -> None:
    """Another start, end or total than fits: never appended blindly."""
    hub.script.always("cdn", Quirk(headers={"Content-Range": content_range}))
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST, 600_000)


async def test_a_range_of_an_unknown_total(hub: Hub, upstream: Failover) -> None:
    """Is good, only the size is not known."""
    hub.script.always("cdn", Quirk(headers={"Content-Range": "bytes 600000-999999/*"}))
    async with aclosing(await upstream.blob(ALPINE, DIGEST, 600_000)) as blob:
        assert (blob.size, blob.first) == (None, 600_000)
        assert await read(blob, 600_000) == DATA[600_000:]


async def test_a_part_that_nobody_asked_for(hub: Hub, upstream: Failover) -> None:
    """206 for the whole."""
    hub.script.always("cdn", Quirk(status=206, body=b"x", headers={"Content-Range": "bytes 0-0/1000000"}))
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST)


async def test_without_content_length(hub: Hub, upstream: Failover) -> None:
    """Chunked: the size is not known, the bytes are the same."""
    hub.script.always("cdn", Quirk(chunked=True))
    async with aclosing(await upstream.blob(ALPINE, DIGEST)) as blob:
        assert blob.size is None
        assert await read(blob) == DATA
    async with aclosing(await upstream.blob(ALPINE, DIGEST, 600_000)) as blob:
        assert blob.size == len(DATA)
        assert await read(blob, 600_000) == DATA[600_000:]


@pytest.mark.parametrize("cut", [0, 1, 65_536, 999_999])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ends_early(hub: Hub, upstream: Failover, cut: int, reset: bool) -> None:
    """`Unreachable`, after every byte that came: none of them is fetched again. (A reset loses what is on its way.)"""
    hub.script.always("cdn", Quirk(cut=cut, reset=reset))
    got, error = await received(await upstream.blob(ALPINE, DIGEST), 0)
    assert type(error) is Unreachable
    assert DATA[:cut].startswith(got) if reset else got == DATA[:cut]


async def test_what_came_before_a_break_is_not_lost(hub: Hub, upstream: Failover) -> None:
    """Not even where nobody had read it yet when the connection broke."""
    hub.script.always("cdn", Quirk(cut=200_000))
    blob = await upstream.blob(ALPINE, DIGEST)
    while hub.seen("cdn")[-1].sent < 200_000:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    got, error = await received(blob, 0)
    assert (got, type(error)) == (DATA[:200_000], Unreachable)


async def test_a_cut_in_chunked_is_seen(hub: Hub, upstream: Failover) -> None:
    """The end of the connection is not the end of the blob."""
    hub.script.always("cdn", Quirk(chunked=True, cut=500_000))
    got, error = await received(await upstream.blob(ALPINE, DIGEST), 0)
    assert (got, type(error)) == (DATA[:500_000], Unreachable)


async def test_a_stall(hub: Hub, connected: Connect) -> None:
    """`TimedOut` when no byte came for the idle timeout, with what came before."""
    hub.script.always("cdn", Quirk(stall=300_000))
    got, error = await received(await connected(hub, idle_timeout=0.2).blob(ALPINE, DIGEST), 0)
    assert (got, type(error)) == (DATA[:300_000], TimedOut)


async def test_slow_is_not_stalled(hub: Hub, connected: Connect) -> None:
    """As long as bytes come, there is no limit to how long it takes."""
    hub.add_blob(ALPINE.name, DATA[:20_000])
    hub.script.always("cdn", Quirk(rate=40_000))
    blob = await connected(hub, idle_timeout=0.1, header_timeout=0.2).blob(ALPINE, Digest.of(DATA[:20_000]))
    assert await received(blob, 0) == (DATA[:20_000], None)


async def test_a_slow_reader_is_not_a_stall(hub: Hub, connected: Connect) -> None:
    """The timeout is for bytes that do not come, not for bytes that nobody takes."""
    async with aclosing(await connected(hub, idle_timeout=0.1).blob(ALPINE, DIGEST)) as blob:
        got = b""
        async for chunk in blob.chunks(0, None):
            got += chunk
            await asyncio.sleep(0.15 if len(got) < 300_000 else 0)
    assert got == DATA


async def test_a_content_length_that_is_too_long(hub: Hub, upstream: Failover) -> None:
    """The bytes end early, and that is told."""
    hub.script.always("cdn", Quirk(length=5))
    blob = await upstream.blob(ALPINE, DIGEST)
    assert blob.size == len(DATA) + 5
    got, error = await received(blob, 0)
    assert got == DATA
    assert isinstance(error, UpstreamError)


async def test_a_content_length_that_is_too_short(hub: Hub, upstream: Failover) -> None:
    """Ends where it says, which the digest will tell; the surplus is nobody's next answer."""
    hub.script.next("cdn", Quirk(length=-10, surplus=DATA[-10:]))
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA[:-10], None)
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)


@pytest.mark.parametrize("length", [-1, 1])
async def test_a_part_of_another_length_than_its_range(hub: Hub, upstream: Failover, length: int) -> None:
    """Content-Length and Content-Range must agree."""
    hub.script.always("cdn", Quirk(length=length))
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST, 600_000)


@pytest.mark.parametrize(("body", "got"), [(DATA[600_000:-1], DATA[600_000:-1]), (DATA[600_000:] + b"x", None)])
async def test_a_chunked_part_of_another_length(hub: Hub, upstream: Failover, body: bytes, got: bytes | None) -> None:
    """Where there is no Content-Length, the bytes are counted."""
    hub.script.always("cdn", Quirk(chunked=True, body=body))
    came, error = await received(await upstream.blob(ALPINE, DIGEST, 600_000), 600_000)
    assert type(error) is BadAnswer
    assert came == (DATA[600_000:] if got is None else got)


@pytest.mark.parametrize(
    "quirk",
    [
        Quirk(gzip=True),
        Quirk(html=True),
        Quirk(headers={"Content-Encoding": "br"}),
        Quirk(headers={"Docker-Content-Digest": Digest.of(b"other")}),
        Quirk(status=204, body=b""),
        Quirk(status=302),
        Quirk(status=304, body=b""),
    ],
)
async def test_what_is_not_the_blob(hub: Hub, upstream: Failover, quirk: Quirk) -> None:
    """A coding that nobody asked for, a captive portal, another blob: `BadAnswer`, and no byte of it."""
    hub.script.always("cdn", quirk)
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST)


async def test_a_blob_that_is_a_web_page(connected: Connect) -> None:
    """Where the registry says by the digest that it means it."""
    async with Hub(auth="none", redirects=False) as hub:
        digest = hub.add_blob(ALPINE.name, b"<html>documentation</html>")
        hub.script.always("blob", Quirk(headers={"Content-Type": "text/html"}))
        got = await received(await connected(hub).blob(ALPINE, digest), 0)
        assert got == (b"<html>documentation</html>", None)


async def test_wrong_bytes_are_passed_on(hub: Hub, upstream: Failover) -> None:
    """Who has all of them finds out, and blames the endpoint."""
    hub.script.always("cdn", Quirk(corrupt=True))
    blob = await upstream.blob(ALPINE, DIGEST)
    got, error = await received(blob, 0)
    assert error is None
    assert Digest.of(got) != DIGEST
    blob.blame(DigestMismatch("wrong"))
    assert list(upstream.troubles()) == [f"upstream {hub.url.partition('//')[2]}: wrong"]


async def test_one_that_is_not_there(upstream: Failover) -> None:
    """The registry's word."""
    with pytest.raises(BlobUnknown):
        await upstream.blob(ALPINE, Digest.of(b"absent"))


async def test_signed_urls_are_asked_as_they_stand(hub: Hub, upstream: Failover) -> None:
    """Byte for byte: `%2B`, `%2f` and `~` are part of the signature, and the storage refuses any other spelling."""
    assert (await received(await upstream.blob(ALPINE, DIGEST), 0))[0] == DATA
    (stored,) = hub.seen("cdn")
    assert all(piece in stored.target for piece in ("//sha256~", "%2F", "%2B%2f~", "%7e", "a+b"))


async def test_a_signature_that_expired(hub: Hub, upstream: Failover) -> None:
    """Asking the registry again gets another one; nobody notices."""
    hub.script.next("cdn", Quirk(status=403), Quirk(status=400))
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)
    assert [seen.status for seen in hub.seen("cdn")] == [403, 400, 200]
    assert len({seen.target for seen in hub.seen("cdn")}) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 500, 503])
async def test_a_storage_that_refuses(hub: Hub, upstream: Failover, status: int) -> None:
    """Is an outage: the registry had said that the blob is there, so it is never "not found" nor "denied"."""
    hub.script.always("cdn", Quirk(status=status, body=b"<Error/>", headers={"Content-Type": "application/xml"}))
    with pytest.raises(ServerFailed):
        await upstream.blob(ALPINE, DIGEST)
    assert hub.count("cdn") == 3


async def test_a_redirect_to_another_registry_that_has_it_not(hub: Hub, upstream: Failover) -> None:
    """registry.k8s.io redirects everything; its target's 404 in the words of a registry is an answer."""
    body = b'{"errors":[{"code":"BLOB_UNKNOWN","message":"x"}]}'
    hub.script.always("cdn", Quirk(status=404, body=body))
    with pytest.raises(BlobUnknown):
        await upstream.blob(ALPINE, DIGEST)
    assert hub.count("cdn") == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(hub: Hub, upstream: Failover, status: int) -> None:
    """All five kinds, relative ones too, with the token as long as they stay at the registry."""
    path = f"/v2/{ALPINE.name}/blobs/{DIGEST}"
    targets = [path, f"{hub.url}{path}?x=%2B%2f", "?y=1"]
    hub.script.next("blob", *(Quirk(status=status, headers={"Location": target}) for target in targets))
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)
    authorized = [seen.target for seen in hub.seen("blob") if seen.authorization]
    assert authorized == [path, path, f"{path}?x=%2B%2f", f"{path}?y=1"]


async def test_the_token_does_not_come_back_from_elsewhere(hub: Hub, upstream: Failover) -> None:
    """Once a redirect has left the registry, whoever sent it back does not get our authorization used."""
    path = f"/v2/{ALPINE.name}/blobs/{DIGEST}"
    hub.script.next("cdn", Quirk(status=307, headers={"Location": hub.url + path}))
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)
    _, authorized, from_elsewhere, again = hub.seen("blob")
    assert authorized.authorization
    assert from_elsewhere.authorization is None
    assert again.authorization


async def test_redirects_come_to_an_end(hub: Hub, upstream: Failover) -> None:
    """Five of them, then it is a loop."""
    hub.script.always("blob", Quirk(status=307, headers={"Location": "?again"}))
    with pytest.raises(BadAnswer, match="redirects more than 5 times"):
        await upstream.blob(ALPINE, DIGEST)
    assert hub.count("blob") == 1 + 6


@pytest.mark.parametrize(
    "location",
    [None, "", "ftp://127.0.0.3/x", "http://", "http://127.0.0.3:99999/x", "http://user:pw@127.0.0.3/x", "file:///x"],
)
async def test_redirects_to_nowhere(hub: Hub, upstream: Failover, location: str | None) -> None:
    """Anything but an http or https URL is refused."""
    hub.script.always("blob", Quirk(status=307, headers={"Location": location}))
    with pytest.raises(BadAnswer):
        await upstream.blob(ALPINE, DIGEST)


async def test_transfers_are_limited(hub: Hub, connected: Connect) -> None:
    """`max_connections` at a time; those who wait get their turn in order, and none of them fails for it."""
    upstream, hold, opened = connected(hub, max_connections=2, header_timeout=0.5), asyncio.Event(), itertools.count(1)
    await received(await upstream.blob(ALPINE, DIGEST), 0)

    async def pull() -> tuple[int, bool]:
        blob = await upstream.blob(ALPINE, DIGEST)
        number = next(opened)
        await hold.wait()
        return number, await received(blob, 0) == (DATA, None)

    pulls = asyncio.gather(*(pull() for _ in range(6)))
    await asyncio.sleep(0.7)
    assert hub.count("cdn") == 1 + 2
    hold.set()
    assert await pulls == [(number, True) for number in range(1, 7)]


async def test_one_who_leaves_frees_his_place(hub: Hub, connected: Connect) -> None:
    """Closed in the middle, or cancelled while it was opened."""
    upstream = connected(hub, max_connections=1)
    for _ in range(3):
        blob = await upstream.blob(ALPINE, DIGEST)
        await anext(aiter(blob.chunks(0, None)))
        await blob.aclose()
    hub.script.next("cdn", Quirk(hold=asyncio.Event()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await upstream.blob(ALPINE, DIGEST)
    assert await received(await upstream.blob(ALPINE, DIGEST), 0) == (DATA, None)


async def test_slow_headers(hub: Hub, connected: Connect) -> None:
    """`TimedOut` after the header timeout, each time it is tried."""
    hub.script.always("cdn", Quirk(hold=asyncio.Event()))
    with pytest.raises(TimedOut):
        await connected(hub, header_timeout=0.1).blob(ALPINE, DIGEST)
    assert hub.count("cdn") == 3


class TestStat:
    """What a HEAD of a blob says."""

    async def test_one_head(self, hub: Hub, upstream: Failover) -> None:
        """No GET where the HEAD says it all."""
        descriptor = (await upstream.stat(ALPINE, DIGEST)).descriptor
        assert (descriptor.digest, descriptor.size) == (DIGEST, len(DATA))
        assert {seen.method for seen in hub.seen("blob")} == {"HEAD"}

    @pytest.mark.parametrize("status", [404, 405, 501, 400])
    async def test_a_head_that_says_no(self, hub: Hub, upstream: Failover, status: int) -> None:
        """Harbor's 404 for what it would fetch, servers without HEAD: one byte is asked for by GET."""
        hub.script.always("blob", Quirk(status=status), method="HEAD")
        assert (await upstream.stat(ALPINE, DIGEST)).descriptor.size == len(DATA)
        assert [str(seen) for seen in hub.seen("cdn")] == ["GET cdn bytes=0-0 206"]

    async def test_a_signature_for_get_alone(self, hub: Hub, upstream: Failover) -> None:
        """The storage refuses the HEAD, and has it."""
        hub.script.always("cdn", Quirk(status=403), method="HEAD")
        assert (await upstream.stat(ALPINE, DIGEST)).descriptor.size == len(DATA)

    async def test_a_server_without_ranges(self, hub: Hub, upstream: Failover) -> None:
        """The length of the whole is taken, the whole is not."""
        hub.script.always("blob", Quirk(status=405), method="HEAD")
        hub.script.always("cdn", Quirk(ignore_range=True, rate=100_000))
        assert (await upstream.stat(ALPINE, DIGEST)).descriptor.size == len(DATA)
        assert hub.sent("cdn") < len(DATA)

    async def test_a_head_without_a_length(self, hub: Hub, upstream: Failover) -> None:
        """GET knows."""
        hub.script.always("cdn", Quirk(headers={"Content-Length": None}), method="HEAD")
        assert (await upstream.stat(ALPINE, DIGEST)).descriptor.size == len(DATA)

    async def test_an_empty_blob(self, hub: Hub, upstream: Failover) -> None:
        """Has no first byte to ask for."""
        hub.script.always("blob", Quirk(status=405), method="HEAD")
        digest = hub.add_blob(ALPINE.name, b"")
        assert (await upstream.stat(ALPINE, digest)).descriptor.size == 0

    async def test_no_length_anywhere(self, hub: Hub, upstream: Failover) -> None:
        """Is told."""
        hub.script.always("blob", Quirk(status=405), method="HEAD")
        hub.script.always("cdn", Quirk(ignore_range=True, chunked=True))
        with pytest.raises(BadAnswer, match="how large"):
            await upstream.stat(ALPINE, DIGEST)

    @pytest.mark.parametrize("quirk", [Quirk(html=True), Quirk(gzip=True)])
    async def test_what_is_not_the_blob(self, hub: Hub, upstream: Failover, quirk: Quirk) -> None:
        """A captive portal has no blobs."""
        hub.script.always("cdn", quirk)
        with pytest.raises(BadAnswer):
            await upstream.stat(ALPINE, DIGEST)
