"""The registry upstream of the caches: generated images from memory, over plain sockets, counted.

It is one for both caches, so that neither gains from its upstream. A thread a connection and `sendall` of whole
megabytes (which gives up the GIL) reach 3 GB/s, beyond what either cache takes in, and 25,000 manifests/s, which is ten
times what a docker-registry in its place answers. Any network can be put before it.
"""

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit

from bench import Failure
from bench.network import Network, Way

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
REPOSITORY = "library/bench"


@dataclass(frozen=True)
class Blob:
    """`size` bytes: a prefix of its own, then what all blobs share; a new 256 MiB blob costs one hash and no memory."""

    digest: str
    size: int
    prefix: bytes
    shared: memoryview

    def pieces(self, start: int, end: int, step: int) -> Iterator[memoryview | bytes]:
        """The bytes from `start` up to, not including, `end`, at most `step` at a time."""
        if start < len(self.prefix):
            yield self.prefix[start:end]
            start = len(self.prefix)
        for offset in range(start, end, step):
            yield self.shared[offset : min(offset + step, end)]

    @property
    def path(self) -> str:
        """Where a registry's client asks for it."""
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"


@dataclass(frozen=True)
class Image:
    """A manifest of a kilobyte or two, its tag, its config, and its layers in the order of the sizes asked for."""

    tag: str
    manifest: bytes
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        """The manifest's."""
        return _sha256(self.manifest)

    @property
    def by_tag(self) -> str:
        """Where a client asks for the manifest by its tag."""
        return f"/v2/{REPOSITORY}/manifests/{self.tag}"

    @property
    def by_digest(self) -> str:
        """Where a client asks for the manifest by its digest."""
        return f"/v2/{REPOSITORY}/manifests/{self.digest}"


@dataclass
class Served:
    """What left for one blob: GET requests answered with content, and bytes of content."""

    gets: int = 0
    sent: int = 0


@dataclass
class Origin:
    """The server, for blobs of up to `largest` bytes. `requests` counts all that it was asked, HEAD included."""

    largest: int
    requests: int = 0
    _manifests: dict[str, Image] = field(default_factory=dict)
    _blobs: dict[str, Blob] = field(default_factory=dict)
    _served: dict[str, Served] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shared = memoryview(os.urandom(self.largest))
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._busy = 0
        self._network = Network()
        self._connections: set[socket.socket] = set()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.host, self.port = self._listener.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}"
        threading.Thread(target=self._accept, name="origin", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; transfers under way end where they are."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextlib.contextmanager
    def through(self, network: Network) -> Iterator[None]:
        """Be reached through `network` meanwhile.

        It begins and ends with no connection at all: one that a cache kept from before would save it the time that
        another has to take, and know nothing of the network.
        """
        self._change(network)
        try:
            yield
        finally:
            self._change(Network())

    def add(self, tag: str, sizes: list[int]) -> Image:
        """A new image of layers that no cache can have yet."""
        layers = tuple(self._blob(size) for size in sizes)
        config = self._blob(512)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER_TYPE, "digest": blob.digest, "size": blob.size} for blob in layers],
            "annotations": {"org.opencontainers.image.description": "generated for a benchmark"},
        }
        image = Image(tag, json.dumps(manifest, indent=2).encode(), config, layers)
        with self._lock:
            self._manifests[image.tag] = self._manifests[image.digest] = image
        return image

    def served(self, blob: Blob) -> Served:
        """What left for this blob until now."""
        with self._lock:
            now = self._served[blob.digest]
            return Served(now.gets, now.sent)

    def wait_busy(self, requests: int, seconds: float) -> None:
        """Return once so many requests are being answered. Raises Failure when that takes longer than `seconds`."""
        with self._quiet:
            if not self._quiet.wait_for(lambda: self._busy >= requests, seconds):
                raise Failure(f"after {seconds:.0f} s the origin is not sending to {requests} requests at once")

    def wait_idle(self, seconds: float) -> None:
        """Return once no request is being answered (a cache may go on filling after its client has everything).

        Raises Failure when that takes longer than `seconds`.
        """
        with self._quiet:
            if not self._quiet.wait_for(lambda: self._busy == 0, seconds):
                raise Failure(f"the origin is still sending after {seconds:.0f} s: a cache does not finish its fill")

    def _blob(self, size: int) -> Blob:
        prefix = os.urandom(min(size, 32))
        shared = self._shared[:size]
        state = hashlib.sha256(prefix)
        state.update(shared[len(prefix) :])
        blob = Blob(f"sha256:{state.hexdigest()}", size, prefix, shared)
        with self._lock:
            self._blobs[blob.digest] = blob
            self._served[blob.digest] = Served()
        return blob

    def _change(self, network: Network) -> None:
        with self._lock:
            self._network = network
            for connection in self._connections:
                with contextlib.suppress(OSError):  # closed from the other side in this moment
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
                way = Way(self._network, self._closing.wait)
            threading.Thread(target=self._connection, args=(connection, way), daemon=True).start()

    def _connection(self, connection: socket.socket, way: Way) -> None:
        try:
            # A client that goes away in the middle is the caches' right, and shows in what they delivered.
            with connection, connection.makefile("rb") as stream, contextlib.suppress(ConnectionError):
                while not way.over and (request := _read_request(stream)):
                    self._answer(connection, way, *request)
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket, way: Way, method: str, target: str, headers: dict[str, str]) -> None:
        with self._lock:
            self.requests += 1
            self._busy += 1
            self._quiet.notify_all()
        try:
            if way.turn():
                self._send_answer(connection, way, method, target, headers)
        finally:
            with self._quiet:
                self._busy -= 1
                self._quiet.notify_all()

    def _send_answer(
        self, connection: socket.socket, way: Way, method: str, target: str, headers: dict[str, str]
    ) -> None:
        kind, _, name = target.removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if target == "/v2/":
            _send(connection, method, 200, "application/json", b"{}")
        elif kind == "manifests" and (image := self._manifests.get(name)):
            _send(connection, method, 200, MANIFEST_TYPE, image.manifest, image.digest)
        elif kind == "blobs" and (blob := self._blobs.get(name)):
            self._send_blob(connection, way, method, blob, headers.get("range"))
        else:
            body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"the benchmark has no such thing","detail":null}]}'
            _send(connection, method, 404, "application/json", body)

    def _send_blob(self, connection: socket.socket, way: Way, method: str, blob: Blob, wanted: str | None) -> None:
        start, end = _range(wanted, blob.size)
        partial = f"Content-Range: bytes {start}-{end - 1}/{blob.size}\r\n" if wanted else ""
        status = 206 if wanted else 200
        if start >= end:
            _send(connection, method, 416, "text/plain", b"")
            return
        length = end - start
        connection.sendall(_head(status, "application/octet-stream", length, blob.digest, partial))
        if method != "GET":
            return
        served = self._served[blob.digest]
        with self._lock:
            served.gets += 1
        for piece in blob.pieces(start, end, way.step):
            left = memoryview(piece)[: way.admit(len(piece))]
            while left:
                taken = connection.send(left)
                left = left[taken:]
                with self._lock:
                    served.sent += taken  # it is on its way now, whether anybody reads it or not
            if way.over or self._closing.is_set():
                return


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _read_request(stream: BinaryIO) -> tuple[str, str, dict[str, str]] | None:
    """Method, path without its query, and headers by their names in lower case; None at the connection's end."""
    line = stream.readline(8192).decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (header := stream.readline(8192).decode("latin-1").strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    return line[0], urlsplit(line[1]).path, headers


def _range(wanted: str | None, size: int) -> tuple[int, int]:
    """Start and end (not included) of `bytes=a-b` or `bytes=a-`, with which a cache continues or divides a blob."""
    if not wanted:
        return 0, size
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size


def _head(status: int, media_type: str, length: int, digest: str | None, extra: str = "") -> bytes:
    named = f'Docker-Content-Digest: {digest}\r\nETag: "{digest}"\r\n' if digest else ""
    return (
        f"HTTP/1.1 {status} {'OK' if status < 300 else 'No'}\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {length}\r\n"
        f"Docker-Distribution-API-Version: registry/2.0\r\nAccept-Ranges: bytes\r\n{named}{extra}\r\n"
    ).encode()


def _send(
    connection: socket.socket, method: str, status: int, media_type: str, body: bytes, digest: str | None = None
) -> None:
    head = _head(status, media_type, len(body), digest)
    connection.sendall(head if method == "HEAD" else head + body)
