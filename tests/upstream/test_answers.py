"""How much of an answer is read at a time."""

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from mirrorproxy.upstream.answers import Answer


async def test_the_first_bytes_are_read_in_small_pieces_and_the_rest_in_large_ones() -> None:
    """What a client waits for is not kept waiting by what comes after it; nor in the next answer of a connection."""

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=bytes(4 << 20))

    application = web.Application()
    application.router.add_get("/", serve)
    async with TestServer(application) as server, aiohttp.ClientSession() as session:
        response = await session.get(server.make_url("/"))
        assert response.connection is not None
        connection = response.connection.transport
        with Answer(response, home=True, idle_timeout=5) as answer:
            sizes = [read_at_once(connection)]
            left = 4 << 20
            while left:
                left -= len(await answer.chunk())
                sizes.append(read_at_once(connection))
        assert sizes[:3] == [64 << 10, 64 << 10, 512 << 10]
        assert read_at_once(connection) == 64 << 10
        second = await session.get(server.make_url("/"))
        assert second.connection is not None
        assert second.connection.transport is connection
        second.close()


def read_at_once(transport: object) -> int:
    """Bytes that asyncio's transport reads from its socket in one step."""
    size = getattr(transport, "max_size", None)
    assert isinstance(size, int), "asyncio has it no more: mirrorproxy.upstream.answers sets what nobody reads"
    return size
