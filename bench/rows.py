"""What is measured: the rows, each one measurement of one server, and the bars that the figures have to reach."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from bench import Failure
from bench.load import crowd, download, wrk
from bench.memory import processor_seconds
from bench.network import Link, Network
from bench.origin import Image, Origin
from bench.peers import Server

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DIRECT = "direct"
"""The column of the same downloads from the origin itself, without a cache between."""

SMALL, MEDIUM, LARGE = 4 * KIB, 4 * MIB, 256 * MIB
CROWD_BLOB, CROWD = 16 * MIB, 32
FAST_LINK, SLOW_LINK = 100e6, 25e6
"""Bytes/s, of all connections together: about 1 Gbit/s, and 200 Mbit/s."""
FINISH = 120.0
"""Seconds that a cache has to finish its fill once its clients have everything."""

CACHES = ("mirrorproxy", "docker-registry")
ALL = (*CACHES, "nginx")


@dataclass
class Stage:
    """What the measurements work with: the origin, the image that is warm everywhere, and wrk's time."""

    origin: Origin
    image: Image
    seconds: int
    cold: Iterator[int] = field(default_factory=count)


@dataclass(frozen=True)
class Figure:
    """One line of the table; `key` is its name in the JSON."""

    key: str
    title: str
    unit: str
    digits: int = 0


@dataclass(frozen=True)
class Row:
    """One measurement, which gives all its figures at once, of every server it is meaningful for.

    It raises Failure, and Unable. The servers in `once` are measured in the first round alone.
    """

    name: str
    figures: tuple[Figure, ...]
    servers: tuple[str, ...]
    measure: Callable[[Stage, Server], dict[str, float]]
    once: tuple[str, ...] = ()


class Unable(Exception):
    """A server cannot do what a row measures, which is a result too: `cell` is what the table says of it, in a word."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(reason)
        self.cell = cell


@dataclass(frozen=True)
class Bar:
    """mirrorproxy's figure, divided by that of `against` if given, has to be at least `bound`, or at most."""

    figure: str
    bound: float
    against: str | None = None
    at_least: bool = True

    def value(self, medians: dict[str, dict[str, float]]) -> float | None:
        """The figure or the ratio; None if it was not measured."""
        mine = medians.get(self.figure, {}).get("mirrorproxy")
        other = medians.get(self.figure, {}).get(self.against) if self.against else 1.0
        return mine / other if mine is not None and other else None

    def met(self, value: float) -> bool:
        """Whether that is enough."""
        return value >= self.bound if self.at_least else value <= self.bound


MEMORY = Figure("memory", "peak memory, all of the run", "MiB")

BARS = (
    Bar("manifest-by-tag", 15, "docker-registry"),
    Bar("warm-4MiB", 0.9, "nginx"),
    Bar("warm-256MiB", 0.9, "nginx"),
    Bar("memory", 150, at_least=False),
)


def make_warm(stage: Stage, server: Server) -> None:
    """Pull the image as a client would, checking every byte, so that all of it is cached."""
    image = stage.image
    for path in (image.by_tag, image.by_digest):
        check(server, path, len(image.manifest), image.digest)
    for layer in image.layers:
        check(server, layer.path, layer.size, layer.digest)
    stage.origin.wait_idle(FINISH)


def check(server: Server, path: str, size: int, digest: str) -> None:
    """GET, and raise Failure unless the answer is that."""
    got = download(server.host, server.port, path, size)
    if got.digest != digest:
        raise Failure(f"{server.url}{path} is {got.digest}, not {digest}")


def _manifest(name: str, title: str, path: Callable[[Image], str]) -> Row:
    figure = Figure(name, title, "requests/s")

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        image = stage.image
        check(server, path(image), len(image.manifest), image.digest)
        rush = wrk(server.url + path(image), len(image.manifest), 32, stage.seconds)
        return {name: rush.requests / rush.seconds}

    return Row(name, (figure,), ALL, measure)


def _warm_blob(name: str, title: str, layer: int, connections: int) -> Row:
    large = layer > 0
    figures = [Figure(name, title, "MiB/s" if large else "requests/s")]
    if large:
        figures.append(Figure(f"{name}-cpu", "  processor time of the server", "s/GiB", 2))

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        blob = stage.image.layers[layer]
        check(server, blob.path, blob.size, blob.digest)
        asked = stage.origin.served(blob).gets
        worked = processor_seconds(server.pid)
        rush = wrk(server.url + blob.path, blob.size, connections, stage.seconds)
        worked = processor_seconds(server.pid) - worked
        if stage.origin.served(blob).gets != asked:
            raise Failure(f"{server.name} asked the origin for a blob that it had to have: {name} was not warm")
        if not large:
            return {name: rush.requests / rush.seconds}
        return {name: rush.sent / MIB / rush.seconds, f"{name}-cpu": worked / (rush.sent / GIB)}

    return Row(name, tuple(figures), ALL, measure)


def _cold_blob(name: str, title: str, size: int, clients: int, rate: float | None) -> Row:
    figures = [
        Figure(name, title, "s", 3),
        Figure(f"{name}-first-byte", "  first byte (the last client's)", "ms", 1),
        Figure(f"{name}-gets", "  GET requests at the origin", ""),
        Figure(f"{name}-sent", "  sent by the origin", "MiB"),
    ]

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        image = stage.origin.add(f"cold-{next(stage.cold)}", [size])
        blob = image.layers[0]
        check(server, image.by_tag, len(image.manifest), image.digest)  # a client comes by the manifest
        with stage.origin.through(Network(Link(rate) if rate else None)):
            # Without a cache the crowd would only show the link's width: one client is the reference.
            transfers = crowd(server.host, server.port, blob.path, size, 1 if server.name == DIRECT else clients)
            stage.origin.wait_idle(FINISH)
        if wrong := [one.digest for one in transfers if one.digest != blob.digest]:
            raise Failure(f"{name}: {len(wrong)} of {clients} clients got {wrong[0]}, not {blob.digest}")
        served = stage.origin.served(blob)
        os.sync()  # what this one left to be written is not the next one's burden
        return {
            name: max(one.seconds for one in transfers),
            f"{name}-first-byte": max(one.first_byte for one in transfers) * 1e3,
            f"{name}-gets": served.gets,
            f"{name}-sent": served.sent / MIB,
        }

    return Row(name, tuple(figures), (*CACHES, DIRECT), measure)


LAYERS = [SMALL, MEDIUM, LARGE]
"""The sizes of the warm image's layers."""

ROWS = (
    _manifest("manifest-by-tag", "manifest by tag, warm", lambda image: image.by_tag),
    _manifest("manifest-by-digest", "manifest by digest, warm", lambda image: image.by_digest),
    _warm_blob("warm-4KiB", "4 KiB blob, warm", 0, 32),
    _warm_blob("warm-4MiB", "4 MiB blob, warm", 1, 16),
    _warm_blob("warm-256MiB", "256 MiB blob, warm", 2, 4),
    _cold_blob("cold-unshaped", "256 MiB blob, cold, origin unshaped", LARGE, 1, None),
    _cold_blob("cold-100MBps", "256 MiB blob, cold, origin at 100 MB/s", LARGE, 1, FAST_LINK),
    _cold_blob("cold-crowd", "16 MiB blob, cold, 32 clients, origin at 25 MB/s", CROWD_BLOB, CROWD, SLOW_LINK),
)
