"""The registry of `mirrorproxy demo`: one generated image, behind a line that is as slow as one likes."""

import asyncio
import hashlib
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler

from mirrorproxy.manifests import OCI_MANIFEST

REPOSITORY = "demo/app"
TAG = "1.0"

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_SHARES = (42, 26, 16, 9, 5, 2)  # percent of the image: a few layers make most of it, as in real ones
_CHUNK = 32 << 10  # the size of a turn on the line: 8 ms at 4 MB/s
_CREDIT = 0.02  # seconds: a late wake-up of the event loop is made up for, so that the rate is kept


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest, and the blobs that it names: a config and layers of random bytes, which nobody will unpack."""

    manifest: bytes
    blobs: dict[str, bytes]

    @classmethod
    def generate(cls, size: int) -> Self:
        """An image with layers of `size` bytes in all."""
        sizes = [size * share // 100 for share in _SHARES[1:]]
        layers = [os.urandom(length) for length in (size - sum(sizes), *sizes)]
        digests = [_digest(layer) for layer in layers]
        config = _json(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}, "config": {}}
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, layer) for layer in layers],
        }
        return cls(_json(manifest), {_digest(config): config} | dict(zip(digests, layers, strict=True)))

    @property
    def size(self) -> int:
        """The bytes of manifest, config and layers: what a client has to get."""
        return len(self.manifest) + sum(map(len, self.blobs.values()))


class Line:
    """A line of `rate` bytes a second, and the time of a round trip: all connections share it, each in its turn."""

    def __init__(self, rate: int, round_trip: float) -> None:
        self._rate = rate
        self._round_trip = round_trip
        self._free_at = 0.0

    async def ask(self) -> None:
        """Wait for as long as a question and its answer are under way."""
        await asyncio.sleep(self._round_trip)

    async def carry(self, size: int) -> None:
        """Wait until `size` bytes have come through, behind those that others sent before."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - _CREDIT) + size / self._rate
        await asyncio.sleep(self._free_at - now)


class Registry:
    """Serves the image on `listener`, and counts what is asked. `async with` starts it, `stop` ends it for good."""

    def __init__(self, image: Image, line: Line, listener: socket.socket) -> None:
        self.requests = 0
        self.sent = 0  # bytes of manifests and blobs
        self._image = image
        self._line = line
        self._listener = listener
        app = web.Application(middlewares=[self._far_away])
        app.router.add_get("/v2/", self._base)
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        # What is still being sent when it ends is cut off: the demonstration was interrupted.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port and every connection: from now on there is no registry."""
        await self._runner.cleanup()

    @web.middleware
    async def _far_away(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests += 1
        await self._line.ask()
        return await handler(request)

    async def _base(self, _: web.Request) -> web.Response:
        return web.json_response({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(self._image.manifest)
        if request.match_info["name"] != REPOSITORY or request.match_info["reference"] not in (TAG, digest):
            return _not_found("MANIFEST_UNKNOWN")
        return await self._send(request, digest, OCI_MANIFEST, self._image.manifest)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        blob = self._image.blobs.get(digest)
        if request.match_info["name"] != REPOSITORY or blob is None:
            return _not_found("BLOB_UNKNOWN")
        return await self._send(request, digest, "application/octet-stream", blob)

    async def _send(self, request: web.Request, digest: str, media_type: str, body: bytes) -> web.StreamResponse:
        try:
            wanted = range(len(body))[request.http_range]
        except ValueError:
            wanted = range(0)
        if not wanted:
            raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{len(body)}"})
        response = web.StreamResponse(headers={"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"})
        response.content_type = media_type
        response.content_length = len(wanted)
        if "Range" in request.headers:
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(body)}"
        with suppress(ConnectionError):  # who asked has gone
            await response.prepare(request)
            if request.method == "GET":
                await self._stream(response, body, wanted)
        return response

    async def _stream(self, response: web.StreamResponse, body: bytes, wanted: range) -> None:
        for start in range(wanted.start, wanted.stop, _CHUNK):
            part = body[start : min(start + _CHUNK, wanted.stop)]
            await self._line.carry(len(part))
            self.sent += len(part)
            await response.write(part)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _not_found(code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": "not here"}]}, status=404)
