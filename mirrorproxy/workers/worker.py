"""A worker: answers clients, and asks the core what it does not know."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence

from mirrorproxy import heap, tracing
from mirrorproxy.listening.certificate import Certificate
from mirrorproxy.listening.listening import Listening, raise_file_limit
from mirrorproxy.logs import set_up, wants_json
from mirrorproxy.metrics import Metrics
from mirrorproxy.tasks import Tasks
from mirrorproxy.web.access import AccessLog
from mirrorproxy.web.app import LAST_REQUESTS, App
from mirrorproxy.web.probes import Probes, State
from mirrorproxy.workers.line import Answer, Line
from mirrorproxy.workers.remote import Remote
from mirrorproxy.workers.totals import Tally
from mirrorproxy.workers.words import Arguments, Orders

log = logging.getLogger(__name__)

_TELL_EVERY = 2.0  # seconds
_LOOK_EVERY = 0.5  # seconds
_FAREWELL = 1.0  # seconds for requests that were cut off to be put down in the log


def main(line: int, listening: Sequence[int]) -> int:
    """Serve over these descriptors until the core says so, or is gone; the exit status."""
    heap.share_one()
    asyncio.run(_serve(socket.socket(fileno=line), [socket.socket(fileno=each) for each in listening]))
    return os.EX_OK


async def _serve(end: socket.socket, sockets: list[socket.socket]) -> None:
    worker = Worker(end, sockets)
    try:
        await worker.ended.wait()
    finally:
        await worker.aclose()
        await tracing.aclose()


class Worker:
    """One worker. It `ended` when the core is gone, or the last request after the core said that it shall drain."""

    def __init__(self, end: socket.socket, sockets: list[socket.socket]) -> None:
        self.ended = asyncio.Event()
        self._sockets = sockets
        self._tasks = Tasks()
        self._line = Line(end, self._answer, self._told, self.ended.set)
        self._remote = Remote(self._line)
        self._probes = Probes()
        self._counting = asyncio.Lock()
        self._app: App | None = None
        self._listening: Listening | None = None
        self._access: AccessLog | None = None
        self._certificate: Certificate | None = None

    async def aclose(self) -> None:
        """Break off what runs."""
        if self._listening is not None and self._app is not None and self._access is not None:
            await self._listening.aclose()
            await self._app.drained(_FAREWELL)
            await self._app.aclose()
            await self._access.aclose()
        await self._tasks.aclose()
        await self._line.aclose()

    async def _answer(self, name: str, arguments: Arguments) -> Answer:
        if name == "begin":
            await self._begin(*arguments)
            return Answer(None)
        # Told, and not the answer: who asked may wait no more when it is there, and what was taken is taken but once.
        await asyncio.shield(self._tasks.start(self._tell(), name="metrics, now"))
        return Answer(None)

    def _told(self, name: str, arguments: Arguments) -> None:
        if name == "forget":
            self._forget()
        elif name == "use":
            self._use(*arguments)
        elif name == "drain":
            self._tasks.start(self._drain(*arguments), name="drain")

    async def _begin(self, orders: Orders, registries: Sequence[str]) -> None:
        """Make the parts, and listen."""
        set_up(orders.level, orders.form)
        tracing.set_up(os.environ)
        most = raise_file_limit()
        metrics = Metrics(registries)
        self._orders = orders
        self._remote.keep_open = orders.keep_open
        self._access = AccessLog(sys.stdout, human=not wants_json(orders.form, sys.stdout), shared=True)
        self._access.enabled = orders.access
        self._app = App(
            self._remote,
            self._remote,
            lambda: self._orders.names,
            metrics,
            self._access,
            self._probes,
            orders.write_timeout,
            most.requests,
            pages=self._remote,
            shows_metrics=orders.shows_metrics,
        )
        self._tally = Tally(metrics, lambda: 0 if self._app is None else self._app.inflight)
        if orders.certificate is not None:
            self._certificate = Certificate(orders.certificate)
            self._tasks.start(self._certificate.watch(), name="certificate")
        self._listening = Listening(self._app.server(), self._certificate, most.connections)
        await self._listening.start(self._sockets)
        self._probes.state = State.READY
        self._tasks.start(self._keep_telling(), name="metrics")
        self._tasks.start(self._let_go(), name="files kept open")
        self._tasks.start(heap.keep_giving_back(), name="memory")

    def _forget(self) -> None:
        self._remote.let_go(all_of_them=True)
        if self._app is not None:
            self._app.forget()

    def _use(self, orders: Orders) -> None:
        self._orders = orders
        set_up(orders.level, orders.form)
        self._forget()
        if self._app is not None and self._access is not None:
            self._app.allow(orders.write_timeout)
            self._access.enabled = orders.access
        if self._certificate is not None and orders.certificate is not None:
            self._certificate.use(orders.certificate)

    async def _drain(self, grace: float) -> None:
        self._probes.state = State.DRAINING
        if self._listening is not None and self._app is not None:
            await self._listening.close()
            await asyncio.sleep(LAST_REQUESTS)
            await self._app.drained(grace)
        self.ended.set()

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY)
            await self._tell()

    async def _tell(self) -> None:
        """Tell what was counted."""
        async with self._counting:
            self._line.tell("samples", await asyncio.to_thread(self._tally.take))

    async def _let_go(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self._remote.let_go()
