"""Clients of a running service, over the connections of `tests.web.wire`: every byte as it came."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from multidict import CIMultiDict

from tests.web.wire import LIMIT, Answer, Wire

PATIENCE = 30.0
"""Seconds that any answer may take."""


@asynccontextmanager
async def connect(address: str, tls: ssl.SSLContext | None = None, *, limit: int = LIMIT) -> AsyncIterator[Wire]:
    """A connection to an address as `server.listen` has it. `limit`: bytes that are read ahead."""
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=limit)
    else:
        host, _, port = address.rpartition(":")
        name = None if tls is None else "localhost"
        reader, writer = await asyncio.open_connection(
            host.strip("[]"), int(port), ssl=tls, server_hostname=name, limit=limit
        )
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


async def ask(
    address: str,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own."""
    async with asyncio.timeout(PATIENCE), connect(address, tls) as wire:
        return await wire.ask(target, method, headers)


async def say(address: str, data: bytes) -> Answer:
    """Whatever `data` is, and the answer to it."""
    async with asyncio.timeout(PATIENCE), connect(address) as wire:
        wire.writer.write(data)
        return await wire.answer()


async def begin(
    wire: Wire, target: str, size: int, headers: Mapping[str, str] | None = None
) -> tuple[CIMultiDict[str], bytes]:
    """Ask for `target` and read the first `size` bytes of its body, and no more."""
    async with asyncio.timeout(PATIENCE):
        wire.send(target, headers=headers)
        status, answered = await wire.head()
        assert status in (200, 206), status
        return answered, await wire.reader.readexactly(size)


async def rest(wire: Wire) -> bytes:
    """What comes up to the end of the connection, however that ends."""
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        try:
            while piece := await wire.reader.read(LIMIT):
                data += piece
        except ConnectionError:
            pass
    return bytes(data)


def code(answer: Answer) -> str:
    """The code of the one error in an OCI error body."""
    error: dict[str, Any] = answer.error
    return str(error["code"])


def names(answer: Answer, key: str) -> list[str]:
    """A list of strings in a JSON body."""
    return [str(each) for each in json.loads(answer.body)[key]]
