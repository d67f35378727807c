"""The target of a redirect is used again for the other parts of a blob, as long as it answers."""

import asyncio
import random
from contextlib import aclosing

import pytest

from mirrorproxy.errors import RateLimited, Unreachable
from mirrorproxy.names import Digest
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE

DATA = random.Random(8).randbytes(300_000)
DIGEST = Digest.of(DATA)


@pytest.fixture(autouse=True)
def _stocked(hub: Hub) -> None:
    """There is a layer to pull."""
    hub.add_blob(ALPINE.name, DATA)


def asked(hub: Hub) -> list[str]:
    """Who was asked, and the status that it answered."""
    return [f"{seen.kind} {seen.status}" for seen in hub.log]


async def part(upstream: Failover, start: int, end: int | None) -> bytes:
    """A part of the blob."""
    async with aclosing(await upstream.blob(ALPINE, DIGEST, start, end)) as blob:
        return await read(blob, start, end)


async def test_further_parts_ask_the_storage_alone(hub: Hub, upstream: Failover) -> None:
    """One round trip each, and the token stays away from the storage."""
    await part(upstream, 0, None)
    hub.log.clear()
    assert await part(upstream, 100_000, 200_000) == DATA[100_000:200_000]
    assert await part(upstream, 200_000, None) == DATA[200_000:]
    assert asked(hub) == ["cdn 206", "cdn 206"]
    assert all(seen.authorization is None for seen in hub.log)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500])
async def test_a_signature_that_ended_is_looked_up_anew(hub: Hub, upstream: Failover, status: int) -> None:
    """The storage refuses: the registry is asked for a new redirect within the same request."""
    await part(upstream, 0, None)
    hub.log.clear()
    hub.script.next("cdn", Quirk(status=status))
    assert await part(upstream, 100_000, None) == DATA[100_000:]
    assert asked(hub) == [f"cdn {status}", "blob 307", "cdn 206"]


async def test_a_connection_that_broke_is_followed_by_a_fresh_look_up(hub: Hub, upstream: Failover) -> None:
    """What led to a transfer that broke is not used for its continuation."""
    hub.script.next("cdn", Quirk(cut=100_000))
    with pytest.raises(Unreachable):
        await part(upstream, 0, None)
    hub.log.clear()
    assert await part(upstream, 100_000, None) == DATA[100_000:]
    assert asked(hub) == ["blob 307", "cdn 206"]


async def test_the_whole_is_always_asked_of_the_registry(hub: Hub, upstream: Failover) -> None:
    """Its word is what says that the repository has the blob, and that we may have it."""
    await part(upstream, 0, None)
    hub.log.clear()
    await asyncio.gather(part(upstream, 0, None), part(upstream, 0, None))
    assert len(hub.seen("blob")) == 2


async def test_a_refused_part_keeps_nobody_from_whole_blobs(hub: Hub, upstream: Failover) -> None:
    """One more connection for a large blob was too many: other pulls go on, whatever `Retry-After` says."""
    await part(upstream, 0, None)
    hub.script.when("cdn", lambda seen: Quirk(status=429, headers={"Retry-After": "60"}) if seen.range else Quirk())
    hub.script.when("blob", lambda seen: Quirk(status=429, headers={"Retry-After": "60"}) if seen.range else Quirk())
    with pytest.raises(RateLimited):
        await part(upstream, 100_000, None)
    assert await part(upstream, 0, None) == DATA
