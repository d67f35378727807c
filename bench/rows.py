"""What is measured: the rows, each one measurement of one server, and the bars that the figures have to reach."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from bench import Failure
from bench.herd import herd
from bench.load import crowd, download, wrk
from bench.memory import processor_seconds
from bench.network import Link, Network
from bench.origin import Blob, Image, Origin
from bench.peers import SECURE, Server

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DIRECT = "direct"
"""The column of the same downloads from the origin itself, without a cache between."""

SMALL, MEDIUM, LARGE = 4 * KIB, 4 * MIB, 256 * MIB
CROWD_BLOB, CROWD = 32 * MIB, 16
HERD_BLOB, HERD, HERD_PATIENCE = 64 * MIB, 1000, 180.0
FILL_BLOB, FILLS = 64 * MIB, 8
FAST_LINK, SLOW_LINK = 125e6, 16 * MIB
"""Bytes/s, of all connections together: 1 Gbit/s, and what a good line of an office has."""
FINISH = 120.0
"""Seconds that a cache has to finish its fill once its clients have everything."""

CACHES = ("mirrorproxy", "docker-registry")
ALL = (*CACHES, "drayage", "nginx")


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
    """mirrorproxy's figure, divided by that of `against` if given, has to be at least `bound`, or at most.

    With `-` as `operator` the other figure is subtracted instead.
    """

    figure: str
    bound: float
    against: str | None = None
    at_least: bool = True
    operator: str = "/"

    def value(self, medians: dict[str, dict[str, float]]) -> float | None:
        """The figure, the ratio or the difference; None if it was not measured."""
        mine = medians.get(self.figure, {}).get("mirrorproxy")
        other = medians.get(self.figure, {}).get(self.against) if self.against else 1.0
        if mine is None or not other:
            return None
        return mine - other if self.operator == "-" else mine / other

    def met(self, value: float) -> bool:
        """Whether that is enough."""
        return value >= self.bound if self.at_least else value <= self.bound


MEMORY = Figure("memory", "peak memory, all of the run", "MiB")
MEMORY_TLS = Figure("memory-tls", "  of the one with TLS", "MiB")

_REGISTRY, _DRAYAGE, _NGINX = "docker-registry", "drayage", "nginx"
BARS = (
    *(
        Bar(row, bound, against)
        for row in ("manifest-by-tag", "manifest-by-digest", "warm-4KiB")
        for bound, against in ((0.4, _NGINX), (1, _DRAYAGE))
    ),
    Bar("manifest-by-tag", 80, _REGISTRY),
    Bar("warm-4KiB", 60, _REGISTRY),
    *(
        bar
        for row in ("warm-4MiB", "warm-256MiB")
        for bar in (Bar(row, 1, _NGINX), Bar(row, 1, _REGISTRY), Bar(f"{row}-cpu", 1, _REGISTRY, at_least=False))
    ),
    Bar("tls-manifest", 0.3, _NGINX),
    *(Bar(row, 0.85, _NGINX) for row in ("tls-4MiB", "tls-256MiB")),
    *(Bar(row, 1, _REGISTRY) for row in ("tls-manifest", "tls-4KiB", "tls-4MiB", "tls-256MiB")),
    Bar("cold-unshaped", 1.6, _REGISTRY, at_least=False),
    Bar("cold-1Gbps", 1.03, DIRECT, at_least=False),
    Bar("cold-crowd", 1.03, DIRECT, at_least=False),
    *(Bar(f"{row}-first-byte", 5, DIRECT, at_least=False, operator="-") for row in ("cold-unshaped", "cold-1Gbps")),
    Bar("p99-while-filling", 5, at_least=False),
    Bar("herd-cold-sent", 1.02, at_least=False),
    Bar("memory", 150, at_least=False),
    Bar("memory-tls", 150, at_least=False),
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
    got = download(server.host, server.port, path, size, trust=server.trust)
    if got.digest != digest:
        raise Failure(f"{server.url}{path} is {got.digest}, not {digest}")


def _over_tls(server: Server) -> Server:
    assert server.secure is not None, "a row over TLS is for those who were started with it"
    return server.secure


def _manifest(name: str, title: str, path: Callable[[Image], str], servers: tuple[str, ...] = ALL) -> Row:
    figure = Figure(name, title, "requests/s")

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        if servers is SECURE:
            server = _over_tls(server)
        image = stage.image
        check(server, path(image), len(image.manifest), image.digest)
        rush = wrk(server.url + path(image), len(image.manifest), 32, stage.seconds)
        return {name: rush.requests / rush.seconds}

    return Row(name, (figure,), servers, measure)


def _warm_blob(name: str, title: str, layer: int, connections: int, servers: tuple[str, ...] = ALL) -> Row:
    large = layer > 0
    figures = [Figure(name, title, "MiB/s" if large else "requests/s")]
    if large:
        figures.append(Figure(f"{name}-cpu", "  processor time of the server", "s/GiB", 2))

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        if servers is SECURE:
            server = _over_tls(server)
        blob = stage.image.layers[layer]
        check(server, blob.path, blob.size, blob.digest)
        asked = stage.origin.served(blob).gets
        worked = processor_seconds(server.pid)
        seconds = stage.seconds * (3 if blob.size == LARGE else 1)  # for some to be whole, over TLS too
        rush = wrk(server.url + blob.path, blob.size, connections, seconds)
        worked = processor_seconds(server.pid) - worked
        if stage.origin.served(blob).gets != asked:
            raise Failure(f"{server.name} asked the origin for a blob that it had to have: {name} was not warm")
        if not large:
            return {name: rush.requests / rush.seconds}
        return {name: rush.sent / MIB / rush.seconds, f"{name}-cpu": worked / (rush.sent / GIB)}

    return Row(name, tuple(figures), servers, measure)


def _cold_blob(name: str, title: str, size: int, clients: int, rate: float | None, once: tuple[str, ...] = ()) -> Row:
    figures = [
        Figure(name, title, "s", 3),
        Figure(f"{name}-first-byte", "  first byte (the last client's)", "ms", 1),
        Figure(f"{name}-gets", "  GET requests at the origin", ""),
        Figure(f"{name}-sent", "  sent by the origin", "MiB"),
    ]

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        image = stage.origin.add(f"cold-{next(stage.cold)}", [size])
        blob = image.layers[0]
        with _peers_may_fail(server):
            check(server, image.by_tag, len(image.manifest), image.digest)  # a client comes by the manifest
            with stage.origin.through(Network(Link(rate) if rate else None)):
                # Without a cache the crowd would only show the link's width: one client is the reference.
                many = 1 if server.name == DIRECT else clients
                transfers = crowd(server.host, server.port, blob.path, size, many)
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

    return Row(name, tuple(figures), (*CACHES, "drayage", DIRECT), measure, once)


@contextlib.contextmanager
def _peers_may_fail(server: Server) -> Iterator[None]:
    """What another cannot do is a result; what mirrorproxy cannot ends the run."""
    try:
        yield
    except Failure as failure:
        if server.name in ("mirrorproxy", DIRECT):
            raise
        raise Unable("fails", str(failure)) from failure


def _while_filling() -> Row:
    """Manifests by tag while `FILLS` blobs come in at once."""
    name = "p99-while-filling"
    figures = (
        Figure(name, f"99 % of manifests while {FILLS} blobs come in", "ms", 2),
        Figure(f"{name}-rate", "  manifests meanwhile", "requests/s"),
    )

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        blobs: list[Blob] = []
        for _ in range(FILLS):
            image = stage.origin.add(f"cold-{next(stage.cold)}", [FILL_BLOB])
            check(server, image.by_tag, len(image.manifest), image.digest)
            blobs += image.layers

        def fill(blob: Blob) -> None:
            (transfer,) = crowd(server.host, server.port, blob.path, blob.size, 1)
            if transfer.digest != blob.digest:
                raise Failure(f"{name}: a client got {transfer.digest}, not {blob.digest}")

        with _peers_may_fail(server), ThreadPoolExecutor(FILLS) as pool:
            with stage.origin.through(Network(Link(FAST_LINK))):
                fills = [pool.submit(fill, blob) for blob in blobs]
                stage.origin.wait_busy(FILLS, FINISH)
                rush = wrk(server.url + stage.image.by_tag, len(stage.image.manifest), 8, stage.seconds)
                if any(one.done() for one in fills):
                    raise Failure(f"{name}: a blob had come before the manifests were measured")
                for one in fills:
                    one.result()
                stage.origin.wait_idle(FINISH)
        os.sync()
        return {name: rush.p99 * 1e3, f"{name}-rate": rush.requests / rush.seconds}

    return Row(name, figures, CACHES, measure)


def _herd(name: str, title: str, servers: tuple[str, ...], *, cold: bool) -> Row:
    """`HERD` clients at once on one blob."""
    figures = [
        Figure(name, title, "s", 2),
        Figure(f"{name}-first-byte", "  first byte, of half of them", "ms"),
        Figure(f"{name}-last-first-byte", "  first byte, of the last", "ms"),
    ]
    if cold:
        figures.append(Figure(f"{name}-gets", "  GET requests at the origin", ""))
        figures.append(Figure(f"{name}-sent", "  sent by the origin, of the size", "times", 3))

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        if cold:
            image = stage.origin.add(f"cold-{next(stage.cold)}", [HERD_BLOB])
            check(server, image.by_tag, len(image.manifest), image.digest)
            blob = image.layers[0]
        else:
            blob = stage.image.layers[HERD_LAYER]
        with _peers_may_fail(server):
            found = herd(server.host, server.port, blob.path, blob.size, HERD, HERD_PATIENCE)
            if set(found.digests) != {blob.digest}:
                raise Failure(f"{name}: clients got {found.digests}, not {blob.digest}")
        stage.origin.wait_idle(FINISH)
        os.sync()
        result = {
            name: found.seconds,
            f"{name}-first-byte": found.first_byte * 1e3,
            f"{name}-last-first-byte": found.last_first_byte * 1e3,
        }
        if cold:
            served = stage.origin.served(blob)
            result |= {f"{name}-gets": served.gets, f"{name}-sent": served.sent / blob.size}
        return result

    return Row(name, tuple(figures), servers, measure, once=tuple(name for name in servers if name != "mirrorproxy"))


LAYERS = [SMALL, MEDIUM, LARGE, HERD_BLOB]
"""The sizes of the warm image's layers."""
HERD_LAYER = 3

ROWS = (
    _manifest("manifest-by-tag", "manifest by tag, warm", lambda image: image.by_tag),
    _manifest("manifest-by-digest", "manifest by digest, warm", lambda image: image.by_digest),
    _warm_blob("warm-4KiB", "4 KiB blob, warm", 0, 32),
    _warm_blob("warm-4MiB", "4 MiB blob, warm", 1, 16),
    _warm_blob("warm-256MiB", "256 MiB blob, warm", 2, 4),
    _manifest("tls-manifest", "manifest by tag, warm, TLS", lambda image: image.by_tag, SECURE),
    _warm_blob("tls-4KiB", "4 KiB blob, warm, TLS", 0, 32, SECURE),
    _warm_blob("tls-4MiB", "4 MiB blob, warm, TLS", 1, 16, SECURE),
    _warm_blob("tls-256MiB", "256 MiB blob, warm, TLS", 2, 4, SECURE),
    _cold_blob("cold-unshaped", "256 MiB blob, cold, origin unshaped", LARGE, 1, None),
    _cold_blob("cold-1Gbps", "256 MiB blob, cold, origin at 1 Gbit/s", LARGE, 1, FAST_LINK),
    _cold_blob(
        "cold-crowd",
        f"32 MiB blob, cold, {CROWD} clients, origin at 16 MiB/s",
        CROWD_BLOB,
        CROWD,
        SLOW_LINK,
        once=("docker-registry", "drayage"),
    ),
    _while_filling(),
    _herd("herd-warm", f"64 MiB blob, warm, {HERD:,} clients", ALL, cold=False),
    _herd("herd-cold", f"64 MiB blob, cold, {HERD:,} clients", ("mirrorproxy",), cold=True),
)
