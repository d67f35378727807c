"""The process around the service: its event loop and its signals."""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

from mirrorproxy import heap, tracing
from mirrorproxy.config import ConfigError, Loaded
from mirrorproxy.errors import CacheFailed
from mirrorproxy.logs import set_up
from mirrorproxy.service.notify import Notifier
from mirrorproxy.service.service import Service
from mirrorproxy.tasks import Tasks
from mirrorproxy.workers.pool import processes
from mirrorproxy.workers.template import Template

log = logging.getLogger(__name__)

_END = 15.0  # seconds after the grace time, to keep what was downloaded and to write what is cached into index.json


def serve(loaded: Loaded, reload: Callable[[], Loaded], inherited: Sequence[socket.socket] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. SIGHUP serves by what `reload` gives from then on.

    A second SIGTERM or SIGINT ends the grace time of running transfers. Listens on the sockets that are `inherited`,
    where there are any, and on `server.listen` else.
    """
    set_up(loaded.settings.log.level, loaded.settings.log.format)
    notifier = Notifier.from_environment(os.environ)
    heap.share_one()
    try:
        template = Template.copy() if processes(loaded.settings.server.workers) > 1 else None
        asyncio.run(_serve(loaded, reload, inherited, notifier, template))
    except (CacheFailed, OSError) as error:
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        words = (isinstance(error, OSError) and error.strerror) or error
        log.error("cannot start: %s%s", words, "; choose another address there" if busy else "")
        return os.EX_UNAVAILABLE
    return os.EX_OK


async def _serve(
    loaded: Loaded,
    reload: Callable[[], Loaded],
    inherited: Sequence[socket.socket],
    notifier: Notifier,
    template: Template | None,
) -> None:
    for warning in loaded.warnings:
        log.warning("%s", warning)
    tracing.set_up(os.environ)
    service = Service(loaded.settings, inherited, template)
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    tasks = Tasks()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, told.put_nowait, number)
    try:
        await service.start()
        notifier.ready(service.status)
        tasks.start(notifier.keep_watchdog(), name="watchdog")
        while await told.get() is signal.SIGHUP:
            notifier.reloading()
            await _reload(service, reload)
            notifier.ready(service.status)
        notifier.stopping("running transfers get time to end", service.grace + _END)
        both = (tasks.start(service.stop(), name="stop"), tasks.start(_next_end(told), name="second signal"))
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await tasks.aclose()
    finally:
        await service.aclose()
        await tracing.aclose()
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
