"""What bad networks make of a pull: the origin is throttled, far away, unreliable, or behind a thin link.

`clients` pull, and between them or the caches and the origin there is a `network`.
"""

import os
import subprocess
from collections.abc import Callable

from bench import Failure
from bench.clients import Pulled, pull
from bench.load import crowd
from bench.network import Link, Network
from bench.origin import REPOSITORY, Image
from bench.peers import Server
from bench.rows import CACHES, DIRECT, FINISH, MIB, Bar, Figure, Row, Stage, Unable, check

BLOB = [64 * MIB]
LAYERS = [MIB] * 12
THIN_LINK, FAR_LINK = 16 * MIB, 50e6
"""Bytes/s, of all connections together."""
THROTTLE = 4 * MIB
"""Bytes/s of each connection by itself."""
ROUND_TRIP = 0.2
CUT = 8 * MIB
CLIENTS, AT_ONCE, RANGES = 32, 3, 20
PATIENCE = 30
"""Seconds that a pull may take: nearly twice what the slowest of these takes without a cache."""

_SLOW = ("docker-registry",)
"""Who takes so long here that one round has to do, for all rounds to end within some minutes."""

Pull = Callable[[Server, Image], Pulled]


def _row(
    name: str, title: str, sizes: list[int], network: Callable[[], Network], by: Pull, once: tuple[str, ...] = _SLOW
) -> Row:
    """A pull of what no cache has: a blob whose manifest was pulled before, or a whole image if `sizes` are many."""
    figures = (
        Figure(name, title, "s", 2),
        Figure(f"{name}-asked", "  requests by clients", ""),
        Figure(f"{name}-requests", "  requests at the origin", ""),
        Figure(f"{name}-sent", "  sent by the origin, of the size", "times", 3),
    )
    whole = len(sizes) > 1

    def measure(stage: Stage, server: Server) -> dict[str, float]:
        origin = stage.origin
        image = origin.add(f"{name}-{next(stage.cold)}", sizes)
        wanted = [image.config, *image.layers] if whole else [*image.layers]
        if not whole:
            check(server, image.by_tag, len(image.manifest), image.digest)  # a client comes by the manifest
        try:
            with origin.through(network()):
                before = origin.requests
                pulled = _attempt(by, server, image)
                if pulled.digests != [blob.digest for blob in wanted]:
                    raise Unable("fails", "other bytes came than the origin has")
                origin.wait_idle(FINISH)
                requests = origin.requests - before
        finally:
            origin.wait_idle(FINISH)
            os.sync()  # what this one left to be written is not the next one's burden
        return {
            name: pulled.seconds,
            f"{name}-asked": pulled.requests,
            f"{name}-requests": requests,
            f"{name}-sent": sum(origin.served(blob).sent for blob in wanted) / sum(blob.size for blob in wanted),
        }

    return Row(name, figures, (*CACHES, DIRECT), measure, once)


def _attempt(by: Pull, server: Server, image: Image) -> Pulled:
    try:
        return by(server, image)
    except subprocess.TimeoutExpired:
        raise Unable(f"> {PATIENCE}", f"not done after {PATIENCE} s") from None
    except Failure as failure:
        raise Unable("fails", str(failure)) from failure


def _one(server: Server, image: Image) -> Pulled:
    return _crowd(1, server, image)


def _many(server: Server, image: Image) -> Pulled:
    # Without a cache they would only divide the link: one client is the reference.
    return _crowd(1 if server.name == DIRECT else CLIENTS, server, image)


def _crowd(clients: int, server: Server, image: Image) -> Pulled:
    blob = image.layers[0]
    transfers = crowd(server.host, server.port, blob.path, blob.size, clients, PATIENCE)
    return Pulled(sorted({one.digest for one in transfers}), max(one.seconds for one in transfers), clients)


def _resuming(server: Server, image: Image) -> Pulled:
    blob = image.layers[0]
    return pull("resuming", server.host, server.port, blob.path, blob.size, patience=PATIENCE)


def _image(server: Server, image: Image) -> Pulled:
    return pull("image", server.host, server.port, REPOSITORY, image.tag, AT_ONCE, patience=PATIENCE)


def _image_apart(server: Server, image: Image) -> Pulled:
    return pull("image_apart", server.host, server.port, REPOSITORY, image.tag, AT_ONCE, patience=PATIENCE)


def _ranges(server: Server, image: Image) -> Pulled:
    blob = image.layers[0]
    return pull("ranges", server.host, server.port, blob.path, blob.size, RANGES, patience=PATIENCE)


ROWS = (
    _row(
        "throttled",
        "64 MiB blob, 4 MiB/s a connection",
        BLOB,
        lambda: Network(each=THROTTLE),
        _one,
        once=(*_SLOW, DIRECT),  # 16 s, whatever the machine does
    ),
    _row(
        "far-image",
        "12 x 1 MiB, 200 ms, 50 MB/s, by dockerd",
        LAYERS,
        lambda: Network(Link(FAR_LINK), round_trip=ROUND_TRIP),
        _image_apart,
    ),
    _row(
        "far-image-kept",
        "12 x 1 MiB, 200 ms, 50 MB/s, by containerd",
        LAYERS,
        lambda: Network(Link(FAR_LINK), round_trip=ROUND_TRIP),
        _image,
    ),
    _row(
        "cut",
        "64 MiB blob, 16 MiB/s, cut every 8 MiB",
        BLOB,
        lambda: Network(Link(THIN_LINK), cut=CUT),
        _resuming,
    ),
    _row("thin-crowd", "64 MiB blob, 16 MiB/s, 32 clients", BLOB, lambda: Network(Link(THIN_LINK)), _many),
    _row("ranges", "64 MiB blob, 16 MiB/s, 20 open ranges", BLOB, lambda: Network(Link(THIN_LINK)), _ranges),
)

_EXACT = 1.005
"""The most that is still 1.00."""

BARS = (
    Bar("throttled", 0.35, DIRECT, at_least=False),
    Bar("far-image", 0.6, DIRECT, at_least=False),
    Bar("cut-asked", 1, at_least=False),
    Bar("cut-sent", 1.02, at_least=False),
    Bar("thin-crowd", 1.05, DIRECT, at_least=False),
    Bar("thin-crowd-sent", _EXACT, at_least=False),
    Bar("ranges-sent", _EXACT, at_least=False),
)
