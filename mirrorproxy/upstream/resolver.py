"""Looking up names in threads of its own.

Where the network swallows questions, each takes the system half a minute to give up, and cannot be ended. In the event
loop's threads, of which there are as many as cores and four more, the disk would wait behind those of seven registries.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import aiohttp

_THREADS = 4  # of one upstream: hosts that can be looked up at a time


class Resolver(aiohttp.ThreadedResolver):
    """The system's: /etc/hosts and all. aiodns, if it is installed, would be taken instead."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="names")
        super().__init__(cast("asyncio.AbstractEventLoop", _Lookups(self._threads)))

    async def close(self) -> None:
        """Look up no more; what is asked still ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Lookups:
    """What aiohttp's resolver asks of an event loop."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def getaddrinfo(self, host: str, port: int, **how: Any) -> object:
        """As the event loop's."""
        lookup = partial(socket.getaddrinfo, host, port, **how)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lookup)

    async def getnameinfo(self, address: Any, flags: int = 0) -> object:
        """As the event loop's."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, socket.getnameinfo, address, flags)
