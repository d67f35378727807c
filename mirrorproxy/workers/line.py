"""Calls between two processes of the service, in both directions, over one pair of sockets.

A frame is its length (4 bytes, big-endian), then a pickled tuple. Pickles are safe here: the two ends of the pair are
in the hands of one program. A descriptor travels beside its frame (unix(7), SCM_RIGHTS), and the kernel keeps the order
of both.

    (CALL, number, name, arguments)     (CANCEL, number)     (TELL, name, arguments)
    (RESULT, number, value, has_descriptor)     (ERROR, number, error)
"""

import asyncio
import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, NamedTuple

from mirrorproxy.errors import MirrorproxyError, Overloaded
from mirrorproxy.tasks import Tasks

log = logging.getLogger(__name__)

_CALL, _CANCEL, _TELL, _RESULT, _ERROR = range(5)
_HEAD = 4  # bytes
_MOST_UNSENT = 64 << 20  # bytes; then the other side does not read any more, and is given up
_MUCH = 8 << 20  # bytes unsent, while which answers that are all value wait: many who ask are not one who does not read
_READ = 256 << 10  # the kernel ends a read before the next descriptor: so there is one at most in each


class Answer(NamedTuple):
    """What a call gives: a value that can be pickled, and perhaps a descriptor, which is the receiver's own.

    A descriptor that was sent is None where the receiver has no room for one more (`ulimit -n`).
    """

    value: Any
    fd: int | None = None


Answering = Callable[[str, tuple[Any, ...]], Awaitable[Answer]]
Told = Callable[[str, tuple[Any, ...]], None]


class Line:
    """One end. `answering` is called for each call of the other side, in a task of its own, and cancelled where the
    other side waits no more; `told` for each thing that it tells; `ended` once, when the other side is gone.
    """

    def __init__(self, end: socket.socket, answering: Answering, told: Told, ended: Callable[[], None]) -> None:
        end.setblocking(False)
        self._socket = end
        self._answering = answering
        self._told = told
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._received = bytearray()
        self._descriptors: deque[int | None] = deque()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._waits = 0  # bytes of them
        self._for_room: list[asyncio.Future[None]] = []
        self._open = True
        self._loop.add_reader(end, self._readable)

    def __len__(self) -> int:
        """How many calls of the other side are being answered."""
        return len(self._answers)

    async def call(self, name: str, *arguments: Any) -> Answer:
        """Ask the other side, and wait for its answer. Raises what it raises; `Overloaded` where it is gone."""
        if not self._open:
            raise _gone()
        number = next(self._numbers)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[number] = future
        self._send((_CALL, number, name, arguments))
        try:
            return await future
        except asyncio.CancelledError:
            if number in self._waiting:
                self._send((_CANCEL, number))
            elif future.done() and not future.cancelled() and future.exception() is None:
                close(future.result().fd)  # it came in this moment
            raise
        finally:
            self._waiting.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """Say something that needs no answer."""
        if self._open:
            self._send((_TELL, name, arguments))

    async def aclose(self) -> None:
        """End it: what the other side asked is cancelled, and what was asked of it fails."""
        self._end()
        await self._tasks.aclose()

    # Out.

    def _send(self, message: tuple[Any, ...], fd: int | None = None) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        frame = memoryview(len(data).to_bytes(_HEAD, "big") + data)
        if self._unsent:
            self._queue(frame, fd)
            return
        sent = self._try(frame, fd)
        if sent < len(frame) and self._open:
            self._queue(frame[sent:], None if sent else fd)
            if self._open:
                self._loop.add_writer(self._socket, self._writable)

    def _queue(self, frame: memoryview, fd: int | None) -> None:
        """Raises `OSError` where the descriptor cannot be copied; then nothing of the frame was sent."""
        self._unsent.append((frame, None if fd is None else os.dup(fd)))  # whose it is may close it meanwhile
        self._waits += len(frame)
        if self._waits > _MOST_UNSENT:
            self._lost()

    def _try(self, frame: memoryview, fd: int | None) -> int:
        """How much of it is sent. Raises `OSError` where the descriptor cannot be; then nothing was."""
        try:
            if fd is None:
                return self._socket.send(frame)
            return socket.send_fds(self._socket, [frame], [fd])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if fd is not None and not isinstance(error, ConnectionError):
                raise
            self._lost()
            return 0

    def _writable(self) -> None:
        while self._unsent:
            frame, fd = self._unsent[0]
            try:
                sent = self._try(frame, fd)
            except OSError:
                self._lost()
                return
            if not self._open:
                return
            self._waits -= sent
            if sent:
                close(fd)
                self._unsent[0] = frame[sent:], None
            if sent < len(frame):
                return
            self._unsent.popleft()
            if self._waits <= _MUCH:
                self._let_on()
        self._loop.remove_writer(self._socket)

    # In.

    def _readable(self) -> None:
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors, flags = b"", [], 0
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC:  # there is no room for it in this process (ulimit -n)
            self._descriptors.append(None)
        if not data:
            self._lost()
            return
        received = self._received
        received += data
        at = 0
        while self._open and len(received) - at >= _HEAD:
            end = at + _HEAD + int.from_bytes(received[at : at + _HEAD], "big")
            if len(received) < end:
                break
            message = pickle.loads(memoryview(received)[at + _HEAD : end])  # noqa: S301 - see the module's page
            at = end
            self._take(message)
        del received[:at]

    def _take(self, message: tuple[Any, ...]) -> None:
        match message:
            case (kind, number, name, arguments) if kind == _CALL:
                task = self._tasks.start(self._answer(number, name, arguments), name=f"answer to {name}")
                self._answers[number] = task
                task.add_done_callback(lambda _: self._answers.pop(number, None))
            case (kind, number) if kind == _CANCEL:
                if (answer := self._answers.get(number)) is not None:
                    answer.cancel()
            case (kind, name, arguments) if kind == _TELL:
                self._hear(name, arguments)
            case (kind, number, value, has_descriptor) if kind == _RESULT:
                fd = self._descriptors.popleft() if has_descriptor else None
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_result(Answer(value, fd))
                else:
                    close(fd)
            case (kind, number, error) if kind == _ERROR:
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_exception(error)

    def _hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._told(name, arguments)
        except Exception:  # what came with it is to be taken all the same, and once
            log.exception("%s failed", name)

    async def _answer(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer = await self._answering(name, arguments)
        except MirrorproxyError as error:
            self._fail(number, error)
        except Exception:
            log.exception("%s failed", name)
            self._fail(number, MirrorproxyError("an error of mirrorproxy's own; its log says more"))
        else:
            if answer.fd is None:  # a descriptor may be closed meanwhile
                await self._room()
            if self._open:
                self._give(number, answer)

    async def _room(self) -> None:
        while self._open and self._waits > _MUCH:
            future: asyncio.Future[None] = self._loop.create_future()
            self._for_room.append(future)
            await future

    def _let_on(self) -> None:
        waiting, self._for_room = self._for_room, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _give(self, number: int, answer: Answer) -> None:
        try:
            self._send((_RESULT, number, answer.value, answer.fd is not None), answer.fd)
        except OSError:  # too many are under way; or it has to wait, and there is no room for a copy (ulimit -n)
            self._send((_RESULT, number, answer.value, False))

    def _fail(self, number: int, error: MirrorproxyError) -> None:
        if self._open:
            self._send((_ERROR, number, error))

    # The end.

    def _lost(self) -> None:
        if self._open:
            self._end()
            self._ended()

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for task in self._answers.values():
            task.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone())
        self._waiting.clear()
        self._let_on()
        for fd in (*self._descriptors, *(fd for _, fd in self._unsent)):
            close(fd)
        self._descriptors.clear()
        self._unsent.clear()


def _gone() -> Overloaded:
    return Overloaded("mirrorproxy is stopping")


def close(fd: int | None) -> None:
    """Close a descriptor that came, where one did."""
    if fd is not None:
        os.close(fd)
