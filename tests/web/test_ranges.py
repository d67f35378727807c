"""Ranges of blobs: against a reference of their own, for files and streams, whole and growing."""

import asyncio
import random
import re
from typing import Literal

import pytest

from mirrorproxy.names import Digest, repository
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve, Served
from tests.web.wire import connect

REPOSITORY = repository("docker.io", "library/a")
DATA = random.Random(2).randbytes(200_000)
SIZE = len(DATA)
DIGEST = Digest.of(DATA)
TARGET = f"/v2/a/blobs/{DIGEST}"

Kind = Literal["file", "memory", "stream"]


def reference(header: str, size: int) -> tuple[int, int] | Literal["whole", "unsatisfiable"]:
    """RFC 9110, 14.1.2 and 14.2, written out: the first and the last byte that a Range header means."""
    unit, equals, value = header.partition("=")
    if unit.lower() != "bytes" or not equals or "," in value:
        return "whole"
    first, dash, last = value.partition("-")
    if not dash or not all(re.fullmatch("[0-9]*", part) for part in (first, last)) or not (first or last):
        return "whole"
    if not first:
        length = min(int(last), size)
        return (size - length, size - 1) if length else "unsatisfiable"
    if last and int(last) < int(first):
        return "whole"
    if int(first) >= size:
        return "unsatisfiable"
    return int(first), min(int(last), size - 1) if last else size - 1


RANGES = [
    *("bytes=0-0", "bytes=0-", "bytes=1-", "bytes=0-199999", "bytes=0-200000", "bytes=199999-", "bytes=200000-"),
    *("bytes=-1", "bytes=-0", "bytes=-200000", "bytes=-200001", "bytes=5-4", "bytes=65536-131071", "bytes=100-99999"),
    *("bytes=199999-199999", "bytes=200000-200001", "bytes=999999999-", "bytes=-", "bytes=", "bytes", "items=0-1"),
    *(
        "bytes=0-1,5-6",
        "bytes=0-1,",
        "BYTES=3-4",
        "bytes = 3-4",
        "bytes=+3-4",
        "bytes=3--4",
        "bytes=0x1-2",
        "bytes=1 - 2",
    ),
    *("bytes=" + "9" * 17 + "-", "bytes=0-" + "9" * 17, "bytes=\u0663-4".encode().decode("latin-1")),
]


@pytest.fixture(params=["file", "memory", "stream"])
async def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A server with one blob."""
    registry = MemoryRegistry(request.param)
    registry.put_blob(REPOSITORY, DATA)
    return await serve(registry)


async def test_ranges_are_those_of_the_reference(served: Served) -> None:
    """206 with its exact bytes, 416 with the size, or the whole; one after the other on one connection."""
    async with connect(served.port) as wire:
        for header in RANGES:
            answer = await wire.ask(TARGET, headers={"Range": header})
            expected = reference(header, SIZE)
            if expected == "whole":
                assert (answer.status, answer.body) == (200, DATA), header
                assert "Content-Range" not in answer.headers
            elif expected == "unsatisfiable":
                assert answer.status == 416, header
                assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
                assert answer.error["code"] == "RANGE_INVALID"
                assert not {"ETag", "Cache-Control"} & set(answer.headers), "what is wrong with a range is not for ever"
            else:
                first, last = expected
                assert (answer.status, answer.body) == (206, DATA[first : last + 1]), header
                assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
                assert int(answer.headers["Content-Length"]) == last - first + 1
                assert answer.headers["ETag"] == f'"{DIGEST}"'


async def test_only_what_is_wanted_is_asked_for(served: Served) -> None:
    """An upstream need send no more than the range; the size for the last bytes comes from a HEAD."""
    await served.ask(TARGET, headers={"Range": "bytes=5-9"})
    await served.ask(TARGET, headers={"Range": "bytes=7-"})
    await served.ask(TARGET, headers={"Range": "bytes=-10"})
    assert served.registry.asked == [
        f"blob docker.io/library/a {DIGEST} 5-10",
        f"blob docker.io/library/a {DIGEST} 7-",
        f"stat docker.io/library/a {DIGEST}",
        f"blob docker.io/library/a {DIGEST} 199990-200000",
    ]


async def test_a_head_ignores_ranges(served: Served) -> None:
    """RFC 9110, 14.2: Range is for GET."""
    answer = await served.ask(TARGET, "HEAD", {"Range": "bytes=5-9"})
    assert answer.status == 200
    assert answer.headers["Content-Length"] == str(SIZE)
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        (f'"{DIGEST}"', 206),
        (DIGEST, 206),
        (f'W/"{DIGEST}"', 200),
        ('"other"', 200),
        ("Tue, 24 Nov 2026 02:33:45 GMT", 200),
    ],
)
async def test_if_range(served: Served, if_range: str, status: int) -> None:
    """The range holds while the client's part is of this very blob, which only a strong ETag can say."""
    answer = await served.ask(TARGET, headers={"Range": "bytes=5-9", "If-Range": if_range})
    assert answer.status == status
    assert answer.body == (DATA[5:10] if status == 206 else DATA)


async def test_an_empty_blob(served: Served) -> None:
    """Has no bytes to ask for."""
    digest = served.registry.put_blob(REPOSITORY, b"")
    answer = await served.ask(f"/v2/a/blobs/{digest}")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    answer = await served.ask(f"/v2/a/blobs/{digest}", headers={"Range": "bytes=0-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */0")


async def test_a_range_of_a_growing_blob(served: Served) -> None:
    """What is there goes out at once, what is not when it comes; the rest of the blob need never come."""
    data = DATA[::-1]
    growth = served.registry.put_growing(REPOSITORY, data, available=100_000)
    async with connect(served.port) as wire:
        wire.send(f"/v2/a/blobs/{growth.digest}", headers={"Range": "bytes=50000-149999"})
        status, headers = await wire.head()
        assert (status, headers["Content-Range"]) == (206, f"bytes 50000-149999/{SIZE}")
        assert await wire.reader.readexactly(50_000) == data[50_000:100_000]
        growth.extend(120_000)
        assert await wire.reader.readexactly(20_000) == data[100_000:120_000]
        growth.extend(150_000)
        assert await wire.reader.readexactly(30_000) == data[120_000:150_000]
        assert (await wire.ask("/v2/")).status == 200
    await served.idle()


async def test_twenty_open_ended_ranges_closed_early(served: Served) -> None:
    """What containerd does: it asks to the end, reads its part and closes. Nothing stays open, nothing is an error."""

    async def part(start: int) -> bytes:
        async with connect(served.port, limit=1024) as wire:
            wire.send(TARGET, headers={"Range": f"bytes={start}-"})
            await wire.head()
            return await wire.reader.readexactly(100)

    starts = range(0, SIZE, 10_000)
    assert await asyncio.gather(*map(part, starts)) == [DATA[start : start + 100] for start in starts]
    await served.idle()


@pytest.mark.parametrize("header", ["bytes=5-9", "bytes=-5", "bytes=0-"])
async def test_no_range_without_a_size(serve: Serve, header: str) -> None:
    """A 206 has to tell the size: where nobody knows it the whole is sent, in chunks."""
    registry = MemoryRegistry("stream")
    growth = registry.put_growing(REPOSITORY, DATA, available=SIZE, size_known=False)
    growth.finish()
    served = await serve(registry)
    answer = await served.ask(TARGET, headers={"Range": header})
    assert (answer.status, answer.body, answer.complete) == (200, DATA, True)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert not {"Content-Length", "Accept-Ranges", "Content-Range"} & set(answer.headers)
    await served.idle()
