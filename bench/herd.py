"""A thousand clients at once: `python -m bench.herd HOST PORT PATH SIZE CLIENTS`, a process of its own.

All but a few throw away what they get inside the kernel, so that the machine is the server's.
"""

import hashlib
import json
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import Failure
from bench.load import ACCEPT

_BUFFER = memoryview(bytearray(1 << 20))
_LOOKED_AT = 4
"""How many of the clients hash what they get."""


@dataclass(frozen=True)
class Herd:
    """Seconds from before the first connection until the last byte of all, and until the first bytes of a body.

    `digests` are those of the clients that look at what they get; each of the others had as many bytes.
    """

    seconds: float
    first_byte: float
    last_first_byte: float
    digests: list[str]


class _Client:
    """One connection. Raises OSError where it does not get `size` bytes with a 200."""

    def __init__(self, address: tuple[str, int], request: bytes, size: int, looks: bool) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)
        self.first_byte = 0.0
        self.hash = hashlib.sha256() if looks else None
        self._request: bytes | None = request
        self._head = b""
        self._size = size
        self._left = size

    def ready(self) -> bool:
        """The socket is ready; True when nothing is left to come."""
        if self._request is not None:
            self.socket.sendall(self._request)
            self._request = None
        elif not self.first_byte:
            self._begin()
        else:
            flags = 0 if self.hash else socket.MSG_TRUNC  # tcp(7): discarded, and counted
            self._got(self.socket.recv_into(_BUFFER, min(self._left, len(_BUFFER)), flags))
        return not self._left

    def _begin(self) -> None:
        self._head += (data := self.socket.recv(4096))
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            if not data:
                raise ConnectionError("closed before its answer")
            return
        if not head.startswith(b"HTTP/1.1 200 ") or f"content-length: {self._size}".encode() not in head.lower():
            raise ConnectionError(f"answered with {head[:200]!r}")
        if body:
            _BUFFER[: len(body)] = body
            self._got(len(body))

    def _got(self, count: int) -> None:
        if not count:
            raise ConnectionError(f"closed with {self._left} bytes to come")
        self.first_byte = self.first_byte or time.perf_counter()
        if self.hash:
            self.hash.update(_BUFFER[:count])
        self._left -= count


def herd(host: str, port: int, path: str, size: int, clients: int, patience: float) -> Herd:
    """GET the same blob by `clients` at once. Raises Failure if one of them fails, or not all are done in time."""
    command = [sys.executable, "-m", "bench.herd", host, str(port), path, str(size), str(clients)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=patience
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{clients} clients were not served within {patience:.0f} s") from None
    if run.returncode:
        raise Failure(run.stderr.strip())
    return Herd(**json.loads(run.stdout))


def _pull(host: str, port: int, path: str, size: int, clients: int) -> Herd:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < clients + 64:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, clients + 64), hard))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: {ACCEPT}\r\n\r\n".encode()
    poll = select.epoll()
    began = time.perf_counter()
    everybody = [_Client((host, port), request, size, number < _LOOKED_AT) for number in range(clients)]
    waiting = {client.socket.fileno(): client for client in everybody}
    for descriptor in waiting:
        poll.register(descriptor, select.EPOLLOUT)
    while waiting:
        for descriptor, _ in poll.poll():
            client = waiting[descriptor]
            try:
                over = client.ready()
            except OSError as error:
                raise Failure(f"a client of {len(everybody)} failed, {len(waiting)} were not done: {error}") from error
            poll.modify(descriptor, select.EPOLLIN)
            if over:
                poll.unregister(descriptor)
                del waiting[descriptor]
    seconds = time.perf_counter() - began
    first_bytes = [client.first_byte - began for client in everybody]
    digests = [f"sha256:{client.hash.hexdigest()}" for client in everybody if client.hash]
    return Herd(seconds, statistics.median(first_bytes), max(first_bytes), digests)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_pull(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))))
    except Failure as failure:
        sys.exit(str(failure))
