"""The workers, as the core has them: started, told, asked, started anew when they die, and ended."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.tasks import Tasks, within
from mirrorproxy.workers.hub import Hub
from mirrorproxy.workers.line import Line
from mirrorproxy.workers.template import Process, Template
from mirrorproxy.workers.totals import Totals, resident
from mirrorproxy.workers.words import Arguments, Orders

log = logging.getLogger(__name__)

_START = 30.0  # seconds for a worker to listen: on a busy machine the imports alone take some
_END = 5.0  # seconds for it to end, when its line has
_TELL = 1.0  # seconds that a scrape waits for what workers counted
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before one is started anew that died soon after its start
_SOON = 10.0  # seconds


class _Worker:
    """One process, from its start to its end."""

    def __init__(self, process: Process, end: socket.socket, hub: Hub, pool: "Workers") -> None:
        self.process = process
        self.began = monotonic()
        self.line = Line(end, hub.answer, self._told, self._lost)
        self._hub = hub
        self._pool = pool
        self._closing = Tasks()

    def __len__(self) -> int:
        return len(self._hub) + len(self.line)

    def _told(self, name: str, arguments: Arguments) -> None:
        if name == "close":
            self._closing.start(self._hub.close(*arguments), name="a blob is closed")
        elif name == "samples":
            self._pool.totals.add(self.process.pid, *arguments)

    def _lost(self) -> None:
        """Its line has ended: so does it, or it hangs."""
        self._closing.start(self._ended(), name="a worker ends")

    async def _ended(self) -> None:
        """Give it a moment to end."""
        try:
            await within(_END, self.process.wait())
        except TimeoutError:
            self.process.watch()  # who should tell may hang, too
            self.process.kill()
            await self.process.wait()

    async def samples(self) -> None:
        """Have it tell what it counted; what comes too late is told all the same."""
        with suppress(TimeoutError, MirrorproxyError):
            await within(_TELL, self.line.call("samples"))

    async def aclose(self) -> None:
        """Close what it reads, and see that it ends."""
        await self.line.aclose()
        await self._closing.ended()
        await self._hub.aclose()
        await self._ended()
        self._pool.totals.left(self.process.pid)


class Workers:
    """As many workers as there are sets of listening `sockets`, which stay the caller's.

    A worker's socket stays open here too: who connects while it is started anew waits in the kernel's queue. `hub`
    makes what answers one of them, `orders` is what they serve by. They are copies of `template`.
    """

    def __init__(
        self,
        sockets: Sequence[Sequence[socket.socket]],
        hub: Callable[[], Hub],
        totals: Totals,
        orders: Orders,
        registries: Sequence[str],
        template: Template,
    ) -> None:
        self._template = template
        self.totals = totals
        self._sockets = sockets
        self._hub = hub
        self._orders = orders
        self._registries = registries
        self._workers: dict[int, _Worker] = {}
        self._tasks = Tasks()
        self._replacing = asyncio.Lock()
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        """What they ask at the moment, and what they read."""
        return sum(map(len, self._workers.values()))

    async def start(self) -> None:
        """Return when all listen. Raises `OSError` where one cannot."""
        started = await asyncio.gather(*map(self._start, range(len(self._sockets))), return_exceptions=True)
        for place, worker in enumerate(started):
            if isinstance(worker, _Worker):
                self._tasks.start(self._keep(place, worker), name=f"worker {place + 1}")
        for worker in started:
            if isinstance(worker, BaseException):
                raise worker

    def use(self, orders: Orders) -> None:
        """Serve by these from now on."""
        self._orders = orders
        self._tell("use", orders)

    def forget(self) -> None:
        """What is cached has changed."""
        self._tell("forget")

    async def count(self) -> None:
        """Have all of them tell what they counted."""
        await asyncio.gather(self._see_template(), *(worker.samples() for worker in list(self._workers.values())))

    async def drain(self, grace: float) -> None:
        """No new connections; return when they have ended, which they do after `grace` seconds, or should have."""
        self._stopping.set()
        self._tell("drain", grace)
        with suppress(TimeoutError):
            await within(grace + _END, self._tasks.ended())

    async def aclose(self) -> None:
        """End them at once."""
        self._stopping.set()
        await self._tasks.aclose()
        for worker in self._workers.values():  # whose keepers had no turn yet
            await worker.aclose()
        await self._template.aclose()

    async def _see_template(self) -> None:
        self.totals.of_template = await asyncio.to_thread(resident, self._template.pid)

    def _tell(self, name: str, *arguments: object) -> None:
        for worker in self._workers.values():
            worker.line.tell(name, *arguments)

    async def _start(self, place: int) -> _Worker:
        async with self._replacing:
            if self._template.is_gone:
                await self._template.aclose()
                self._template = await Template.anew()
        mine, theirs = socket.socketpair()
        try:
            given = [theirs.fileno(), *(each.fileno() for each in self._sockets[place])]
            process = await within(_START, self._template.start(given))
        except TimeoutError as error:
            mine.close()
            self._template.kill()
            raise OSError(f"worker {place + 1} does not start: the process that it is a copy of hangs") from error
        except OSError as error:
            mine.close()
            raise OSError(f"worker {place + 1} does not start: {error}") from error
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        worker, orders = _Worker(process, mine, self._hub(), self), self._orders
        try:
            await within(_START, worker.line.call("begin", orders, self._registries))
        except (TimeoutError, MirrorproxyError) as error:
            await worker.aclose()
            raise OSError(f"worker {place + 1} does not start{_fate(process.returncode)}") from error
        except BaseException:
            await worker.aclose()
            raise
        self._workers[place] = worker
        if self._orders is not orders:  # a reload in this moment
            worker.line.tell("use", self._orders)
        if self._stopping.is_set():
            worker.line.tell("drain", 0.0)
        return worker

    async def _keep(self, place: int, worker: _Worker) -> None:
        """See that there is one at this place, until all shall stop."""
        deaths = 0
        while True:
            try:
                await worker.process.wait()
            finally:
                self._workers.pop(place, None)
                await worker.aclose()
            if self._stopping.is_set():
                return
            log.error(
                "worker %d (process %d) has ended%s; it is started anew, and its clients ask again",
                place + 1,
                worker.process.pid,
                _fate(worker.process.returncode),
            )
            deaths = deaths + 1 if monotonic() - worker.began < _SOON else 0
            while (started := await self._another(place, deaths)) is None:
                if self._stopping.is_set():
                    return
                deaths += 1
            worker = started
            self.totals.replaced()
            log.info("worker %d is back (process %d)", place + 1, worker.process.pid)

    async def _another(self, place: int, deaths: int) -> _Worker | None:
        """One more worker, after a pause where one died often; None where it does not start, or shall not."""
        with suppress(TimeoutError):
            await within(_PAUSES[min(deaths, len(_PAUSES) - 1)], self._stopping.wait())
        if self._stopping.is_set():
            return None
        try:
            return await self._start(place)
        except OSError as error:
            log.error("%s", error)
        except Exception:  # it is to be tried again, whatever it was
            log.exception("worker %d does not start", place + 1)
        return None


def _fate(code: int | None) -> str:
    if code is None:
        return ""
    if code >= 0:
        return f": status {code}"
    with suppress(ValueError):  # those for real time have no names
        return f": killed by {signal.Signals(-code).name}"
    return f": killed by signal {-code}"


def processes(setting: int | str) -> int:
    """How many workers `server.workers` asks for; `auto`: one for each core that this process may use."""
    if setting != "auto":
        return int(setting)
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # a container's share: cgroup-v2, "cpu.max"; `max` is no number
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)
