"""The socket between a command and the service."""

import asyncio
import http.client
import json
import os
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mirrorproxy import __version__
from mirrorproxy.admin import place
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import End, Event, Progress, Row
from mirrorproxy.admin.operations import OPERATIONS, Operation
from mirrorproxy.errors import CacheFailed
from mirrorproxy.web import admin, admin_client
from mirrorproxy.web.admin_client import NoService, ask
from tests.admin.conftest import server_on


@dataclass(frozen=True, slots=True)
class Line(Row):
    """A row."""

    kind: ClassVar[str] = "line"
    text: str


async def answer(directory: Path, name: str, **arguments: object) -> list[dict[str, Any]]:
    """All events."""
    return await asyncio.to_thread(lambda: list(ask(directory, name, arguments)))


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an operation known for the test."""

    def know(name: str, run: Any) -> None:
        monkeypatch.setitem(OPERATIONS, name, Operation(run))

    return know


async def test_events_come_as_they_are_said(tmp_path: Path, parts: AsyncExitStack, operation: Any) -> None:
    """The first row is at the client before the operation says the second."""
    await server_on(tmp_path, parts)
    go_on = asyncio.Event()

    async def run(_: Desk, word: str) -> AsyncGenerator[Event, None]:
        yield Line(word)
        await go_on.wait()
        yield Progress("counting", 1, 2)
        yield End(ok=False)

    operation("say", run)
    events = ask(tmp_path, "say", {"word": "hello"})
    assert await asyncio.to_thread(next, events) == {"kind": "line", "text": "hello"}
    go_on.set()
    assert await asyncio.to_thread(lambda: list(events)) == [
        {"kind": "progress", "doing": "counting", "done": 1, "total": 2, "unit": "objects"},
        {"kind": "end", "ok": False},
    ]


async def test_a_client_that_leaves_ends_the_operation(tmp_path: Path, parts: AsyncExitStack, operation: Any) -> None:
    """It is cancelled where it waits."""
    await server_on(tmp_path, parts)
    ended = asyncio.Event()

    async def run(_: Desk) -> AsyncGenerator[Event, None]:
        try:
            yield Line("begun")
            await asyncio.Event().wait()
        finally:
            ended.set()

    operation("wait", run)
    events = ask(tmp_path, "wait", {})
    assert (await asyncio.to_thread(next, events))["text"] == "begun"
    assert not ended.is_set()
    await asyncio.to_thread(events.close)
    async with asyncio.timeout(5):
        await ended.wait()


async def test_a_client_that_leaves_while_it_is_told_is_no_error(
    tmp_path: Path, parts: AsyncExitStack, operation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the service could notice, which learns of it by what it cannot write."""
    await server_on(tmp_path, parts)
    told, left, ended = threading.Event(), threading.Event(), asyncio.Event()

    async def run(_: Desk) -> AsyncGenerator[Event, None]:
        try:
            yield Line("begun")
            told.set()
            while not left.is_set():
                pass  # and the loop has no turn
            for word in ["more"] * 5:
                yield Line(word)
        finally:
            ended.set()

    def leave() -> None:
        events = ask(tmp_path, "talk", {})
        next(events)
        told.wait()
        events.close()
        left.set()

    operation("talk", run)
    async with asyncio.timeout(5):
        await asyncio.to_thread(leave)
        await ended.wait()
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_service_that_stops_ends_the_operation(tmp_path: Path, parts: AsyncExitStack, operation: Any) -> None:
    """The command is told, and takes half an answer for no whole one."""
    server = await server_on(tmp_path, parts)

    async def run(_: Desk) -> AsyncGenerator[Event, None]:
        yield Line("begun")
        await asyncio.Event().wait()

    operation("wait", run)
    events = ask(tmp_path, "wait", {})
    await asyncio.to_thread(next, events)
    closing = asyncio.to_thread(lambda: list(events))
    closed, _ = await asyncio.gather(closing, server.aclose(), return_exceptions=True)
    assert isinstance(closed, CacheFailed)
    with pytest.raises(NoService):
        await answer(tmp_path, "wait")


async def test_what_goes_wrong_inside_is_told_without_its_secrets(
    tmp_path: Path, parts: AsyncExitStack, operation: Any
) -> None:
    """An error of ours by its words, a fault of the program by none; a wrong argument is the client's."""
    await server_on(tmp_path, parts)

    async def fails(_: Desk) -> AsyncGenerator[Event, None]:
        raise CacheFailed("the disk is full")
        yield

    async def breaks(_: Desk) -> AsyncGenerator[Event, None]:
        raise RuntimeError("password")
        yield

    operation("fails", fails)
    operation("breaks", breaks)
    assert await answer(tmp_path, "fails") == [
        {"kind": "failed", "reason": "temporary", "message": "the disk is full", "near": []}
    ]
    (failed,) = await answer(tmp_path, "breaks")
    assert (failed["reason"], "password" in failed["message"]) == ("fault", False)
    (failed,) = await answer(tmp_path, "fails", colour="red")
    assert (failed["reason"], "different versions" in failed["message"]) == ("invalid", True)


async def test_versions_that_do_not_fit_are_named(
    tmp_path: Path, parts: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of tomorrow is told which version runs, and what to do."""
    await server_on(tmp_path, parts)
    with pytest.raises(CacheFailed, match=f"mirrorproxy {__version__}.*no operation"):
        await answer(tmp_path, "tomorrow")
    monkeypatch.setattr(admin_client, "__version__", "9.9")
    with pytest.raises(CacheFailed, match=rf"is mirrorproxy {__version__} and does not know tomorrow.*9\.9.*restart"):
        await answer(tmp_path, "tomorrow")


async def test_a_long_path_is_no_obstacle(tmp_path: Path, parts: AsyncExitStack) -> None:
    """Paths of unix sockets end at 108 bytes; the directory's may have more."""
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    await server_on(directory, parts)
    assert len(str(directory / place.NAME)) > 200
    assert (await answer(directory, "ls"))[-1] == {"kind": "end", "ok": True}
    assert (directory / place.NAME).is_socket()


@pytest.mark.parametrize("left", ["socket", "file", "link"])
async def test_what_a_crash_left_is_replaced(tmp_path: Path, parts: AsyncExitStack, left: str) -> None:
    """Who has the directory's lock knows that nobody listens there; the new socket is for its owner alone."""
    path = tmp_path / place.NAME
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
    elif left == "file":
        path.write_text("")
    else:
        path.symlink_to("/etc/hostname")
    await server_on(tmp_path, parts)
    assert path.lstat().st_mode & 0o777 == 0o600
    assert (await answer(tmp_path, "ls"))[-1] == {"kind": "end", "ok": True}


async def test_the_socket_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between its making and the next step, whatever the umask says."""
    monkeypatch.setattr(socket.socket, "bind", _checked_bind(socket.socket.bind))
    before = os.umask(0)
    try:
        (await asyncio.to_thread(admin._listener, tmp_path)).close()
    finally:
        os.umask(before)


def _checked_bind(bind: Any) -> Any:
    def checked(self: socket.socket, address: str) -> None:
        bind(self, address)
        assert Path(address).lstat().st_mode & 0o777 == 0o600

    return checked


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/operations/ls", b"[]", 400),
        ("POST", "/operations/ls", b"", 400),
        ("POST", "/operations/ls", b"[" * 5000, 400),
        ("POST", "/operations/ls", b"{" + b" " * 70000 + b"}", 413),
        ("POST", "/operations/__class__", b"{}", 404),
        ("POST", "/operations/..%2fls", b"{}", 404),
        ("GET", "/operations/ls", b"", 405),
        ("GET", "/", b"", 404),
    ],
)
async def test_what_is_no_question_is_refused(
    tmp_path: Path, parts: AsyncExitStack, method: str, path: str, body: bytes, status: int
) -> None:
    """Each with a status, and the version."""
    await server_on(tmp_path, parts)

    def send() -> http.client.HTTPResponse:
        connection = admin_client._Connection(tmp_path)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            response.read()
            return response
        finally:
            connection.close()

    response = await asyncio.to_thread(send)
    assert (response.status, response.headers[admin.VERSION]) == (status, __version__)


async def test_long_silence_is_filled(
    tmp_path: Path, parts: AsyncExitStack, operation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that says nothing for long is not taken for dead, a service that is dead is."""
    monkeypatch.setattr(admin, "_ALIVE_EVERY", 0.05)
    monkeypatch.setattr(admin_client, "_SILENCE", 0.3)
    await server_on(tmp_path, parts)

    async def slow(_: Desk) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.45)
        yield Line("late")

    operation("slow", slow)
    assert [event["kind"] for event in await answer(tmp_path, "slow")] == ["line", "end"]
    monkeypatch.setattr(admin, "_ALIVE_EVERY", 5.0)
    with pytest.raises(CacheFailed, match="has said nothing"):
        await answer(tmp_path, "slow")


async def test_events_are_documents() -> None:
    """Each is one JSON object with its kind."""
    assert json.loads(json.dumps(Progress("reading", 5, None, "bytes").document())) == {
        "kind": "progress",
        "doing": "reading",
        "done": 5,
        "total": None,
        "unit": "bytes",
    }
