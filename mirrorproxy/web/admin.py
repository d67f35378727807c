"""The operations over HTTP, on a unix socket in the cache directory that its owner alone may open. Never on a port.

    POST /operations/NAME    {"argument": ...}

    200   one event a line (NDJSON), each as it comes; the last one is `end` or `failed`. Empty lines say that it is
          still at work. A client that leaves ends the operation.
    400   {"message"}        not an object of arguments
    404   {"message"}        no such operation in this version

Every answer says the version in `Mirrorproxy-Version`.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path

from aiohttp import web

from mirrorproxy import __version__
from mirrorproxy.admin import place
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.operations import Unknown, carry_out, operation
from mirrorproxy.store.files import disk_errors
from mirrorproxy.tasks import Tasks

VERSION = "Mirrorproxy-Version"

_ALIVE_EVERY = 10.0  # seconds; a command gives up after 60 without a byte
_END = 0.1  # seconds for what is answered still; it is cancelled then, and the command is told
_LARGEST = 64 << 10  # bytes of arguments


class AdminServer:
    """Answers on the socket of `desk.directory`, from `start` to `aclose`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tasks = Tasks()
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_post("/operations/{name}", self._answer)
        app.on_response_prepare.append(_say_version)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_END)

    async def start(self) -> None:
        """Listen. A socket that a crash left is replaced: who has the directory knows that nobody listens there.

        Raises `CacheFailed`.
        """
        await self._runner.setup()
        listener = await asyncio.to_thread(_listener, self._desk.directory)
        await web.SockSite(self._runner, listener).start()

    async def aclose(self) -> None:
        """Listen no more, and end what runs."""
        await asyncio.to_thread(_remove, self._desk.directory)
        await self._runner.cleanup()
        await self._tasks.aclose()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        try:
            operation(name)
        except Unknown as error:
            return web.json_response({"message": error.message}, status=404)
        try:
            arguments = json.loads(await request.read())
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return web.json_response({"message": "the arguments are no JSON object"}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        alive = self._tasks.start(_keep_alive(response), name="admin: still at work")
        try:
            async with aclosing(self._lines(name, arguments)) as lines:
                async for line in lines:
                    await response.write(line)
            await response.write_eof()
        except ConnectionError:
            pass  # the command has left, before this was cancelled for it
        finally:
            alive.cancel()
        return response

    async def _lines(self, name: str, arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
        async with aclosing(carry_out(self._desk, name, arguments)) as events:
            async for event in events:
                yield json.dumps(event.document()).encode() + b"\n"


async def _keep_alive(response: web.StreamResponse) -> None:
    with contextlib.suppress(ConnectionError):  # the client left, and its operation is being cancelled
        while True:
            await asyncio.sleep(_ALIVE_EVERY)
            await response.write(b"\n")


async def _say_version(_: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers[VERSION] = __version__


def _listener(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with disk_errors("make the admin socket"), place.address(directory) as address:
            _remove(directory)
            listener.setblocking(False)
            os.fchmod(listener.fileno(), 0o600)  # Linux gives the file the mode that the socket has before
            listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        (directory / place.NAME).unlink()
