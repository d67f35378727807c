"""The clients of hostile networks, which pull as container runtimes do.

`python -m bench.clients PULL ARGUMENTS` (one of `PULLS`, and JSON) is one of them as a process of its own: it must not
share an interpreter with the origin.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
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
"""Tries that containerd adds to one that brought no byte (core/remotes/docker/httpreadseeker.go)."""


@dataclass(frozen=True)
class Pulled:
    """The sha256 of everything in the order asked for, seconds until the last byte of all, requests that it took."""

    digests: list[str]
    seconds: float
    requests: int


def resuming(host: str, port: int, path: str, size: int) -> Pulled:
    """A blob; where its connection breaks, the rest at once by a Range, as containerd does.

    Raises Failure where one request and the tries after it bring no byte.
    """
    state, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    at = requests = fruitless = 0
    how = "ended"
    began = time.perf_counter()
    while at < size:
        before = at
        requests += 1
        try:
            with closing(_connect(host, port)) as connection:
                response, position = _get(connection, path, at or None)
                while at < size and (count := response.readinto(buffer)):
                    new = buffer[min(count, at - position) : count]  # an answer may begin before what was asked for
                    state.update(new)
                    position, at = position + count, at + len(new)
        except (OSError, HTTPException) as error:
            how = repr(error)
        fruitless = 0 if at > before else fruitless + 1
        if fruitless > _FRUITLESS:
            raise Failure(f"never had more than {at:,} of {size:,} bytes, in {requests} requests (the last: {how})")
    return Pulled([f"sha256:{state.hexdigest()}"], time.perf_counter() - began, requests)


def image(host: str, port: int, repository: str, tag: str, at_once: int) -> Pulled:
    """An image: HEAD of the tag, manifest by digest, config, then the layers in their order, `at_once` at a time.

    As containerd does when it unpacks as well. Connections are kept, and the first layer gets the one that is there
    already. The digests are those of config and layers.

    Raises Failure where the manifest is another than the tag's.
    """
    connections = [_connect(host, port) for _ in range(at_once)]
    began = time.perf_counter()
    digest = _ask(connections[0], "HEAD", f"/v2/{repository}/manifests/{tag}").getheader("Docker-Content-Digest")
    manifest = _ask(connections[0], "GET", f"/v2/{repository}/manifests/{digest}").read()
    if _sha256(manifest) != digest:
        raise Failure(f"the manifest is not {digest}")
    config, *layers = _blobs(repository, manifest)
    got = {config: _ask(connections[0], "GET", config).read()}
    left = iter(layers)

    def work(connection: HTTPConnection) -> None:
        for path in left:  # which all of them share
            got[path] = _ask(connection, "GET", path).read()

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, connections))
    seconds = time.perf_counter() - began
    return Pulled([_sha256(got[path]) for path in (config, *layers)], seconds, 2 + len(got))


def image_apart(host: str, port: int, repository: str, tag: str, at_once: int) -> Pulled:
    """An image as dockerd pulls it: a connection for each request, the config beside the first `at_once` layers.

    It sends `Connection: close` with every request (20.10 and 28.5, seen on the wire), after a GET of `/v2/`.

    Raises Failure where the manifest is another than the tag's.
    """
    began = time.perf_counter()

    def ask(method: str, path: str) -> tuple[bytes, str | None]:
        with closing(_connect(host, port)) as connection:
            response = _ask(connection, method, path)
            return response.read(), response.getheader("Docker-Content-Digest")

    ask("GET", "/v2/")
    _, digest = ask("HEAD", f"/v2/{repository}/manifests/{tag}")
    manifest, _ = ask("GET", f"/v2/{repository}/manifests/{digest}")
    if _sha256(manifest) != digest:
        raise Failure(f"the manifest is not {digest}")
    config, *layers = _blobs(repository, manifest)
    with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(at_once) as pool:
        first = beside.submit(ask, "GET", config)
        rest = list(pool.map(lambda path: ask("GET", path), layers))
        got = [first.result()[0], *(body for body, _ in rest)]
    seconds = time.perf_counter() - began
    return Pulled([_sha256(body) for body in got], seconds, 3 + len(got))


def ranges(host: str, port: int, path: str, size: int, parts: int) -> Pulled:
    """A blob by `parts` requests for `bytes=K-`, each given up once it has the bytes up to the next one's.

    As containerd does from 2.1 on: the others follow the first (`bytes=0-`) if that was answered by a range; where the
    answer is the whole blob there are no others.
    """
    content = memoryview(bytearray(size))
    began = time.perf_counter()
    connection = _connect(host, port)
    first, _ = _get(connection, path, 0)
    starts = range(0, size, -(-size // parts)) if first.status == 206 else range(0, size, size)

    def read(start: int) -> None:
        with closing(_connect(host, port) if start else connection) as ours:
            answer, position = _get(ours, path, start) if start else (first, 0)
            if position != start:
                raise Failure(f"bytes from {position} on came where those from {start} on were asked for")
            _fill(answer, content[start : start + starts.step])

    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(read, starts))
    seconds = time.perf_counter() - began
    return Pulled([_sha256(content)], seconds, len(starts))


PULLS: dict[str, Callable[..., Pulled]] = {pull.__name__: pull for pull in (resuming, image, image_apart, ranges)}


def pull(kind: str, *arguments: str | int, patience: float) -> Pulled:
    """One of `PULLS` in a process of its own.

    Raises Failure if it fails, and subprocess.TimeoutExpired if it is not done within `patience` seconds.
    """
    command = [sys.executable, "-m", "bench.clients", kind, json.dumps(arguments)]
    folder = Path(__file__).parent.parent
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=patience)
    if run.returncode:
        raise Failure(run.stderr.strip().splitlines()[-1])
    return Pulled(**json.loads(run.stdout))


def _connect(host: str, port: int) -> HTTPConnection:
    return HTTPConnection(host, port, timeout=_IDLE)  # dialled by its first request


def _ask(connection: HTTPConnection, method: str, path: str, span: str | None = None) -> HTTPResponse:
    connection.request(method, path, headers={"Accept": ACCEPT, **({"Range": span} if span else {})})
    response = connection.getresponse()
    if response.status not in (200, 206):
        raise HTTPException(f"{method} {path} is answered with {response.status}")
    if method == "HEAD":
        response.read()  # nothing, but the connection is free only then
    return response


def _get(connection: HTTPConnection, path: str, start: int | None) -> tuple[HTTPResponse, int]:
    """The answer to a GET of a blob, from `start` on if given, and where it begins."""
    response = _ask(connection, "GET", path, None if start is None else f"bytes={start}-")
    if response.status == 200:
        return response, 0
    held = response.getheader("Content-Range", "")
    if not held.startswith(f"bytes {start}-"):
        raise HTTPException(f"Content-Range {held!r} where bytes from {start} on were asked for")
    return response, start or 0


def _fill(response: HTTPResponse, place: memoryview) -> None:
    while place:
        count = response.readinto(place)
        if not count:
            raise HTTPException(f"the answer ended {len(place)} bytes too early")
        place = place[count:]


def _blobs(repository: str, manifest: bytes) -> list[str]:
    """The paths of an image's config and layers."""
    document = json.loads(manifest)
    return [f"/v2/{repository}/blobs/{each['digest']}" for each in (document["config"], *document["layers"])]


def _sha256(content: bytes | memoryview) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def main(kind: str, arguments: str) -> None:
    """The process that `pull` starts: one line of JSON."""
    print(json.dumps(asdict(PULLS[kind](*json.loads(arguments)))))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (Failure, OSError, HTTPException) as failure:
        sys.exit(f"{failure}" if isinstance(failure, Failure) else repr(failure))
