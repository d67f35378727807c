"""A copy of this process, of which all workers are copies.

So they share the memory of everything that was imported, and one is there within milliseconds. Two workers and the core
take 60 MiB at rest; as programs of their own they took 104. The copy is made before the first thread and the event loop
(`fork` copies no thread but its own), and does nothing beside copying itself. Between it and the core is a pair of
sockets that keep messages apart:

    to it        a byte, with the descriptors of a new worker: its line, then those that it listens on
    from it      "PID" when a worker was made, "-ERRNO" when it could not be; "PID STATUS" when one has ended

Should it die, another is made as a program of its own.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import NoReturn

from mirrorproxy.workers.worker import main

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""For the core, which tells the others; whoever signals all processes of a service means it."""

_MOST = 250  # descriptors in one message; the kernel takes 253
_MESSAGE = 64  # bytes
_END = 2.0  # seconds
_BY_PIDFD = 3  # waitid(2), P_PIDFD


class Process:
    """A process that somebody tells the end of: it is `gone` then. Where nobody can any more, `watch` it.

    `returncode` is None where its end is known, and not how it came.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._watched = False
        try:
            self._fd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # Linux before 5.3; or it is over
            self._fd = -1

    @property
    def is_gone(self) -> bool:
        """Has it ended?"""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    def kill(self) -> None:
        """End it. One whose end nobody tells, nor the kernel, is taken for gone then."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            if self._watched and self._fd < 0:
                self.gone(None)

    def watch(self, then: Callable[[], None] = lambda: None) -> None:
        """Have the kernel tell when it has ended, and call `then`; at once, where it cannot."""
        self._watched = True
        if self._fd < 0:
            then()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._over, then)

    def _over(self, then: Callable[[], None]) -> None:
        status = None
        # Of this process alone, whatever has its number by now; and only where it is our child: so no zombie is left
        # where we are process 1, to whom orphans are given.
        with contextlib.suppress(OSError):
            if (ended := os.waitid(_BY_PIDFD, self._fd, os.WEXITED | os.WNOHANG)) is not None:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self.gone(status)
        then()

    def gone(self, status: int | None) -> None:
        """It has ended, with this status; below 0: by this signal."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._watched:
                asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self.returncode = status
        self._ended.set()


class Template:
    """The core's side. `is_gone` when it died; `aclose` it in any case."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        control.setblocking(False)
        self.is_gone = False
        self.pid = pid
        self._process = Process(pid)
        self._control = control
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: deque[asyncio.Future[int]] = deque()
        self._processes: dict[int, Process] = {}
        self._ended: dict[int, int] = {}  # of those that nobody heard of yet

    @classmethod
    def copy(cls) -> "Template":
        """Of this process as it is now. To be called before there are threads or an event loop."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.collect()
        gc.freeze()  # a collection would write to every object, and so copy the memory that shall be shared
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if not pid:
            mine.close()
            run(theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        return cls(pid, mine)

    @classmethod
    async def anew(cls) -> "Template":
        """As a program of its own. Raises `OSError`."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            command = [sys.executable, "-m", "mirrorproxy.workers", str(theirs.fileno())]
            return cls(await asyncio.to_thread(_spawn, command, theirs.fileno()), mine)
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()

    async def start(self, given: Sequence[int]) -> Process:
        """A new worker with these descriptors. Raises `OSError`."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._control, self._readable)
        future: asyncio.Future[int] = self._loop.create_future()
        socket.send_fds(self._control, [b"+"], given)
        self._starting.append(future)
        pid = await asyncio.shield(future)
        process = self._processes[pid] = Process(pid)
        if (status := self._ended.pop(pid, None)) is not None:
            self._gone(pid, status)
        return process

    def kill(self) -> None:
        """End it, where it hangs: then it `is_gone`."""
        self._process.kill()

    async def aclose(self) -> None:
        """End it, and see to its end. Workers end by their lines."""
        if self._loop is not None:
            self._loop.remove_reader(self._control)
        self._control.close()
        until = monotonic() + _END
        with contextlib.suppress(ChildProcessError):
            # Whose end was seen has a number that may be another's by now.
            while not self._process.is_gone and os.waitpid(self.pid, os.WNOHANG)[0] == 0:  # noqa: ASYNC222 - no wait
                if monotonic() > until:
                    os.kill(self.pid, signal.SIGKILL)
                await asyncio.sleep(0.005)
        if not self.is_gone:  # else it is watched
            self._process.gone(None)

    def _readable(self) -> None:
        try:
            message = self._control.recv(_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lost()
            return
        pid, *status = map(int, message.split())
        if pid < 0:
            self._fail(os.strerror(-pid))
        elif not status:
            self._starting.popleft().set_result(pid)
        else:
            self._gone(pid, status[0])

    def _gone(self, pid: int, status: int) -> None:
        if (process := self._processes.pop(pid, None)) is None:
            self._ended[pid] = status
        else:
            process.gone(status)

    def _fail(self, reason: str) -> None:
        future = self._starting.popleft()
        future.set_exception(OSError(reason))
        future.exception()  # whoever waited may be gone

    def _lost(self) -> None:
        log.error("the process %d, of which workers are copies, has died; another is made when one is needed", self.pid)
        self.is_gone = True
        assert self._loop is not None
        self._loop.remove_reader(self._control)
        while self._starting:
            self._fail("the process that makes workers died")
        self._process.watch(self._orphaned)

    def _orphaned(self) -> None:
        """It has ended, and by that its workers are children of another."""
        for process in self._processes.values():
            process.watch()
        self._processes.clear()


def _spawn(command: Sequence[str], control: int) -> int:
    # The template's own status is asked for by `aclose`, or by nobody.
    process = subprocess.Popen(command, pass_fds=[control], stdin=subprocess.DEVNULL)  # noqa: S603 - our own words
    process.returncode = 0  # so that nothing else waits for it
    return process.pid


def run(control: socket.socket) -> NoReturn:
    """Be the template, until the core is gone."""
    # Ctrl-C is for the core. A session would keep it away too, but the kernel divides the processor among sessions
    # (sched(7), autogroup): workers with one of their own waited up to 35 ms for a turn, in the core's at most 5.
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setpgid(0, 0)
    _call_it("mirror-template")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                control.send(b"%d %d" % (ended[0], os.waitstatus_to_exitcode(ended[1])))

    signal.signal(signal.SIGCHLD, reap)
    with contextlib.suppress(OSError):  # the core is gone
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
            if not message:
                break
            try:
                pid = os.fork()
            except OSError as error:  # no more processes (pids.max), or no memory for one
                pid = -(error.errno or errno.EAGAIN)
            if not pid:
                control.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _work(descriptors)
            for each in descriptors:
                os.close(each)
            control.send(b"%d" % pid)
    os._exit(os.EX_OK)


def _work(descriptors: list[int]) -> NoReturn:
    status = os.EX_SOFTWARE
    try:
        _call_it("mirror-worker")
        line, *listening = descriptors
        status = main(line, listening)
    except Exception:
        log.exception("a worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # and not back into what this is a copy of


def _call_it(name: str) -> None:
    """The name that `ps` and `top` show."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
