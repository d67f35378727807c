"""A cache with very many images, made without any registry."""

import asyncio
import json
import time

from mirrorproxy.admin.desk import Desk
from mirrorproxy.manifests import OCI_MANIFEST
from mirrorproxy.names import Descriptor, Digest, Tag, repository
from mirrorproxy.store.records import TagRecord

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_SHARED = 500  # layers, of which each image has some
_TAGS = 100  # of a repository


async def fill(desk: Desk, images: int) -> None:
    """Put in so many images: each a manifest and a config of its own, and five layers that others have too."""
    layers = [b"layer %d" % number for number in range(_SHARED)]
    digests = [Digest.of(layer) for layer in layers]
    await asyncio.to_thread(_write, desk, layers)
    for start in range(0, images, _TAGS):
        place = repository("docker.io", f"team/app-{start // _TAGS:05}")
        contents: list[bytes] = []
        for number in range(start, min(start + _TAGS, images)):
            config = b'{"os":"linux","architecture":"amd64","n":%d}' % number
            parts = [Descriptor(_CONFIG, Digest.of(config), len(config))]
            parts += [
                Descriptor(_LAYER, digests[each], len(layers[each]))
                for each in {(number * step) % _SHARED for step in (1, 3, 7, 11, 13)}
            ]
            first, *rest = [{"mediaType": p.media_type, "digest": p.digest, "size": p.size} for p in parts]
            document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": first, "layers": rest}
            body = json.dumps(document).encode()
            contents += [config, body]
            manifest = Descriptor(OCI_MANIFEST, Digest.of(body), len(body))
            await desk.index.put_facts(place, [manifest, *parts])
            await desk.index.put_tag(place, Tag(f"v{number}"), TagRecord(manifest.digest, time.time()))
        await asyncio.to_thread(_write, desk, contents)


def _write(desk: Desk, contents: list[bytes]) -> None:
    """Plain writes: a flush for each would take hours."""
    for data in contents:
        desk.blobs.path(Digest.of(data)).write_bytes(data)
