"""The process around the service: its event loop and its signals."""

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Callable

from mirrorproxy.config import ConfigError, Loaded
from mirrorproxy.errors import CacheFailed
from mirrorproxy.service.logs import set_up
from mirrorproxy.service.service import Service
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)


def serve(loaded: Loaded, reload: Callable[[], Loaded]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. SIGHUP serves by what `reload` gives from then on.

    A second SIGTERM or SIGINT ends the grace time of running transfers.
    """
    set_up(loaded.settings.log)
    try:
        asyncio.run(_serve(loaded, reload))
    except (CacheFailed, OSError) as error:
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        log.error("cannot start: %s%s", error, "; choose another address with --listen" if busy else "")
        return os.EX_UNAVAILABLE
    return os.EX_OK


async def _serve(loaded: Loaded, reload: Callable[[], Loaded]) -> None:
    for warning in loaded.warnings:
        log.warning("%s", warning)
    if loaded.settings.server.workers != 1:
        log.info("server.workers is %s; one process serves", loaded.settings.server.workers)
    service = Service(loaded.settings)
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    tasks = Tasks()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, told.put_nowait, number)
    try:
        await service.start()
        while await told.get() is signal.SIGHUP:
            await _reload(service, reload)
        both = (tasks.start(service.stop(), name="stop"), tasks.start(_next_end(told), name="second signal"))
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await tasks.aclose()
    finally:
        await service.aclose()
    log.info("stopped")


async def _reload(service: Service, reload: Callable[[], Loaded]) -> None:
    try:
        loaded = await asyncio.to_thread(reload)
    except ConfigError as error:
        for problem in error.problems:
            log.error("not loaded anew, the old settings stay: %s", problem)
        return
    for warning in loaded.warnings:
        log.warning("%s", warning)
    service.reload(loaded.settings)


async def _next_end(told: asyncio.Queue[signal.Signals]) -> None:
    while await told.get() is signal.SIGHUP:
        log.info("stopping already; the configuration is not loaded anew")
