"""The sockets on which the service listens: opened all together, or none of them."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic

from mirrorproxy.config import ListenAddress
from mirrorproxy.listening.inherited import address_of
from mirrorproxy.listening.listening import BACKLOG

log = logging.getLogger(__name__)

_PATIENCE = 3.0  # seconds for the workers of a service that was killed to end
_LOOK_EVERY = 0.05  # seconds


class Sockets:
    """Sockets that are bound, a set of them for each process that accepts connections.

    `addresses` are those that were asked for, with the port that the system chose in place of 0. A TCP address has a
    socket a process (SO_REUSEPORT), among which the kernel divides the connections; any other is one socket that all
    of them share.
    """

    def __init__(self) -> None:
        self.sets: list[list[socket.socket]] = []
        self.addresses: list[str] = []
        self._files: list[Path] = []

    @classmethod
    def inherited(cls, sockets: Sequence[socket.socket], processes: int = 1) -> "Sockets":
        """Those that listen already; their files are not ours to remove."""
        self = cls()
        self.addresses = [address_of(each) for each in sockets]
        self.sets = [list(sockets), *([each.dup() for each in sockets] for _ in range(processes - 1))]
        return self

    @classmethod
    async def open(cls, addresses: Iterable[ListenAddress], setting: str, processes: int = 1) -> "Sockets":
        """Bind to `addresses`, which come from `setting`. Raises `OSError` that names both where one cannot be."""
        self = cls()
        self.sets = [[] for _ in range(processes)]
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            for address in addresses:
                try:
                    opened = _unix(address.path, processes) if address.path else await _tcp(address, processes)
                except OSError as error:
                    raise OSError(error.errno, f"{address} ({setting}): {_reason(error)}") from None
                for mine, theirs in zip(self.sets, opened, strict=True):
                    mine += theirs
                self.addresses += [str(address)] if address.path or address.port else map(address_of, opened[0])
                if address.path is not None:
                    self._files.append(address.path)
            failed.pop_all()
        return self

    def close(self) -> None:
        """Listen no more. What others hold of them is theirs to close."""
        for each in (each for some in self.sets for each in some):
            each.close()
        while self._files:
            self._files.pop().unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    """Without the address, which asyncio's own messages have in a form of its own."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


async def _tcp(address: ListenAddress, processes: int) -> list[list[socket.socket]]:
    """Sockets at all that the host of `address` stands for. Raises `OSError`."""
    if processes == 1:
        return [await _alone(address)]
    if address.port:
        _close(await _alone(address))
    first = await _bound(address, reuse_port=True)
    sets = [first]
    try:
        for _ in range(processes - 1):
            sets.append([])
            for each in first:
                sets[-1].append(_another(each))
        for each in (each for some in sets for each in some):
            each.listen(BACKLOG)  # now, and not when a worker has started: until then it looks free to others
    except OSError:
        for some in sets:
            _close(some)
        raise
    return sets


async def _alone(address: ListenAddress) -> list[socket.socket]:
    """Sockets where nobody else listens, which SO_REUSEPORT hides. Raises `OSError`.

    Where somebody does so with SO_REUSEPORT, it may be the last worker of a service that was killed.
    """
    until = monotonic() + _PATIENCE
    told = False
    while True:
        try:
            return await _bound(address, reuse_port=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() >= until or not await _is_shared(address):
                raise
        if not told:
            told = True
            log.warning("%s is in use still; trying again for %.0f s", address, _PATIENCE)
        await asyncio.sleep(_LOOK_EVERY)


async def _is_shared(address: ListenAddress) -> bool:
    """Does whoever listens there share it?"""
    try:
        _close(await _bound(address, reuse_port=True))
    except OSError:
        return False
    return True


async def _bound(address: ListenAddress, *, reuse_port: bool) -> list[socket.socket]:
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol,
        address.host,
        address.port,
        reuse_address=True,
        reuse_port=reuse_port,
        start_serving=False,
    )
    try:
        return [each.dup() for each in server.sockets]
    finally:
        server.close()


def _another(model: socket.socket) -> socket.socket:
    """One more socket bound to where `model` is. Raises `OSError`."""
    made = socket.socket(model.family, model.type)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if model.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(model.getsockname())
    except OSError:
        made.close()
        raise
    return made


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _unix(path: Path, processes: int) -> list[list[socket.socket]]:
    """A socket at `path`, and copies of it. Raises `OSError`."""
    _make_way(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        made.listen(BACKLOG)  # now: until then it looks to others as if it were left behind
    except OSError:
        made.close()
        raise
    return [[made], *([made.dup()] for _ in range(processes - 1))]


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
