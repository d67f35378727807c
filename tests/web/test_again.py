"""Answers that are given again: the registry is asked once, the client cannot tell."""

import asyncio
from collections.abc import Mapping

import pytest

from mirrorproxy.names import repository
from mirrorproxy.registry import Outcome, Result
from mirrorproxy.web import again
from mirrorproxy.web.probes import State
from tests.contracts.registry_contract import SAMPLE
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, Served
from tests.web.test_memory import serving_sample
from tests.web.wire import Answer, connect, take_nothing

TAG = "/v2/sample/manifests/latest"
SMALL = next(digest for digest, data in SAMPLE.blobs.items() if len(data) == 40)
BLOB = f"/v2/sample/blobs/{SMALL}"
DIGEST = f"/v2/sample/manifests/{SAMPLE.tags['latest']}"
OTHER = repository("docker.io", "library/other")
TARGETS = [TAG, DIGEST, BLOB, f"{TAG}?ns=docker.io"]


def but_for_the_id(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """What two answers to the same request have in common."""
    fields = {name: value for name, value in answer.headers.items() if name not in ("X-Request-ID", "Date")}
    return answer.status, fields, answer.body


@pytest.fixture(params=[False, True], ids=["clear", "tls"])
async def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A server that serves the sample."""
    return await serve(serving_sample(MemoryRegistry()), tls=request.param)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", TARGETS)
async def test_a_hit_is_given_again(served: Served, target: str, method: str) -> None:
    """The same bytes under another name, counted and logged as any other."""
    async with connect(served.port, served.tls) as wire:
        first = await wire.ask(target, method)
        asked = list(served.registry.asked)
        others = [await wire.ask(target, method, {"User-Agent": "b"}) for _ in range(3)]
    assert asked == served.registry.asked
    assert [but_for_the_id(other) for other in others] == [but_for_the_id(first)] * 3
    assert len({answer.headers["X-Request-ID"] for answer in (first, *others)}) == 4
    labels = {"registry": "docker.io", "kind": "blob" if target == BLOB else "manifest", "result": "hit"}
    assert served.value("cache_requests_total", **labels) == 4
    assert served.value("response_bytes_total", **labels) == 4 * len(first.body)
    count = served.value("http_request_duration_seconds_count", method=method, endpoint=labels["kind"], code="200")
    assert count == 4
    first_line, *lines = await served.logged()
    del first_line["user_agent"]
    for line in (first_line, *lines):
        for varying in ("time", "request_id", "duration_ms", "ttfb_ms"):
            line.pop(varying)
    assert lines == [first_line | {"user_agent": "b"}] * 3


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (BLOB, {"Range": "bytes=1-2"}, 206),
        (BLOB, {"If-None-Match": f'"{SMALL}"'}, 304),
        (TAG, {"If-None-Match": f'"{SAMPLE.tags["latest"]}"'}, 304),
        (TAG, {"Cache-Control": "no-cache"}, 200),
        (TAG, {"pragma": "no-cache"}, 200),
        (TAG, {"Connection": "Upgrade", "Upgrade": "h2c"}, 200),
    ],
)
async def test_what_asks_for_more_gets_it(served: Served, target: str, headers: Mapping[str, str], status: int) -> None:
    """A range, a condition, an answer that upstream was asked for: the registry is asked."""
    async with connect(served.port, served.tls) as wire:
        await wire.ask(target)
        before = len(served.registry.asked)
        assert (await wire.ask(target, headers=headers)).status == status
        assert len(served.registry.asked) > before
        after = len(served.registry.asked)
        assert (await wire.ask(target)).status == 200, "and does not become everybody's answer"
    assert len(served.registry.asked) == after


async def test_ends_of_connections(served: Served) -> None:
    """Who wants its connection closed, or kept in the old way, has it so."""
    await served.ask(TAG)
    async with connect(served.port, served.tls) as wire:
        answer = await wire.ask(TAG, headers={"Connection": "close"})
        assert answer.headers["Connection"] == "close"
        assert await wire.ended()
    async with connect(served.port, served.tls) as wire:
        answer = await wire.ask(TAG, headers={"Connection": "keep-alive"}, version="1.0")
        assert answer.headers["Connection"] == "keep-alive"
        assert (await wire.ask(TAG)).status == 200
    async with connect(served.port, served.tls) as wire:
        assert (await wire.ask(TAG, version="1.0")).headers["Connection"] == "close"
        assert await wire.ended()


async def test_draining(served: Served) -> None:
    """The next answer ends its connection."""
    async with connect(served.port, served.tls) as wire:
        await wire.ask(TAG)
        served.probes.state = State.DRAINING
        assert (await wire.ask(TAG)).headers["Connection"] == "close"
        assert await wire.ended()


async def test_the_client_may_name_its_request(served: Served) -> None:
    """As in any other answer."""
    async with connect(served.port, served.tls) as wire:
        await wire.ask(TAG)
        before = len(served.registry.asked)
        assert (await wire.ask(TAG, headers={"X-Request-ID": "mine"})).headers["X-Request-ID"] == "mine"
        assert (await wire.ask(TAG, headers={"X-Request-ID": "mi ne"})).headers["X-Request-ID"] != "mi ne"
    assert len(served.registry.asked) == before


async def test_a_body_is_read_first(served: Served) -> None:
    """Whatever it is to a GET: its bytes are not the next request."""
    async with connect(served.port, served.tls) as wire:
        await wire.ask(TAG)
        wire.send(TAG, headers={"Content-Length": "1000000"})
        wire.writer.write(b"GET " * 250_000)
        assert (await wire.answer()).status == 200
        assert (await wire.ask(TAG)).status == 200


async def test_a_connection_lasts(served: Served) -> None:
    """However many answers it was given again."""
    async with connect(served.port, served.tls) as wire:
        for _ in range(200):
            assert (await wire.ask(TAG)).status == 200
    assert len(served.registry.asked) == 1


async def test_requests_in_one_piece(served: Served) -> None:
    """Answered in their order, whatever each needs; one that comes in two pieces too."""
    other = f"/v2/sample/manifests/{next(tag for tag in SAMPLE.tags if tag != 'latest')}"
    targets = [TAG, other, TAG, "/v2/", BLOB, TAG]
    async with connect(served.port, served.tls) as wire:
        expected = [but_for_the_id(await wire.ask(target)) for target in targets]
        gate = served.registry.hold("manifest")
        served.app.forget()
        for target in targets:
            wire.send(target)
        await asyncio.sleep(0.01)
        gate.set()
        assert [but_for_the_id(await wire.answer()) for _ in targets] == expected
        wire.writer.write(f"GET {TAG} HTTP/1.1\r\nHo".encode())
        await asyncio.sleep(0.01)
        wire.writer.write(b"st: mirror\r\n\r\n")
        assert but_for_the_id(await wire.answer()) == expected[0]


async def test_a_second_later_the_registry_is_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it knows of freshness, rights and files counts then."""
    monkeypatch.setattr(again, "_FOR", 0.05)
    await served.ask(TAG)
    before = len(served.registry.asked)
    await asyncio.sleep(0.06)
    await served.ask(TAG)
    assert len(served.registry.asked) == before + 1


@pytest.mark.parametrize("result", sorted(set(Result) - {Result.HIT}))
async def test_only_hits_are(served: Served, result: Result) -> None:
    """What upstream was asked for, or could not be, is asked for again."""
    served.registry.outcome = Outcome(result)
    for expected in (1, 2):
        await served.ask(TAG)
        assert len(served.registry.asked) == expected


async def test_what_changed_is_told_at_once(served: Served) -> None:
    """Also to those whose answer was under way when it changed."""
    await served.ask(TAG)
    moved = next(digest for tag, digest in SAMPLE.tags.items() if digest != SAMPLE.tags["latest"])
    served.registry.tag(SAMPLE.repository, "latest", moved)
    served.app.forget()
    assert (await served.ask(TAG)).headers["Docker-Content-Digest"] == moved

    gate = served.registry.hold("manifest")
    late = asyncio.get_running_loop().create_task(served.ask(DIGEST))
    while not served.app.inflight:
        await asyncio.sleep(0.001)
    served.app.forget()
    gate.set()
    await late
    before = len(served.registry.asked)
    await served.ask(DIGEST)
    assert len(served.registry.asked) == before + 1


async def test_who_takes_nothing_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though every answer is given again: what waits for a client stays small, and ends in time."""
    monkeypatch.setattr(again, "_FOR", 60)
    registry = MemoryRegistry()
    digest = registry.put_blob(OTHER, b"x" * 30_000)
    served = await serve(registry, write_timeout=0.1)
    target = f"/v2/other/blobs/{digest}"
    await served.ask(target)
    client = await asyncio.to_thread(take_nothing, served.port, None, target)
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    labels = {"registry": "docker.io", "kind": "blob", "result": "hit"}
    with client:
        for number in range(3, 1000):
            client.sendall(request)
            while not served.app.inflight and served.value("response_bytes_total", **labels) < number * 30_000:
                await asyncio.sleep(0)
            if served.app.inflight:
                break
        else:
            raise AssertionError("30 MB wait for a client")
        await served.idle()
    assert [line["aborted"] for line in await served.logged()][-2:] == [False, True]


async def test_they_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes in all, whatever is asked for, however often; what is large is not kept."""
    monkeypatch.setattr(again, "_LIMIT", 200_000)
    monkeypatch.setattr(again, "_FOR", 0)
    registry = MemoryRegistry()
    sizes = [0, 1, 10_000, 32_768, 32_769, 65_536, *range(1000, 30_000, 1000)]
    digests = [registry.put_blob(OTHER, bytes([number]) * size) for number, size in enumerate(sizes)]
    served = await serve(registry)
    kept = served.app._again
    long = f"/v2/other/blobs/{digests[1]}?{'x' * 512}"
    largest = 0
    async with connect(served.port) as wire:
        for digest, size in [*zip(digests, sizes, strict=True)] * 3:
            await wire.ask(f"/v2/other/blobs/{digest}", "HEAD")
            await wire.ask(long)
            await wire.ask(f"/v2/other/blobs/{digest}")
            assert len((await wire.ask(f"/v2/other/blobs/{digest}")).body) == size
            largest = max(largest, kept._bytes)
            assert kept._bytes == sum(map(len, kept._answers.values())) <= 200_000
            assert all(len(one.body) <= 32_768 for one in kept._answers.values())
            assert ("GET", long) not in kept._answers
    assert largest > 100_000
