"""The sockets on which the service listens."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from mirrorproxy.config import ListenAddress
from mirrorproxy.service.door import Door
from mirrorproxy.service.inherited import address_of
from mirrorproxy.service.tls import Certificate
from mirrorproxy.web.server import Server

log = logging.getLogger(__name__)

_BACKLOG = 1024  # 1,000 clients at once wait 6 s for SYN retries with aiohttp's 128
_END = 0.1  # seconds for what is answered still, after the grace time; 0 would be for ever (aiohttp's ceil_timeout)
_FEW = 4096  # descriptors: two a client, one a connection upstream, 512 kept open
_OURS = 48  # descriptors: for the index, the log and what else is open before anybody comes


class Listening:
    """The listening sockets over one server, for `most` connections at a time. `start` opens them all or none.

    `setting` is where their addresses come from, for who has to change one. `addresses` are those of `start`, with the
    port that the system chose in place of 0.
    """

    def __init__(self, server: Server, certificate: Certificate | None, most: int, setting: str) -> None:
        self._runner = web.ServerRunner(server, shutdown_timeout=_END)
        self._door = Door(server, None if certificate is None else certificate.context, most)
        self._setting = setting
        self._files: list[Path] = []
        self.addresses: list[str] = []

    async def start(self, addresses: Iterable[ListenAddress], inherited: Sequence[socket.socket] = ()) -> None:
        """Listen at `addresses`, or on sockets that listen there already. Raises `OSError` with the address and the
        setting where that fails.
        """
        await self._runner.setup()
        sockets = list(inherited)  # their files are not ours to remove
        self.addresses = [address_of(each) for each in inherited]
        with contextlib.ExitStack() as failed:
            for address in () if inherited else addresses:
                try:
                    opened = await _opened(address)
                except OSError as error:
                    raise OSError(error.errno, f"{address} ({self._setting}): {_reason(error)}") from None
                self.addresses += [str(address)] if address.path or address.port else map(address_of, opened)
                for each in opened:
                    failed.callback(each.close)
                sockets += opened
                if address.path is not None:
                    self._files.append(address.path)
            failed.pop_all()
        for each in sockets:
            each.listen(_BACKLOG)
        self._door.open(sockets)

    async def close(self) -> None:
        """Take no more connections."""
        await self._door.close()
        while self._files:
            self._files.pop().unlink(missing_ok=True)

    async def aclose(self) -> None:
        """End the connections too."""
        await self.close()
        await self._runner.cleanup()


async def _opened(address: ListenAddress) -> list[socket.socket]:
    return await _tcp(address) if address.path is None else [_unix(address.path)]


def _reason(error: OSError) -> str:
    """Without the address, which asyncio's own messages have in a form of its own."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


async def _tcp(address: ListenAddress) -> list[socket.socket]:
    """Sockets at all that the host of `address` stands for. Raises `OSError`."""
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, address.host, address.port, reuse_address=True, start_serving=False
    )
    try:
        return [each.dup() for each in server.sockets]
    finally:
        server.close()


def _unix(path: Path) -> socket.socket:
    """A socket at `path`. Raises `OSError`."""
    _make_way(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
    except OSError:
        made.close()
        raise
    return made


def _make_way(path: Path) -> None:
    """Remove the socket of a service that was killed. Raises `OSError` where one listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket():  # of a plain file the system says the same
                path.unlink(missing_ok=True)
        except OSError:
            return  # nothing is there, or it is not ours to use: listening will tell
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class Clients(NamedTuple):
    """How many requests there may be at once, over how many connections."""

    requests: int
    connections: int


def raise_file_limit() -> Clients:
    """Take as many descriptors as the machine grants; what these are enough for.

    A request may take four: its connection, a copy of that, the file of its blob, the connection upstream. As many
    connections again may be idle. Says so where they are few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    requests = max(8, (hard - _OURS) // 5)
    if hard < _FEW:
        log.warning("only %d file descriptors are granted (ulimit -n): %d requests at once", hard, requests)
    return Clients(requests, 2 * requests)
