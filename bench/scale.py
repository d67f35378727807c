"""Caches of a thousand to a million pieces of content, and what a start, memory and a hit of them cost.

`python -m bench.scale`; and what a hit takes while 10,000 pieces are evicted.

The content is made here: files without a block on the disk for what depends on their number, and of 4 KiB for the
eviction.
"""

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import itertools
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from bench.memory import processor_seconds, pss
from mirrorproxy.names import Descriptor, Digest, repository
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import Used

_APP = repository("docker.io", "team/app")
_TYPE = "application/octet-stream"
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_SMALL = 256  # bytes of an object whose hit is measured
_FIRST, _MORE = 2_000, 10_000  # hits: on so many objects, one each; on a single one
_REST = 2.0  # seconds after which no answer is given again from memory
_MONTH = 30 * 86_400
_BATCH = 5000
_READY = 120.0  # seconds
_QUIET = 10.0
_MOST = 1200.0


async def fill(directory: Path, objects: int, size: int, *, sparse: bool = False) -> Digest:
    """Put so many pieces of content of `size` bytes into a cache directory, `sparse` ones without blocks on the disk.

    All belong to team/app. Returns one more, whose content is the word `hot`.
    """
    blobs = BlobStore(directory)
    await asyncio.to_thread(blobs.prepare)
    index = Index(directory / "index")
    await index.open()
    now = time.time()
    for start in range(0, objects, _BATCH):
        numbers = range(start, min(objects, start + _BATCH))
        batch = await asyncio.to_thread(_make, blobs, numbers, size, sparse, now)
        await index.content(ContentQueues.enter, batch)
        await index.put_facts(_APP, [Descriptor(_TYPE, digest, size) for digest in batch])
    hot = Digest.of(b"hot")
    await blobs.put(hot, b"hot")
    await index.content(ContentQueues.enter, {hot: Used(now, 4096)})
    await index.put_facts(_APP, [Descriptor(_TYPE, hot, 3)])
    await index.content(ContentQueues.recount)
    await index.content(ContentQueues.left)
    await index.rebuilt()
    await index.aclose()
    await blobs.aclose()
    return hot


def _digest(number: int) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}")


def _make(blobs: BlobStore, numbers: range, size: int, sparse: bool, now: float) -> dict[Digest, Used]:
    batch = {}
    for number in numbers:
        digest = _digest(number)
        descriptor = os.open(blobs.path(digest), os.O_WRONLY | os.O_CREAT, 0o444)
        if sparse:
            os.ftruncate(descriptor, size)
        else:
            os.write(descriptor, bytes(size))
        os.close(descriptor)
        blocks = 0 if sparse else -(-size // 4096) * 8
        batch[digest] = Used(now - _MONTH + number, max(1, blocks) * 512)
    return batch


class Service:
    """One mirrorproxy on a cache directory, without an upstream that answers. `seconds` until it was ready."""

    def __init__(self, directory: Path, max_size: str = "1TiB") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._directory = directory
        self._config = directory.with_suffix(".yaml")
        self.limit(max_size)
        self._log = directory.with_suffix(".log").open("wb")
        began = time.monotonic()
        command = [sys.executable, "-m", "mirrorproxy", "serve", "--config", str(self._config)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        while not self._ready():
            if time.monotonic() - began > _READY or self._process.poll() is not None:
                raise TimeoutError(f"not ready, see {self._log.name}")
            threading.Event().wait(0.01)
        self.seconds = time.monotonic() - began
        self.pid = self._process.pid

    def limit(self, max_size: str) -> None:
        """Write another limit down; `reload` takes it over."""
        self._config.write_text(
            yaml.safe_dump(
                {
                    "server": {"listen": [f"127.0.0.1:{self.port}"]},
                    "cache": {"directory": str(self._directory), "max_size": max_size, "min_free": "0"},
                    "upstreams": {"docker.io": {"endpoints": ["http://127.0.0.1:9"]}},
                    "scrub": {"every": "0s"},
                    "log": {"access": False},
                }
            )
        )

    def reload(self) -> None:
        """Take the limit over."""
        self._process.send_signal(signal.SIGHUP)

    def total(self, metric: str) -> float:
        """The sum of the samples of `mirrorproxy_<metric>`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.startswith(f"mirrorproxy_{metric}")]
        return sum(map(float, found))

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Service]:
    """A service, until the end of the block."""
    service = Service(directory)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def asking(service: Service) -> Iterator[Callable[[Digest, int, str], float]]:
    """Over one connection: GET a blob of team/app of so many bytes, with a header field or none; seconds it took."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as wire:

        def ask(digest: Digest, size: int, field: str = "") -> float:
            target = f"/v2/docker.io/{_APP.name}/blobs/{digest}"
            began = time.perf_counter()
            wire.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n".encode())
            answer = wire.recv(65536)
            while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + size:
                answer += wire.recv(65536)
            seconds = time.perf_counter() - began
            if not answer.startswith(b"HTTP/1.1 200") or len(answer) != end + 4 + size:
                raise ValueError(answer)
            return seconds

        yield ask


def hits(service: Service, digest: Digest, more: Callable[[int], bool]) -> list[float]:
    """Seconds that warm hits on `hot` take, one after the other on one connection, for as long as `more` says."""
    times: list[float] = []
    with asking(service) as ask:
        while more(len(times)):
            times.append(ask(digest, 3, ""))
    return times


def _for_a_while() -> Callable[[int], bool]:
    until = time.monotonic() + _QUIET
    return lambda _: time.monotonic() < until


class Cost(NamedTuple):
    """Of a hit: microseconds of processor time of the service, on average; milliseconds that half of them take."""

    processor: float
    wall: float

    def __str__(self) -> str:
        return f"{self.processor:.0f} us, {self.wall:.2f} ms"


def _worked(service: Service, act: Callable[[], object]) -> float:
    """Seconds of processor time that a service takes while `act` runs."""
    before = processor_seconds(service.pid)
    act()
    return processor_seconds(service.pid) - before


def costs(service: Service, hot: Digest, objects: int) -> tuple[Cost, Cost, Cost]:
    """Of the first hit on each of some objects at random; of further ones on one; of those given again from memory.

    The second are asked with a field that makes a service look: what is given again is given to plain requests alone.
    """
    some = [_digest(number) for number in random.Random(1).sample(range(objects), min(objects, _FIRST))]
    with asking(service) as ask:
        for _ in range(500):
            ask(hot, 3, "")

        def cost(requests: Iterable[tuple[Digest, int, str]]) -> Cost:
            idle = _worked(service, lambda: threading.Event().wait(_REST))  # what it does in the background
            times: list[float] = []
            worked = _worked(service, lambda: times.extend(ask(*each) for each in requests))
            own = worked - idle / _REST * sum(times)
            return Cost(own / len(times) * 1e6, statistics.median(times) * 1e3)

        return (
            cost((digest, _SMALL, "") for digest in some),
            cost(itertools.repeat((hot, 3, 'If-None-Match: "another"\r\n'), _MORE)),
            cost(itertools.repeat((hot, 3, ""), _MORE)),
        )


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


def under_eviction(directory: Path, objects: int) -> tuple[float, float, float]:
    """Seconds of the 99th of 100 warm hits in quiet and while `objects` pieces are evicted, and how long that takes."""
    digest = asyncio.run(fill(directory, objects + 500, 4096))
    with serving(directory) as service:
        hits(service, digest, lambda done: done < 500)  # warm
        quiet = hits(service, digest, _for_a_while())
        service.limit("1900KiB")  # of which 95 % are some 450 pieces
        service.reload()
        began = time.monotonic()

        def goes_on(done: int) -> bool:
            if done % 2000:
                return True
            return service.total("cache_evictions_total") < objects and time.monotonic() - began < _MOST

        busy = hits(service, digest, goes_on)
        seconds = time.monotonic() - began
        quiet += hits(service, digest, _for_a_while())  # what else the machine does changes, too
        if service.total("cache_evictions_total") < objects:
            raise TimeoutError("not all of it was evicted")
    return p99(quiet), p99(busy), seconds


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, nargs="*", default=_SIZES, help="in the cache; none: leave that out")
    parser.add_argument("--evict", type=int, default=10_000, help="so many, while hits are measured; 0: leave that out")
    arguments = parser.parse_args()
    if min(arguments.objects, default=1) < 1:
        parser.error("--objects: 1 or more each")
    if arguments.objects:
        print("| objects | ready after | memory | first hit | hit | hit given again |\n|---:|---:|---:|---:|---:|---:|")
    for objects in arguments.objects:
        with tempfile.TemporaryDirectory(prefix="mirrorproxy-scale-") as folder:
            hot = asyncio.run(fill(Path(folder) / "cache", objects, _SMALL, sparse=True))
            with serving(Path(folder) / "cache") as service:
                threading.Event().wait(10)  # what is done in the background at the start is done
                memory = pss(service.pid) >> 20
                cells = map(str, costs(service, hot, objects))
                print(f"| {objects:,} | {service.seconds:.2f} s | {memory} MiB | {' | '.join(cells)} |", flush=True)
    if not arguments.evict:
        return
    with tempfile.TemporaryDirectory(prefix="mirrorproxy-scale-") as folder:
        quiet, busy, seconds = under_eviction(Path(folder) / "cache", arguments.evict)
        print(
            f"warm hits, 99th of 100: {quiet * 1e3:.2f} ms in quiet, {busy * 1e3:.2f} ms while {arguments.evict} "
            f"objects are evicted in {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
