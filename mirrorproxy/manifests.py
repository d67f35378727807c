"""Manifests: their media types, and what they name. A manifest is read here, never written: it is served as it came.

Image specification 1.1 (manifest, index, artifacts with a subject), Docker image manifest version 2 schema 2.
"""

import json
import re
import sys
from dataclasses import dataclass

from mirrorproxy.errors import BadAnswer, DigestInvalid
from mirrorproxy.names import Descriptor, Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"  # image specification 1.1.0-rc2; still found
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST, OCI_ARTIFACT})
MEDIA_TYPES = INDEXES | MANIFESTS
"""What is a manifest, and can be kept: content whose digest is over the bytes that were sent."""

ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, {OCI_ARTIFACT}"
"""What we ask upstream for, whatever the client wrote: its Accept is part of no key."""

MAX_SIZE = 4 << 20
"""Bytes. The usual push limit; containerd refuses what is larger (`MaxManifestSize`)."""

PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?")
"""How a platform is written: `linux/amd64`, `linux/arm64/v8`."""

_MAX_CHILDREN = 10_000
_PLATFORM = re.compile(r"[A-Za-z0-9._-]{1,40}")
_SIZES = range(2**63)  # image specification, "Descriptors": an int64


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest names. `layers` in the order of the manifest, which is the order in which a client wants them."""

    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """All that a pull of the whole would ask for: config, layers, manifests. The subject is no child."""
        return (*(() if self.config is None else (self.config,)), *self.layers, *self.manifests)


def platform_in(document: object) -> str | None:
    """What a `platform` object says, and the config of an image: `linux/arm64/v8`; None where it says nothing sensible.

    Source: image specification, "Image Index" and "Image Configuration".
    """
    if not isinstance(document, dict):
        return None
    words = [document.get(name) for name in ("os", "architecture", "variant")]
    words = [word for word in words if word]
    if len(words) < 2 or not all(isinstance(word, str) and _PLATFORM.fullmatch(word) for word in words):
        return None
    return "/".join(map(str, words))


def is_foreign(media_type: str) -> bool:
    """Of a layer that registries do not hold, such as those of Windows: clients fetch it from elsewhere."""
    return "foreign" in media_type or "nondistributable" in media_type


def bare_media_type(content_type: str) -> str:
    """A Content-Type without its parameters, in lower case: what upstreams add (`;charset=`) is not the media type."""
    return content_type.partition(";")[0].strip().lower()


def parse(body: bytes, content_type: str) -> Contents:
    """What the manifest `body`, sent as `content_type`, names. Raises `BadAnswer` where it is not a manifest.

    The media type is the Content-Type's where that is a manifest's, else the body's own `mediaType`: some registries
    send `application/json` or `text/plain`. HTML from a captive portal ends here, and never in the cache.
    """
    sent = bare_media_type(content_type)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"upstream sent {sent[:100]!r} for a manifest, and it is not JSON") from error
    if not isinstance(document, dict):
        raise BadAnswer("upstream sent JSON that is not a manifest")
    own = document.get("mediaType")
    media_type = sent if sent in MEDIA_TYPES else own if isinstance(own, str) else _guess(document)
    if media_type not in MEDIA_TYPES:
        raise BadAnswer(f"upstream sent a {(media_type or sent)[:100]!r}, which is no manifest that can be cached")
    artifact_type = document.get("artifactType")
    return Contents(
        media_type=media_type,
        config=_descriptor(document.get("config")),
        layers=_descriptors(document.get("layers", document.get("blobs"))),
        manifests=_descriptors(document.get("manifests")),
        subject=_descriptor(document.get("subject")),
        artifact_type=artifact_type if isinstance(artifact_type, str) else None,
    )


def is_for(platform: str, wanted: str) -> bool:
    """Is what is for `platform` also for `wanted`? `linux/arm64/v8` is for `linux/arm64`."""
    return platform == wanted or platform.startswith(f"{wanted}/")


def _guess(document: dict[str, object]) -> str | None:
    """The media type of a manifest that does not say it: `mediaType` is optional in OCI documents."""
    if document.get("schemaVersion") != 2:
        return None
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST if "config" in document else None


def _descriptors(value: object) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        return ()
    if len(value) > _MAX_CHILDREN:
        raise BadAnswer(f"upstream sent a manifest that names {len(value)} things; {_MAX_CHILDREN} is the limit")
    return tuple(found for item in value if (found := _descriptor(item)))


def _descriptor(value: object) -> Descriptor | None:
    """A descriptor, or None where it names nothing that can be fetched here (an algorithm of tomorrow, say)."""
    if not isinstance(value, dict):
        return None
    written, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool) or size not in _SIZES:
        return None
    media_type = sys.intern(written) if isinstance(written, str) else ""  # thousands of descriptors have the same few
    try:
        return Descriptor(media_type, Digest(digest), size, platform_in(value.get("platform")))
    except DigestInvalid:
        return None
