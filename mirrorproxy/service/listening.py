"""The sockets on which the service listens."""

import logging
import resource
from collections.abc import Iterable

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

    async def start(self, addresses: Iterable[ListenAddress]) -> None:
        """Listen. Raises `OSError` with the address where that fails."""
        await self._runner.setup()
        context = None if self._certificate is None else self._certificate.context
        for address in addresses:
            site: web.BaseSite
            if address.path is not None:
                address.path.unlink(missing_ok=True) if address.path.is_socket() else None
                site = web.UnixSite(self._runner, address.path, ssl_context=context, backlog=_BACKLOG)
            else:
                site = web.TCPSite(
                    self._runner, address.host, address.port, ssl_context=context, backlog=_BACKLOG, reuse_address=True
                )
            await site.start()

    async def close(self) -> None:
        """Take no more connections."""
        for site in list(self._runner.sites):
            await site.stop()

    async def aclose(self) -> None:
        """End the connections too."""
        await self._runner.cleanup()


def raise_file_limit() -> None:
    """Take as many descriptors as the machine grants; say so where that is few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < _FEW:
        log.warning("only %d file descriptors are granted (ulimit -n): about %d clients at once", hard, hard // 4)
