"""All kinds of clients at once, for as long as one likes, at a pace that half a core bears: `Mixed`."""

import asyncio
import json
import logging
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from mirrorproxy.names import Digest
from tests.e2e.client import connect
from tests.e2e.proxy import Proxy
from tests.soak.stock import KIB, MIB, Stock
from tests.web.wire import Wire

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds for anything: the machine may be busy
_GARBAGE = (
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /v2/\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"PUT /v2/team/image-0/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
    b"GET /v2/team/image-0/blobs/sha256:1234 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
)
_PAGES = ("/metrics", "/readyz?verbose", "/v2/", "/v2/_catalog?n=100", "/v2/team/image-0/tags/list")

Act = Callable[[], Awaitable[None]]


@dataclass
class Mixed:
    """The clients. `done` counts what each kind did to its end, `wrong` has what should never be."""

    proxy: Proxy
    stock: Stock
    chance: random.Random
    tls: ssl.SSLContext | None = None
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """What there is: what a client does, about how many seconds it rests then, and how many do so."""
        self._kinds: list[tuple[Act, float, int]] = [
            (self._pull, 0.5, 3),
            (self._hot, 0.5, 1),
            (self._ranges, 0.5, 1),
            (self._cold, 1.0, 1),
            (self._giant, 4.0, 1),
            (self._leave, 0.3, 2),
            (self._slow, 1.0, 2),
            (self._idle, 1.0, 2),
            (self._missing, 0.5, 1),
            (self._garbage, 0.5, 1),
            (self._pages, 1.0, 1),
            (self._reload, 5.0, 1),
        ]

    async def run(self) -> None:
        """All of them, until `end`."""
        async with asyncio.TaskGroup() as group:
            for act, pause, many in self._kinds:
                for _ in range(many):
                    group.create_task(self._again(act, pause))

    def idle_kinds(self) -> list[str]:
        """Those of which none came to an end."""
        return [act.__name__ for act, _, _ in self._kinds if not self.done[act.__name__]]

    def end(self) -> None:
        """Let `run` return when each client is done with what it does now."""
        self._over.set()

    async def _again(self, act: Act, pause: float) -> None:
        name = act.__name__
        while not self._over.is_set():
            try:
                async with asyncio.timeout(_PATIENCE):
                    await act()
                self.done[name] += 1
            except (OSError, EOFError, AssertionError, ExceptionGroup) as error:
                self._note(f"{name}: {error!r}")
            await self._pause(pause * self.chance.uniform(0.5, 1.5))

    def _note(self, wrong: str) -> None:
        log.warning("%s", wrong)
        self.wrong.append(wrong)

    async def _pause(self, seconds: float) -> None:
        """Or until the end, if that is sooner."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass

    # What clients do.

    async def _pull(self, name: str | None = None) -> None:
        """An image by its tag, over one connection, as containerd does."""
        name = name or self.chance.choice(list(self.stock.popular))
        async with self._connection() as wire:
            tag = await wire.ask(f"/v2/{name}/manifests/1", "HEAD")
            assert tag.status == 200, tag
            manifest = await self._get(wire, f"/v2/{name}/manifests/{tag.headers['Docker-Content-Digest']}")
            document = json.loads(manifest)
            for part in (document["config"], *document["layers"]):
                assert len(await self._get(wire, f"/v2/{name}/blobs/{part['digest']}")) == part["size"]

    async def _hot(self) -> None:
        """What all nodes of a cluster ask in the same second."""
        image = self.stock.popular["team/image-0"][-1]
        async with self._connection() as wire:
            for _ in range(20):
                await self._get(wire, "/v2/team/image-0/manifests/1")
                await self._get(wire, f"/v2/team/image-0/blobs/{image.config.digest}")

    async def _ranges(self) -> None:
        """Pieces from the middle of a large blob, two of them by one request."""
        size = len(self.stock.large)
        async with self._connection() as wire:
            for _ in range(4):
                start = self.chance.randrange(size)
                end = min(size, start + self.chance.choice((1, KIB, 300 * KIB)))
                answer = await wire.ask(self.stock.large_path, headers={"Range": f"bytes={start}-{end - 1}"})
                assert answer.status == 206, answer.status
                assert answer.complete
                if answer.body != self.stock.large[start:end]:
                    self._note(f"other bytes than {start} to {end} of the large blob")

    async def _cold(self) -> None:
        """What nobody had before, by three at once: a new image under an old tag, or in a repository of its own."""
        if self.chance.random() < 0.5:
            self.stock.move(name := self.chance.choice(list(self.stock.popular)))
        else:
            name, _ = self.stock.once(*self.chance.choices((KIB, 50 * KIB, 600 * KIB, 2 * MIB), k=3))
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(self._pull(name))

    async def _giant(self) -> None:
        """A download that comes by several connections, of which one client sees the end and one does not."""
        name, image = self.stock.once(20 * MIB)
        path = f"/v2/{name}/blobs/{image.layers[0].digest}"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._part(path, 3 * MIB))
            group.create_task(self._whole(path))

    async def _leave(self) -> None:
        """A client that goes away in the middle of a body."""
        await self._part(self.stock.large_path, self.chance.randrange(8 * MIB))

    async def _slow(self) -> None:
        """One that takes its time: 2 MiB/s, with hardly a buffer."""
        name = self.chance.choice(list(self.stock.popular))
        for layer in self.stock.popular[name][-1].layers:
            async with self._connection(16 * KIB) as wire:
                wire.send(f"/v2/{name}/blobs/{layer.digest}")
                status, headers = await wire.head()
                assert status == 200, status
                body = bytearray()
                while len(body) < int(headers["Content-Length"]):
                    piece = await wire.reader.read(64 * KIB)
                    assert piece, f"the transfer of {layer} broke after {len(body)} bytes"
                    body += piece
                    await self._pause(len(piece) / (2 * MIB))
                self._check(layer.digest, bytes(body))

    async def _idle(self) -> None:
        """One that comes and says nothing, or half a request, and one that asks and then takes nothing."""
        async with self._connection(KIB) as wire:
            match self.chance.randrange(3):
                case 0:
                    wire.writer.write(b"GET /v2/ HTTP/1.1\r\nHo")
                case 1:
                    wire.send(self.stock.large_path)
            await self._pause(4.0)

    async def _missing(self) -> None:
        """What is not there, each time by another name."""
        some = self.chance.randbytes(8).hex()
        paths = (
            f"/v2/team/image-0/manifests/{some}",
            f"/v2/team/image-0/blobs/sha256:{some * 4}",
            f"/v2/nobody/{some}/manifests/1",
            f"/v2/nobody/{some}/tags/list",
            f"/v2/nowhere.test/team/{some}/manifests/1",
        )
        async with self._connection() as wire:
            for path in paths:
                answer = await wire.ask(path)
                assert (answer.status, answer.complete) == (404, True), (path, answer)

    async def _garbage(self) -> None:
        """What is no request, or no good one."""
        async with self._connection() as wire:
            wire.writer.write(self.chance.choice(_GARBAGE))
            answer = await wire.answer()
            assert 400 <= answer.status < 500, answer

    async def _pages(self) -> None:
        """Prometheus, the kubelet, a curious user."""
        async with self._connection() as wire:
            for page in _PAGES:
                answer = await wire.ask(page)
                assert (answer.status, answer.complete) == (200, True), (page, answer)

    async def _reload(self) -> None:
        """The configuration is read again; what the hub remembers of the requests so far goes on the same occasion."""
        await self.proxy.reload()
        self.stock.hub.log.clear()

    # Their parts.

    def _connection(self, limit: int = MIB) -> AbstractAsyncContextManager[Wire]:
        return connect(self.proxy.address, self.tls, limit=limit)

    async def _whole(self, path: str) -> None:
        async with self._connection() as wire:
            await self._get(wire, path)

    async def _part(self, path: str, size: int) -> None:
        async with self._connection() as wire:
            wire.send(path)
            status, _ = await wire.head()
            assert status == 200, status
            await wire.reader.readexactly(size)

    async def _get(self, wire: Wire, path: str) -> bytes:
        answer = await wire.ask(path)
        assert (answer.status, answer.complete) == (200, True), (path, answer.status, answer.body[:300])
        self._check(answer.headers["Docker-Content-Digest"], answer.body)
        if path.rpartition("/")[2].startswith("sha256:"):
            assert path.endswith(answer.headers["Docker-Content-Digest"])
        return answer.body

    def _check(self, expected: str, body: bytes) -> None:
        if Digest(expected).of_same_algorithm(body) != expected:
            self._note(f"{len(body)} bytes are not {expected}")
