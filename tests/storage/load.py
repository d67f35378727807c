"""Clients that pull without end while the service lives and dies, and check all that they are told is complete."""

import asyncio
import contextlib
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from mirrorproxy.names import Digest
from tests.e2e.client import connect
from tests.e2e.proxy import Proxy
from tests.fakes.content import Image
from tests.fakes.hub import Hub

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Stock:
    """Images in a hub whose tags move: each of two to four layers, some of them shared."""

    hub: Hub
    chance: random.Random
    repositories: int = 8
    images: dict[str, Image] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """The repositories of all blobs there ever were."""

    def fill(self) -> None:
        """Put an image into each repository."""
        self.base = self.chance.randbytes(MIB)
        for number in range(self.repositories):
            self.move(f"team/image-{number}")

    def move(self, name: str | None = None) -> None:
        """Let the tag of a repository point at a new image."""
        name = name or self.chance.choice(list(self.images))
        sizes = [self.chance.choice((3 * KIB, 70 * KIB, 700 * KIB, 5 * MIB)) for _ in range(self.chance.randint(1, 3))]
        layers = [self.base, *(self.chance.randbytes(size) for size in sizes)]
        image = self.images[name] = self.hub.add_image(name, "1", *layers, config=self.chance.randbytes(500))
        self.owners |= {part.digest: name for part in (image.config, *image.layers)}


@dataclass
class Load:
    """So many clients. `complete` counts answers that came whole, `broken` those that did not; `wrong` has what should
    never be.
    """

    proxy: Proxy
    stock: Stock
    chance: random.Random
    complete: int = 0
    broken: int = 0
    wrong: list[str] = field(default_factory=list)

    async def run(self, clients: int) -> None:
        """Pull until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client())

    async def _client(self) -> None:
        while True:
            name = self.chance.choice(list(self.stock.images))
            try:
                manifest = await self._get(f"/v2/{name}/manifests/1")
                if manifest is None:
                    continue
                document = json.loads(manifest)
                for part in [document["config"], *document["layers"]]:
                    await self._get(f"/v2/{name}/blobs/{part['digest']}", part["digest"])
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                self.broken += 1
                task = asyncio.current_task()
                assert task is not None
                if task.cancelling():  # closing the connection failed, and that error took the cancellation's place
                    raise asyncio.CancelledError from None
                await asyncio.sleep(0.05)  # it is down

    async def _get(self, path: str, digest: str | None = None) -> bytes | None:
        async with asyncio.timeout(20), connect(self.proxy.address) as wire:
            answer = await wire.ask(path)
        if answer.status != 200 or not answer.complete:
            self.broken += 1
            return None
        self.complete += 1
        expected = digest or answer.headers["Docker-Content-Digest"]
        if Digest(expected).of_same_algorithm(answer.body) != expected:
            self.wrong.append(f"{path}: {len(answer.body)} bytes are not {expected}")
        return answer.body


def put_old(directory: Path, chance: random.Random, count: int, size: int) -> None:
    """Put content into an empty cache that nobody has used for a year: what is evicted first."""
    folder = directory / "blobs/sha256"
    folder.mkdir(parents=True)
    then = time.time() - 365 * 86_400
    for _ in range(count):
        data = chance.randbytes(size)
        path = folder / Digest.of(data).hex
        path.write_bytes(data)
        path.chmod(0o444)
        os.utime(path, (then, then))


def content(directory: Path) -> dict[Digest, int]:
    """The content in a cache directory, by what it takes on the disk."""
    found = {}
    for path in (directory / "blobs/sha256").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[Digest(f"sha256:{path.name}")] = path.stat().st_blocks * 512
    return found


def damaged(directory: Path) -> list[Digest]:
    """The content in a cache directory whose bytes are not right."""
    found = []
    for path in (directory / "blobs/sha256").iterdir():
        digest = Digest(f"sha256:{path.name}")
        with contextlib.suppress(FileNotFoundError):
            if Digest.of(path.read_bytes()) != digest:
                found.append(digest)
    return found


def temporary(directory: Path) -> set[str]:
    """The temporary files there are now."""
    return {path.name for path in (directory / "partial").iterdir() if path.name.startswith("tmp-")}
