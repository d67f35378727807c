"""What a scripted registry has: repositories with manifests, blobs and tags, put in by calls."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs, quote

from mirrorproxy import manifests
from mirrorproxy.names import Descriptor, Digest

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"


class Image(NamedTuple):
    """What `Content.add_image` made."""

    manifest: Descriptor
    body: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass
class Stock:
    """What a repository has: manifests with their media types, blobs, tags."""

    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class Content:
    """Repositories by name."""

    def __init__(self) -> None:
        self.repositories: dict[str, Stock] = {}

    def add_blob(self, repository: str, data: bytes) -> Digest:
        """Put in a blob."""
        digest = Digest.of(data)
        self.stock(repository).blobs[digest] = data
        return digest

    def add_manifest(
        self,
        repository: str,
        document: Mapping[str, object] | bytes,
        *tags: str,
        media_type: str = manifests.OCI_MANIFEST,
    ) -> Descriptor:
        """Put in a manifest, and let tags point at it. A mapping is given the media type, and an odd spacing."""
        if isinstance(document, bytes):
            body = document
        else:
            body = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}, indent=3).encode()
        digest = Digest.of(body)
        self.stock(repository).manifests[digest] = (media_type, body)
        for tag in tags:
            self.tag(repository, tag, digest)
        return Descriptor(media_type, digest, len(body))

    def add_image(self, repository: str, tag: str, *layers: bytes, config: bytes = b'{"os":"linux"}') -> Image:
        """Put in an image with these layers."""
        parts = [
            Descriptor(media_type, self.add_blob(repository, data), len(data))
            for media_type, data in [(_CONFIG, config), *((_LAYER, layer) for layer in layers)]
        ]
        first, *rest = [{"mediaType": part.media_type, "digest": part.digest, "size": part.size} for part in parts]
        manifest = self.add_manifest(repository, {"config": first, "layers": rest}, tag)
        return Image(manifest, self.stock(repository).manifests[manifest.digest][1], parts[0], tuple(parts[1:]))

    def tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Let a tag point at a manifest, whatever it pointed at before."""
        self.stock(repository).tags[tag] = digest

    def remove(self, repository: str) -> None:
        """Forget a repository."""
        self.repositories.pop(repository, None)

    def stock(self, repository: str) -> Stock:
        """What a repository has; made where there is none."""
        return self.repositories.setdefault(repository, Stock())


def tags_page(name: str, tags: list[str], query: str) -> tuple[int, dict[str, str], bytes]:
    """The answer to `/tags/list`: status, headers, body."""
    asked = parse_qs(query)
    rest = [tag for tag in tags if tag > asked.get("last", [""])[0]]
    page = rest[: int(asked["n"][0])] if "n" in asked else rest
    headers = {"Content-Type": "application/json"}
    if len(page) < len(rest):
        headers["Link"] = f'</v2/{name}/tags/list?last={quote(page[-1])}&n={asked["n"][0]}>; rel="next"'
    return 200, headers, json.dumps({"name": name, "tags": page}).encode()


def referrers_page(
    repository: Stock, subject: str, query: Mapping[str, list[str]]
) -> tuple[int, dict[str, str], bytes]:
    """The answer to `/referrers/<subject>`: status, headers, body."""
    wanted = query.get("artifactType")
    found = []
    for digest, (media_type, body) in repository.manifests.items():
        contents = manifests.parse(body, media_type)
        if contents.subject is None or contents.subject.digest != subject:
            continue
        if wanted is None or contents.artifact_type in wanted:
            found.append(
                {"mediaType": media_type, "digest": digest, "size": len(body), "artifactType": contents.artifact_type}
            )
    index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": found}
    headers = {"Content-Type": manifests.OCI_INDEX}
    if wanted is not None:
        headers["OCI-Filters-Applied"] = "artifactType"
    return 200, headers, json.dumps(index).encode()
