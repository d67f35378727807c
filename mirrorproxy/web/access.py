"""The access log: one line a request, handed to a thread in batches; the event loop never waits for it.

Lines are made on the loop (3 us each) and written by the thread, which then only makes system calls: a thread that
formats would hold the interpreter lock against the loop for up to 5 ms at a time.
"""

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from itertools import count
from json.encoder import encode_basestring_ascii
from typing import NamedTuple, TextIO

from mirrorproxy.names import Reference, Repository
from mirrorproxy.registry import Kind, Result

log = logging.getLogger(__name__)

_BATCH = 256  # lines; to wake the thread costs as much as ten of them
_INTERVAL = 0.2  # seconds that a line waits for others
_BATCHES = 64  # that wait for the thread; about 6 MB of lines
_ATOMIC = 4096  # bytes that a pipe takes in one piece: pipe(7), PIPE_BUF
_FAREWELL = 5.0  # seconds given to the last batches at the end
_PATH_LIMIT = 512
_AGENT_LIMIT = 200
_REQUEST_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Entry(NamedTuple):
    """What is told of a request. Times in seconds. `path` is without the query, but for `ns`."""

    request_id: str
    client: str | None
    method: str
    path: str
    repository: Repository | None
    reference: Reference | None
    kind: Kind | None
    cache: Result | None
    status: int
    bytes: int
    duration: float
    first_byte: float | None
    user_agent: str | None
    aborted: bool
    error: str | None
    trace_id: str | None = None


class RequestIds:
    """Names for requests: the client's own where it is harmless, else a random prefix and a number.

    A random number for each would cost 10 to 19 % of the processor on small answers (getrandom).
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._count = count(1)

    def choose(self, given: str | None) -> str:
        """The id of a request that came with `given` as its X-Request-ID."""
        if given is not None and 0 < len(given) <= 64 and _REQUEST_ID.issuperset(given):
            return given
        return f"{self._prefix}-{next(self._count):x}"


class AccessLog:
    """Writes entries to `stream`, as JSON or, where people look at them, as text. `aclose` writes what is left.

    `shared`: other processes write there too, so that a write must not be so long that it is torn apart.
    """

    def __init__(self, stream: TextIO, *, human: bool = False, shared: bool = False) -> None:
        self.enabled = True
        self._stream = stream
        self._shared = shared
        self._line, self._note = (_human_line, _human_note) if human else (_json_line, _json_note)
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.Queue[list[str] | None] = queue.Queue(_BATCHES)
        self._second = (0, "")
        self.dropped = 0  # lines, for want of a reader fast enough
        self._told = 0
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def write(self, entry: Entry) -> None:
        """Put down a request. Never blocks; drops the line when too many wait already."""
        if not self.enabled:
            return
        self._lines.append(self._line(self._stamp(), entry))
        if len(self._lines) >= _BATCH:
            self._hand_over()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._hand_over)

    async def aclose(self) -> None:
        """Write what is left, and wait for it, but not for ever."""
        self._hand_over()
        await asyncio.to_thread(self._finish)

    def _stamp(self) -> str:
        """RFC 3339, UTC, milliseconds; the part up to the second is made once for each."""
        now = time.time()
        second = int(now)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1000):03d}Z"

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        untold = self.dropped - self._told
        try:
            self._batches.put_nowait([*lines, self._note(self._stamp(), untold)] if untold else lines)
        except queue.Full:
            self.dropped += len(lines)
        else:
            self._told += untold

    def _write(self) -> None:
        failing = False
        while (lines := self._batches.get()) is not None:
            try:
                for text in _pieces(lines) if self._shared else ("".join(lines),):
                    self._stream.write(text)
                    self._stream.flush()
                failing = False
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                if not failing:
                    log.warning("the access log cannot be written: %s", error)
                failing = True

    def _finish(self) -> None:
        try:
            self._batches.put(None, timeout=_FAREWELL)
        except queue.Full:
            return
        self._thread.join(_FAREWELL)


def _pieces(lines: list[str]) -> Iterator[str]:
    """The lines, as many at a time as are written in one piece. They are ASCII."""
    piece = ""
    for line in lines:
        if piece and len(piece) + len(line) > _ATOMIC:
            yield piece
            piece = ""
        piece += line
    yield piece


def _text(text: str) -> str:
    """A JSON string, ASCII alone: whatever a client wrote, it breaks no line and drives no terminal."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8 came as lone surrogates
    return encode_basestring_ascii(text)


def _word(word: str | None) -> str:
    """A JSON string of what matched a grammar, or is one of our own words: nothing in it needs escaping."""
    return "null" if word is None else f'"{word}"'


def _milliseconds(seconds: float | None) -> str:
    return "null" if seconds is None else f"{seconds * 1000:.3f}"


def _json_line(stamp: str, entry: Entry) -> str:
    request_id, client, method, path, repository, reference, kind, cache, status, size, duration, first, agent, *_ = (
        entry
    )
    registry, name = repository or (None, None)
    error = "" if entry.error is None else f',"error":{_text(entry.error)}'
    trace = "" if entry.trace_id is None else f',"trace_id":"{entry.trace_id}"'
    return (
        f'{{"time":"{stamp}","level":"{_level(status)}","msg":"request","request_id":"{request_id}"'
        f',"client":{"null" if client is None else _text(client)}'
        f',"method":{_text(method)},"path":{_text(path[:_PATH_LIMIT])}'
        f',"registry":{_word(registry)},"repository":{_word(name)},"reference":{_word(reference)}'
        f',"kind":{_word(kind)},"cache":{_word(cache)},"status":{status},"bytes":{size}'
        f',"duration_ms":{duration * 1000:.3f},"ttfb_ms":{_milliseconds(first)}'
        f',"user_agent":{"null" if agent is None else _text(agent[:_AGENT_LIMIT])}'
        f',"aborted":{"true" if entry.aborted else "false"}{trace}{error}}}\n'
    )


def _json_note(stamp: str, lines: int) -> str:
    return f'{{"time":"{stamp}","level":"warning","msg":"access log lines dropped","dropped":{lines}}}\n'


def _human_line(stamp: str, entry: Entry) -> str:
    path = _text(entry.path[:_PATH_LIMIT])[1:-1]
    client = _text(entry.client or "-")[1:-1]  # that of a unix socket is a path of its choice
    agent = _text((entry.user_agent or "-")[:_AGENT_LIMIT])[1:-1]
    first = "" if entry.first_byte is None else f", first byte {entry.first_byte * 1000:.1f} ms"
    end = (" ABORTED" if entry.aborted else "") + (f" ({_text(entry.error)[1:-1]})" if entry.error else "")
    return (
        f"{stamp[11:19]} {entry.status} {entry.method} {path} {entry.cache or '-'} {entry.bytes} B"
        f" in {entry.duration * 1000:.1f} ms{first} {client} {agent}{end}\n"
    )


def _human_note(stamp: str, lines: int) -> str:
    return f"{stamp[11:19]} {lines} lines of the access log were dropped\n"


def _level(status: int) -> str:
    return "error" if status >= 500 else "info"
