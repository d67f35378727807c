"""The clients: wrk for what is warm, and downloads of one blob, by one client or by many at once, for what is cold.

`python -m bench.load HOST PORT PATH SIZE CLIENTS` is the latter as a process of its own: it must not share an
interpreter with the origin.
"""

import contextlib
import hashlib
import json
import mmap
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import Failure

ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json"
)
"""What a container runtime sends; without it docker-registry converts the manifest or refuses it."""

_HEAD = 16 << 10
_IDLE = 60.0
_PATIENCE = 600.0
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rush:
    """What wrk counted: whole responses, bytes (those of unfinished responses too), seconds.

    99 % of the responses took `p99` seconds at most.
    """

    requests: int
    sent: int
    seconds: float
    p99: float


@dataclass(frozen=True)
class Transfer:
    """One download: seconds from the common start until the body's first and last byte were there."""

    digest: str
    first_byte: float
    seconds: float


def wrk(url: str, size: int, connections: int, seconds: int) -> Rush:
    """As many requests as the server answers on `connections` kept connections.

    Every response must be 2xx and none shorter than `size` bytes, no connection may break or wait for 30 s. Raises
    Failure otherwise.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)  # half the machine makes the load, half answers it
    command = ["wrk", f"-t{min(threads, connections)}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    command += ["-H", f"Accept: {ACCEPT}", "-s", str(_HERE / "report.lua"), url]
    environ = {**os.environ, "OPENSSL_CONF": str(_HERE / "openssl.cnf")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, env=environ)
    line = next((line for line in run.stdout.splitlines() if line.startswith("{")), None)
    if run.returncode or line is None:
        raise Failure(f"wrk {url} ended with {run.returncode}: {run.stderr.strip() or run.stdout.strip()}")
    report = json.loads(line)
    if wrong := {name: report[name] for name in ("status", "socket", "timeout") if report[name]}:
        raise Failure(f"wrk {url}: not every request was answered well: {wrong} of {report['requests']}")
    if report["bytes"] < size:
        raise Failure(f"wrk {url}: not even one response within {seconds} s")
    if report["bytes"] < report["requests"] * size:
        raise Failure(f"wrk {url}: {report['requests']} responses of {size} bytes cannot be {report['bytes']} bytes")
    return Rush(report["requests"], report["bytes"], report["microseconds"] / 1e6, report["p99"] / 1e6)


def download(
    host: str,
    port: int,
    path: str,
    size: int,
    others: threading.Barrier | None = None,
    trust: ssl.SSLContext | None = None,
) -> Transfer:
    """GET into memory that is there already, and hash it after the last byte: the client is never what limits.

    Begins with the others, if given, and hashes when all of them are done; over TLS where `trust` is given. Raises
    Failure unless the answer is 200 with exactly `size` bytes.
    """
    memory = mmap.mmap(-1, _HEAD + size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    with memory, memoryview(memory) as buffer:
        if others:
            others.wait(_IDLE)
        began = time.perf_counter()
        try:
            body, first_byte = _receive(host, port, path, size, buffer, trust)
            seconds = time.perf_counter() - began
        except OSError as error:
            raise Failure(f"GET {path} from {host}:{port}: {error}") from error
        finally:
            if others:
                others.wait()
        with buffer[body : body + size] as content:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Transfer(digest, first_byte - began, seconds)


def crowd(host: str, port: int, path: str, size: int, clients: int, patience: float = _PATIENCE) -> list[Transfer]:
    """The same download by `clients` at once, in a process of its own.

    Raises Failure if any of them fails, and subprocess.TimeoutExpired if not all are done within `patience` seconds.
    """
    command = [sys.executable, "-m", "bench.load", host, str(port), path, str(size), str(clients)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=_HERE.parent, timeout=patience)
    if run.returncode:
        raise Failure(run.stderr.strip())
    return [Transfer(**one) for one in json.loads(run.stdout)]


def _receive(
    host: str, port: int, path: str, size: int, buffer: memoryview, trust: ssl.SSLContext | None
) -> tuple[int, float]:
    """Fill the buffer with the head and the body; returns where the body begins, and when its first byte came."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: {ACCEPT}\r\n\r\n".encode()
    got, body, first_byte = 0, 0, 0.0
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), _IDLE))
        if trust is not None:
            connection = stack.enter_context(trust.wrap_socket(connection, server_hostname=host))
        connection.sendall(request)
        while not body or got < body + size:
            count = connection.recv_into(buffer[got:])
            if not count:
                raise ConnectionError(f"ended after {got} bytes, head included, of {size} and a head")
            got += count
            if not body:
                head, end, _ = bytes(buffer[: min(got, _HEAD)]).partition(b"\r\n\r\n")
                if not end:
                    continue
                _check(head.decode("latin-1"), size)
                body = len(head) + len(end)
            if not first_byte and got > body:
                first_byte = time.perf_counter()
    return body, first_byte


def _check(head: str, size: int) -> None:
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status.split()[1:2] != ["200"] or headers.get("content-length") != str(size):
        raise ConnectionError(
            f"200 with Content-Length {size} was wanted, not {status!r} with {headers.get('content-length')}"
        )


def main(host: str, port: str, path: str, size: str, clients: str) -> None:
    """The process that `crowd` starts: a thread a client, one line of JSON."""
    start = threading.Barrier(int(clients))
    with ThreadPoolExecutor(int(clients)) as pool:
        runs = [pool.submit(download, host, int(port), path, int(size), start) for _ in range(int(clients))]
        print(json.dumps([asdict(run.result()) for run in runs]))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Failure as failure:
        sys.exit(str(failure))
