"""A place where nothing but loopback exists: registry, mirror and clients run in it, so no pull can pass the mirror.

It is a network, process and mount namespace: its ports, `/run` and `/dev/shm` are its own, and everything that was
started in it, daemons' orphans too, ends with it, or with the test process, however that ends.
"""

import ctypes
import http.client
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_SETUP = """
ip link set lo up && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && echo ready && exec cat
"""


class HarnessError(Exception):
    """Something the tests stand on did not work: the message says what, with the end of its output."""


@dataclass(frozen=True)
class Response:
    """One answer; the header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Process:
    """A program that runs in the namespace, its output in a file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._entry = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)

    @property
    def pid(self) -> int:
        """The program's own process id, as the tests see it (the process started first only enters the namespace)."""
        entry = self._entry.pid
        while not (children := Path(f"/proc/{entry}/task/{entry}/children").read_text().split()):
            self.pause(0.01)
        return int(children[0])

    def pause(self, seconds: float) -> None:
        """Waits, for no longer than the program lives.

        Raises HarnessError: it has ended.
        """
        try:
            code = self._entry.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise HarnessError(f"{self.name} ended with {code}:\n{tail(self.log)}")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 15) -> int:
        """Signals the program and waits for its end; the exit code, as a shell would tell it."""
        if self._entry.poll() is None:
            os.kill(self.pid, number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"{self.name} does not end on {number.name}:\n{tail(self.log)}") from None

    def wait(self, timeout: float) -> int:
        """Waits for its end; the exit code."""
        return self._entry.wait(timeout)


class Namespace:
    """The namespaces, as a context manager. Needs root."""

    def __init__(self) -> None:
        flags = ["--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        self._started: list[Process] = []
        # Process 1 inside reads from us: it ends when we do, and the kernel then ends all others in there.
        self._holder = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", _SETUP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._holder.stdout
        if (said := self._holder.stdout.readline()) != b"ready\n":
            self.close()
            raise HarnessError(f"no namespace of its own for the clients' tests (which takes root): {said.decode()}")
        pid = self._holder.pid
        self._inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        self._http = ThreadPoolExecutor(1, initializer=self._enter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self.close()

    @property
    def network(self) -> str:
        """The file by which others join its network."""
        return f"/proc/{self._inside}/ns/net"

    def close(self) -> None:
        """Ends everything in it."""
        self._holder.communicate()  # closes its input
        for process in self._started:
            process.wait(15)

    def start(self, name: str, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Starts a program that goes on running."""
        self._started.append(Process(name, self._command(argv), log, _environment(env)))
        return self._started[-1]

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
        """Runs a program to its end and gives its standard output.

        Raises HarnessError: it failed, or took longer than `timeout` seconds.
        """
        try:
            done = subprocess.run(
                self._command(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_environment(env),
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"") + (error.stderr or b"")
            raise HarnessError(f"{_line(argv)}: not done after {timeout} s:\n{_end(output)}") from None
        if done.returncode:
            output = done.stdout + done.stderr
            raise HarnessError(f"{_line(argv)}: exit {done.returncode}:\n{_end(output)}")
        return done.stdout.decode()

    def request(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One HTTP request from inside; redirects are not followed.

        Raises OSError: nothing answers there.
        """
        return self._http.submit(_request, method, url, body, headers or {}).result()

    def _command(self, argv: Sequence[str | Path]) -> list[str]:
        return ["nsenter", "--target", self._inside, "--net", "--pid", "--mount", "--root", "--", *map(str, argv)]

    def _enter(self) -> None:
        """Puts the calling thread alone into the network (os.setns is there from Python 3.12 only)."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(self.network) as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log, for the message of a failure."""
    return _end(log.read_bytes(), lines)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """A small environment: no proxy variable and no setting of the user reaches the programs."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"  # Debian's programs, no others of their name
    return {"PATH": path, "LANG": "C.UTF-8", **(more or {})}


def _end(output: bytes, lines: int = 12) -> str:
    return "\n".join(output.decode(errors="replace").splitlines()[-lines:])


def _line(argv: Sequence[str | Path]) -> str:
    return " ".join(map(str, argv))


def _request(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
    parts = urlsplit(url)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body, dict(headers))
        answer = connection.getresponse()
        return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()
