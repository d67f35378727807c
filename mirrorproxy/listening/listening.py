"""The connections of one server: how many, and until when."""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Sequence
from typing import NamedTuple

from aiohttp import web

from mirrorproxy.listening.certificate import Certificate
from mirrorproxy.listening.door import Door
from mirrorproxy.listening.lost import forgive
from mirrorproxy.web.server import Server

log = logging.getLogger(__name__)

BACKLOG = 1024  # 1,000 clients at once wait 6 s for SYN retries with aiohttp's 128
_END = 0.1  # seconds for what is answered still, after the grace time; 0 would be for ever (aiohttp's ceil_timeout)
_FEW = 4096  # descriptors: two a client, one a connection upstream, 512 kept open
_LEAST = 8  # requests at once: fewer are no service
_OURS = 48  # descriptors: for the index, the log and what else is open before anybody comes


class Listening:
    """One server on sockets that are bound, for `most` connections at a time."""

    def __init__(self, server: Server, certificate: Certificate | None, most: int) -> None:
        self._runner = web.ServerRunner(server, shutdown_timeout=_END)
        self._door = Door(server, None if certificate is None else certificate.context, most)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Listen on these, which are closed by `close`. Raises `OSError`."""
        forgive(asyncio.get_running_loop())
        await self._runner.setup()
        for each in sockets:
            each.listen(BACKLOG)
        self._door.open(list(sockets))

    async def close(self) -> None:
        """Take no more connections."""
        await self._door.close()

    async def aclose(self) -> None:
        """End the connections too."""
        await self.close()
        await self._runner.cleanup()


class Clients(NamedTuple):
    """How many requests there may be at once, over how many connections."""

    requests: int
    connections: int


def raise_file_limit() -> Clients:
    """Take as many descriptors as the machine grants; what these are enough for.

    A request may take four: its connection, a copy of that, the file of its blob, the connection upstream. As many
    connections again may be idle. Says so where they are few; raises `OSError` where they are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    requests = (hard - _OURS) // 5
    if requests < _LEAST:
        least = _OURS + 5 * _LEAST
        raise OSError(errno.EMFILE, f"{hard} file descriptors are granted (ulimit -Hn), {least} are the least")
    if hard < _FEW:
        log.warning("only %d file descriptors are granted (ulimit -n): %d requests at once", hard, requests)
    return Clients(requests, 2 * requests)
