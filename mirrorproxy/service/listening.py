"""The sockets on which the service listens."""

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from aiohttp import web

from mirrorproxy.config import ListenAddress
from mirrorproxy.service.tls import Certificate

log = logging.getLogger(__name__)

_BACKLOG = 1024  # 1,000 clients at once wait 6 s for SYN retries with aiohttp's 128
_END = 0.1  # seconds for what is answered still, after the grace time; 0 would be for ever (aiohttp's ceil_timeout)
_FEW = 4096  # descriptors: two a client, one a connection upstream, 512 kept open


class Listening:
    """The listening sockets over one server. `start` opens them all or none."""

    def __init__(self, server: web.Server, certificate: Certificate | None) -> None:
        self._runner = web.ServerRunner(server, shutdown_timeout=_END)
        self._certificate = certificate
        self._files: list[Path] = []

    async def start(self, addresses: Iterable[ListenAddress], inherited: Sequence[socket.socket] = ()) -> None:
        """Listen at `addresses`, or on sockets that listen there already. Raises `OSError` with the address where that
        fails.
        """
        await self._runner.setup()
        context = None if self._certificate is None else self._certificate.context
        for taken in inherited:  # their files are not ours to remove
            await web.SockSite(self._runner, taken, ssl_context=context, backlog=_BACKLOG).start()
        if inherited:
            return
        for address in addresses:
            site: web.BaseSite
            if address.path is not None:
                _make_way(address.path)
                site = web.UnixSite(self._runner, address.path, ssl_context=context, backlog=_BACKLOG)
            else:
                site = web.TCPSite(
                    self._runner, address.host, address.port, ssl_context=context, backlog=_BACKLOG, reuse_address=True
                )
            await site.start()
            if address.path is not None:
                self._files.append(address.path)

    async def close(self) -> None:
        """Take no more connections."""
        for site in list(self._runner.sites):
            await site.stop()
        while self._files:
            self._files.pop().unlink(missing_ok=True)

    async def aclose(self) -> None:
        """End the connections too."""
        await self.close()
        await self._runner.cleanup()


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
            raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: unix:{path}")


def raise_file_limit() -> int:
    """Take as many descriptors as the machine grants; how many clients at once these are enough for.

    Two for each client, one for its transfer upstream; the rest is for what is kept open. Says so where they are few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < _FEW:
        log.warning("only %d file descriptors are granted (ulimit -n): %d clients at once", hard, hard // 4)
    return hard // 4
