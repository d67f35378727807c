"""The clients of hostile networks: they pull as container runtimes do.

`python -m bench.clients PULL HOST PORT ...` is one of them as a process of its own: it must not share an interpreter
with the origin.
"""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

from bench import Failure
from bench.load import ACCEPT

_IDLE = 60.0
_BUFFER = 256 << 10
_FRUITLESS = 3
"""Tries that containerd makes for the next byte after one that brought none (core/remotes/docker, httpreadseeker.go)."""


@dataclass(frozen=True)
class Pulled:
    """The sha256 of everything in the order asked for, seconds until the last byte of all, requests that were made."""

    digests: list[str]
    seconds: float
    requests: int


def resuming(host: str, port: int, path: str, size: int) -> Pulled:
    """A blob; where the connection breaks, the rest of it at once by a Range, as containerd does.

    Raises Failure where one request and three more after it bring no byte.
    """
    state, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    at = requests = fruitless = 0
    broken = "ended"
    began = time.perf_counter()
    while at < size:
        before = at
        requests += 1
        try:
            with closing(HTTPConnection(host, port, timeout=_IDLE)) as connection:
                response, position = _get(connection, path, at or None)
                while at < size and (count := response.readinto(buffer)):
                    new = buffer[min(count, at - position) : count]  # a whole answer to a Range begins too early
                    state.update(new)
                    position, at = position + count, at + len(new)
        except (OSError, HTTPException) as error:
            broken = f"{type(error).__name__}: {error}"
        fruitless = 0 if at > before else fruitless + 1
        if fruitless > _FRUITLESS:
            raise Failure(f"stays at {at:,} of {size:,} bytes, after {requests} requests ({broken})")
    return Pulled([f"sha256:{state.hexdigest()}"], time.perf_counter() - began, requests)


def image(host: str, port: int, repository: str, tag: str, at_once: int) -> Pulled:
    """An image: HEAD of its tag, manifest by digest, config, then layers in their order, `at_once` at a time.

    As containerd does when it unpacks too; connections are kept, of which the first layer gets the one that there is
    already. The digests are the manifest's, the config's and the layers'.
    """
    connections = [HTTPConnection(host, port, timeout=_IDLE) for _ in range(at_once)]
    began = time.perf_counter()
    resolved = _exchange(connections[0], "HEAD", f"/v2/{repository}/manifests/{tag}")
    digest = resolved.getheader("Docker-Content-Digest", "")
    resolved.read()
    manifest = _exchange(connections[0], "GET", f"/v2/{repository}/manifests/{digest}").read()
    document = json.loads(manifest)
    config, *layers = [f"/v2/{repository}/blobs/{each['digest']}" for each in (document["config"], *document["layers"])]
    got = {config: _whole(connections[0], config)}
    waiting = deque(layers)

    def work(connection: HTTPConnection) -> None:
        while waiting:  # this and popleft are one step: nobody else runs here before the first request is sent
            path = waiting.popleft()
            got[path] = _whole(connection, path)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    contents = [manifest, got[config], *(got[path] for path in layers)]
    return Pulled([_sha256(content) for content in contents], seconds, 2 + len(got))


def ranges(host: str, port: int, path: str, size: int, parts: int) -> Pulled:
    """A blob in `parts` requests at once for `bytes=K-`, each given up when its part is there.

    As containerd does from 2.1 on: the first one alone (`bytes=0-`), and, where its answer is the whole blob and no
    range, no other.
    """
    step = -(-size // parts)
    content = memoryview(bytearray(size))
    began = time.perf_counter()
    connection = HTTPConnection(host, port, timeout=_IDLE)
    response, _ = _get(connection, path, 0)
    if response.status == 200:
        parts, step = 1, size

    def part(start: int) -> None:
        ours, answer = (connection, response) if start == 0 else (HTTPConnection(host, port, timeout=_IDLE), None)
        with closing(ours):
            if answer is None:
                answer, position = _get(ours, path, start)
                if position != start:
                    raise Failure(f"the whole blob instead of what begins at {start}")
            _fill(answer, content[start : start + step])

    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(part, range(0, size, step)))
    seconds = time.perf_counter() - began
    return Pulled([_sha256(content)], seconds, parts)


PULLS = {"resuming": resuming, "image": image, "ranges": ranges}


def pull(kind: str, host: str, port: int, *rest: str | int, patience: float) -> Pulled:
    """One of `PULLS` in a process of its own.

    Raises Failure if it fails, and subprocess.TimeoutExpired if it is not done within `patience` seconds.
    """
    command = [sys.executable, "-m", "bench.clients", kind, json.dumps([host, port, *rest])]
    folder = Path(__file__).parent.parent
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=patience)
    if run.returncode:
        raise Failure((run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1])
    return Pulled(**json.loads(run.stdout))
