"""A cache of a million pieces of content: `python -m bench.scale`. How long it takes to start, what memory it takes,
and what a hit takes while 10,000 pieces are evicted.

The content is made here: empty files for the start, which opens none of them, and files of 4 KiB for the eviction.
"""

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from bench.memory import pss
from mirrorproxy.names import Descriptor, Digest, repository
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.queues import ContentQueues
from mirrorproxy.store.records import Used

_APP = repository("docker.io", "team/app")
_MONTH = 30 * 86_400
_BATCH = 5000
_READY = 120.0  # seconds
_QUIET = 10.0
_MOST = 1200.0


async def fill(directory: Path, objects: int, size: int) -> Digest:
    """Put so many pieces of content of `size` bytes into a cache directory; returns one that belongs to team/app."""
    blobs = BlobStore(directory)
    await asyncio.to_thread(blobs.prepare)
    index = Index(directory / "index")
    await index.open()
    now = time.time()
    for start in range(0, objects, _BATCH):
        batch = await asyncio.to_thread(_make, blobs, range(start, min(objects, start + _BATCH)), size, now)
        await index.content(ContentQueues.enter, batch)
    hot = Digest.of(b"hot")
    await blobs.put(hot, b"hot")
    await index.content(ContentQueues.enter, {hot: Used(now, 4096)})
    await index.put_facts(_APP, [Descriptor("application/octet-stream", hot, 3)])
    await index.content(ContentQueues.recount)
    await index.content(ContentQueues.left)
    await index.rebuilt()
    await index.aclose()
    await blobs.aclose()
    return hot


def _make(blobs: BlobStore, numbers: range, size: int, now: float) -> dict[Digest, Used]:
    batch = {}
    for number in numbers:
        digest = Digest(f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}")
        descriptor = os.open(blobs.path(digest), os.O_WRONLY | os.O_CREAT, 0o444)
        os.write(descriptor, bytes(size))
        os.close(descriptor)
        batch[digest] = Used(now - _MONTH + number, max(1, -(-size // 4096) * 8) * 512)
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


def hits(service: Service, digest: Digest, more: Callable[[int], bool]) -> list[float]:
    """Seconds that warm hits take, one after the other on one connection, for as long as `more` says."""
    request = f"GET /v2/docker.io/{_APP.name}/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as wire:
        while more(len(times)):
            began = time.perf_counter()
            wire.sendall(request)
            answer = b""
            while not answer.endswith(b"hot"):
                answer += wire.recv(65536)
            times.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise ValueError(answer)
    return times


def _for_a_while() -> Callable[[int], bool]:
    until = time.monotonic() + _QUIET
    return lambda _: time.monotonic() < until


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
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the cache at the start; 0: leave that out")
    parser.add_argument("--evict", type=int, default=10_000)
    arguments = parser.parse_args()
    for objects in (0, arguments.objects) if arguments.objects else ():
        with tempfile.TemporaryDirectory(prefix="mirrorproxy-scale-") as folder:
            asyncio.run(fill(Path(folder) / "cache", objects, 0))
            with serving(Path(folder) / "cache") as service:
                before = pss(service.pid)
                held = service.total("cache_objects")
                threading.Event().wait(10)
                print(
                    f"{objects:>9} objects: ready in {service.seconds:.2f} s with {before >> 20} MiB; "
                    f"10 s later {pss(service.pid) >> 20} MiB, {held:.0f} in the account"
                )
    with tempfile.TemporaryDirectory(prefix="mirrorproxy-scale-") as folder:
        quiet, busy, seconds = under_eviction(Path(folder) / "cache", arguments.evict)
        print(
            f"warm hits, 99th of 100: {quiet * 1e3:.2f} ms in quiet, {busy * 1e3:.2f} ms while {arguments.evict} "
            f"objects are evicted in {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
