"""The proxy of `mirrorproxy demo`, as a process of its own, and a client that pulls through it as Docker does."""

import asyncio
import hashlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp

from mirrorproxy.cli.demo import Bar, Failed, Pull
from mirrorproxy.cli.demo_registry import REPOSITORY, TAG, Registry
from mirrorproxy.manifests import ACCEPT

_AT_A_TIME = 3  # layers; as Docker and containerd do
_START_TIMEOUT = 20.0
_SETTLE_TIMEOUT = 30.0
_STOP_TIMEOUT = 5.0
_NO_FILLS = "mirrorproxy_fills_inflight 0.0"
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
_LOG_TAIL = 10  # lines


@dataclass(frozen=True, slots=True)
class Proxy:
    """`mirrorproxy serve` with a configuration of its own: all that it writes is in one folder."""

    url: str
    config: Path
    log: Path

    @classmethod
    def prepare(cls, folder: Path, registry_port: int) -> Self:
        """Write the configuration for a proxy in `folder` that knows the registry on `registry_port`."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {
            "server": {"listen": f"127.0.0.1:{port}", "grace": "0s"},
            "cache": {"directory": str(folder / "cache"), "min_free": "0"},
            "upstreams": {"docker.io": {"endpoints": [f"http://127.0.0.1:{registry_port}"]}},
            "log": {"level": "warning", "format": "text", "access": False},
        }
        config = folder / "config.yaml"
        config.write_text(json.dumps(settings, indent=2))  # JSON is YAML
        return cls(f"http://127.0.0.1:{port}", config, folder / "log")

    @asynccontextmanager
    async def running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """A process of it, from when it is ready. It ends with the block, whatever happens."""
        # What the user's environment says about another mirrorproxy, or the way out, is not for this one.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MIRRORPROXY__") and not name.lower().endswith("_proxy")
        }
        log = await asyncio.to_thread(self.log.open, "wb")
        with log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mirrorproxy", "serve", "--config", str(self.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        try:
            await self._ready(process, session)
            yield
        finally:
            await _end(process)

    async def _ready(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                while process.returncode is None:
                    try:
                        async with session.get(f"{self.url}/readyz") as response:
                            if response.status == 200:
                                return
                    except aiohttp.ClientError:
                        pass  # it does not listen yet
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Failed(f"the proxy was not ready after {_START_TIMEOUT:.0f} s") from None
        raise Failed(f"the proxy ended at once, with status {process.returncode}")

    async def settled(self, session: aiohttp.ClientSession) -> None:
        """Wait until what it served is on its disk.

        A client has the last bytes as soon as the digest is right. Who asks before they are flushed joins the download,
        which is no hit. Raises `Failed`.
        """
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT):
                while True:
                    async with session.get(f"{self.url}/metrics") as response:
                        if _NO_FILLS in (await response.text()).splitlines():
                            return
                    await asyncio.sleep(0.05)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failed(f"the proxy did not finish writing: {type(error).__name__} {error}".rstrip()) from error

    def last_words(self) -> str:
        """The end of what it wrote."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class _Client:
    """Pulls the image once, checks every digest, and counts what came from the cache.

    `fresh`: the registry is to be asked about the tag now, even if that was done a moment ago.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, bar: Bar, *, fresh: bool) -> None:
        self.answers = 0
        self.hits = 0
        self._session = session
        self._url = url
        self._bar = bar
        self._fresh = fresh
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    async def pull(self) -> None:
        """Ask as Docker does: base, tag, manifest by digest, config, layers. Raises `Failed`."""
        async with self._ask("GET", "/v2/"):
            pass
        async with self._ask("HEAD", f"/v2/{REPOSITORY}/manifests/{TAG}", fresh=self._fresh) as response:
            self._count(response)
            digest = response.headers.get("Docker-Content-Digest", "")
        manifest = json.loads(await self._get("manifests", digest, keep=True))
        await self._get("blobs", manifest["config"]["digest"])
        try:
            async with asyncio.TaskGroup() as group:
                for layer in manifest["layers"]:
                    group.create_task(self._layer(layer["digest"]))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _layer(self, digest: str) -> None:
        async with self._slots:
            await self._get("blobs", digest)

    async def _get(self, kind: str, digest: str, *, keep: bool = False) -> bytes:
        sha256 = hashlib.sha256()
        kept = []
        async with self._ask("GET", f"/v2/{REPOSITORY}/{kind}/{digest}") as response:
            self._count(response)
            async for part in response.content.iter_any():
                sha256.update(part)
                self._bar.add(len(part))
                if keep:
                    kept.append(part)
        if digest != f"sha256:{sha256.hexdigest()}":
            raise Failed(f"{kind}/{digest}: these are other bytes")
        return b"".join(kept)

    @asynccontextmanager
    async def _ask(self, method: str, path: str, *, fresh: bool = False) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": ACCEPT} | ({"Cache-Control": "no-cache"} if fresh else {})
        try:
            async with self._session.request(method, f"{self._url}{path}", headers=headers) as response:
                if response.status != 200:
                    raise Failed(f"{method} {path}: {response.status} {await response.text()}")
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failed(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error

    def _count(self, response: aiohttp.ClientResponse) -> None:
        """RFC 9211: `fwd=stale` is content of the cache, too, about which upstream was asked."""
        status = response.headers.get("Cache-Status", "")
        self.answers += 1
        self.hits += "; hit" in status or "; fwd=stale" in status


async def three_pulls(registry: Registry, proxy: Proxy, size: int) -> list[Pull]:
    """Pull an image of `size` bytes from `registry` through `proxy`: cold, warm, and without registry.

    Raises `Failed`, `OSError`.
    """
    pulls = []
    async with registry, aiohttp.ClientSession(timeout=_TIMEOUT) as session, proxy.running(session):
        for name in ("cold", "warm", "offline"):
            if name == "offline":
                await registry.stop()
            sent, requests = registry.sent, registry.requests
            bar = Bar(name, size)
            client = _Client(session, proxy.url, bar, fresh=name == "offline")
            await client.pull()
            seconds = bar.end()
            await proxy.settled(session)
            pulls.append(
                Pull(name, seconds, registry.sent - sent, registry.requests - requests, client.hits, client.answers)
            )
    return pulls
