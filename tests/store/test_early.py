"""Bytes that wait in memory for the hash: which are kept, how many, and what they save."""

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.names import Digest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.early import Allowance, Early
from mirrorproxy.store.ingest import Ingest, Partials

KIB = 1 << 10
PIECE = 64 * KIB
DATA = random.Random(3).randbytes(40 * PIECE)


@pytest.fixture
async def partials(tmp_path: Path) -> AsyncIterator[Partials]:
    """Partial content in a temporary folder."""
    store = BlobStore(tmp_path)
    await asyncio.to_thread(store.prepare)
    yield Partials(tmp_path / "partial", store)
    await store.aclose()


@pytest.fixture
def read_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what ingests read from their files."""
    sizes: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        if threading.current_thread().name.startswith("ingest "):
            sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    return sizes


async def write(ingest: Ingest, data: bytes, *pieces: int) -> None:
    """Write these pieces, in this order."""
    for piece in pieces:
        await ingest.write(piece * PIECE, data[piece * PIECE : (piece + 1) * PIECE])
    await ingest.settle()


async def test_what_came_early_is_not_read_back(partials: Partials, read_back: list[int]) -> None:
    """Four connections side by side: the hash takes all of it from memory, and what it kept is given back."""
    ingest = await partials.open(Digest.of(DATA))
    await write(ingest, DATA, *(part * 10 + step for step in range(10) for part in range(4)))
    ingest.total = len(DATA)
    await ingest.verify()
    assert read_back == []
    await ingest.commit()
    ingest.release()
    assert repr(partials._allowance) == f"<Allowance 0 of {32 << 20}>"


async def test_only_what_did_not_fit_is_read_back(
    partials: Partials, read_back: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes nearest to the front are those that stay."""
    monkeypatch.setattr(partials, "_allowance", Allowance(8 * PIECE))
    ingest = await partials.open(Digest.of(DATA))
    await write(ingest, DATA, *range(39, 0, -1), 0)
    ingest.total = len(DATA)
    await ingest.verify()
    assert sum(read_back) == 31 * PIECE
    await ingest.commit()
    ingest.release()


async def test_what_was_here_before_is_read_back_beside_what_comes_early(
    partials: Partials, read_back: list[int]
) -> None:
    """After a restart: a part in the middle was on the disk, another comes early."""
    ingest = await partials.open(Digest.of(DATA))
    await write(ingest, DATA, *range(10, 20))
    await ingest.close()
    ingest.release()
    ingest = await partials.open(Digest.of(DATA))
    await write(ingest, DATA, *range(20, 40), *range(10))
    ingest.total = len(DATA)
    await ingest.verify()
    assert sum(read_back) == 10 * PIECE
    await ingest.commit()
    ingest.release()


async def test_many_share_the_memory(partials: Partials, read_back: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All ingests together keep no more than is allowed; what ends in any way gives its share back."""
    allowance = Allowance(20 * PIECE)
    monkeypatch.setattr(partials, "_allowance", allowance)
    contents = [DATA[number:] for number in range(1, 7)]
    ingests = [await partials.open(Digest.of(content)) for content in contents]
    for number, (ingest, content) in enumerate(zip(ingests, contents, strict=True), 1):
        await write(ingest, content, *range(1, 11))
        async with asyncio.timeout(5):
            while allowance._taken < min(10 * number, 20) * PIECE:  # its thread keeps them after it told of them
                await asyncio.sleep(0.001)
    assert repr(allowance) == f"<Allowance {20 * PIECE} of {20 * PIECE}>"
    await ingests[0].close()
    await ingests[1].discard()
    assert repr(allowance) == f"<Allowance 0 of {20 * PIECE}>"
    for ingest in ingests[2:]:
        await ingest.discard()
    for ingest in ingests:
        ingest.release()
    assert read_back == []


async def test_a_restart_keeps_nothing(partials: Partials) -> None:
    """The bytes that were forgotten are not hashed after all."""
    ingest = await partials.open(Digest.of(DATA))
    await write(ingest, bytes(len(DATA)), *range(5, 9))
    await ingest.restart()
    await write(ingest, DATA, *range(40))
    ingest.total = len(DATA)
    await ingest.verify()
    await ingest.commit()
    ingest.release()


@given(
    limit=st.integers(0, 20).map(lambda pieces: pieces * 16 * KIB),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 40 * KIB)), max_size=60),
)
def test_never_more_than_allowed_and_what_is_kept_is_right(limit: int, steps: list[tuple[int, int, int]]) -> None:
    """Any course of keeping and taking, by several ingests."""
    allowance = Allowance(limit)
    keepers = [Early(allowance) for _ in range(3)]
    given_to: dict[tuple[int, int], bytes] = {}
    for who, offset, size in steps:
        if who == 3:
            for number, keeper in enumerate(keepers):
                data = keeper.take(offset)
                assert data is None or data == given_to[number, offset]
                assert keeper.take(offset) is None
        else:
            data = bytes([size % 251]) * size
            given_to[who, offset] = data
            keepers[who].keep(offset, data)
        assert allowance._taken == sum(
            max(len(chunk), 16 * KIB) for keeper in keepers for chunk in keeper._chunks.values()
        )
        assert allowance._taken <= limit
    for keeper in keepers:
        keeper.clear()
        assert keeper.next(-1) is None
    assert allowance._taken == 0
