"""Images built from nothing: every kind of manifest that registries hold, with random layers that really unpack.

The same seed gives the same bytes, so a test that needs content nobody pulled before takes a seed of its own.
"""

import gzip
import hashlib
import io
import json
import platform
import random
import struct
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
SIGNATURE = "application/vnd.example.signature.v1+json"
IN_TOTO = "application/vnd.in-toto+json"

Compression = Literal["gzip", "zstd"]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
"""What the clients on this machine choose from an index."""


@dataclass(frozen=True)
class Blob:
    """Bytes with the media type a manifest gives them."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the bytes."""
        return "sha256:" + hashlib.sha256(self.data).hexdigest()

    def descriptor(self, **more: object) -> dict[str, object]:
        """The descriptor by which another manifest names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **more}


@dataclass(frozen=True)
class Manifest(Blob):
    """A manifest of any kind, with everything a push of it needs: its blobs (config first) and its child manifests."""

    blobs: tuple[Blob, ...] = ()
    children: tuple["Manifest", ...] = ()

    def walk(self) -> Iterator["Manifest"]:
        """All manifests of the tree, children before their parents, as a registry wants them pushed."""
        for child in self.children:
            yield from child.walk()
        yield self

    def for_this_machine(self) -> "Manifest":
        """The manifest of an index that a client on this machine takes; an image itself."""
        if not self.children:
            return self
        descriptors = json.loads(self.data)["manifests"]
        wanted = {"os": "linux", "architecture": ARCHITECTURE}
        return next(c for c, d in zip(self.children, descriptors, strict=True) if d["platform"] == wanted)


def layer_tar(seed: str, size: int) -> bytes:
    """An uncompressed layer with one file of `size` random bytes in a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        folder = tarfile.TarInfo("data")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        entry = tarfile.TarInfo("data/" + hashlib.sha256(seed.encode()).hexdigest()[:12])
        entry.size = size
        tar.addfile(entry, io.BytesIO(random.Random(seed).randbytes(size)))
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    """A valid Zstandard frame of stored blocks (RFC 8878, 3.1.1): the standard library has no zstd before 3.14."""
    step = 128 << 10
    frame = [b"\x28\xb5\x2f\xfd", b"\xe0", struct.pack("<Q", len(data))]  # single segment, 8 bytes of content size
    for start in range(0, len(data), step):
        block = data[start : start + step]
        last = start + step >= len(data)
        frame += [struct.pack("<I", len(block) << 3 | last)[:3], block]
    return b"".join(frame)


def image(
    seed: str,
    *,
    layers: int = 3,
    size: int = 48 << 10,
    docker: bool = False,
    compression: Compression = "gzip",
    architecture: str = ARCHITECTURE,
) -> Manifest:
    """An image of `layers` layers with `size` random bytes each, OCI or (`docker`) Docker schema 2."""
    tars = [layer_tar(f"{seed} {architecture} layer {n}", size) for n in range(layers)]
    if compression == "zstd":
        layer_type, packed = OCI_LAYER_ZSTD, [zstd(tar) for tar in tars]
    else:
        layer_type = DOCKER_LAYER_GZIP if docker else OCI_LAYER_GZIP
        packed = [gzip.compress(tar, compresslevel=1, mtime=0) for tar in tars]
    config = {
        "created": "2024-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/data/run"], "Labels": {"seed": seed}},
        "rootfs": {"type": "layers", "diff_ids": [Blob("", tar).digest for tar in tars]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(layers)],
    }
    blobs = [Blob(DOCKER_CONFIG if docker else OCI_CONFIG, _json(config)), *(Blob(layer_type, b) for b in packed)]
    return _manifest(DOCKER_MANIFEST if docker else OCI_MANIFEST, blobs)


def attestation(seed: str, subject: Manifest) -> Manifest:
    """What BuildKit puts beside an image in its index: an image of platform unknown/unknown with an in-toto layer."""
    statement = {"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": subject.digest}], "seed": seed}
    proof = Blob(IN_TOTO, _json(statement))
    rootfs = {"type": "layers", "diff_ids": [proof.digest]}
    config = {"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs}
    return _manifest(OCI_MANIFEST, [Blob(OCI_CONFIG, _json(config)), proof])


def multi_arch(seed: str, *, docker: bool = False, attested: bool = False, size: int = 48 << 10) -> Manifest:
    """An OCI index or (`docker`) manifest list of linux/amd64 and linux/arm64, `attested` as BuildKit does it."""
    children = [image(seed, docker=docker, architecture=a, layers=2, size=size) for a in ("amd64", "arm64")]
    descriptors = [
        child.descriptor(platform={"architecture": architecture, "os": "linux"})
        for child, architecture in zip(children, ("amd64", "arm64"), strict=True)
    ]
    if attested:
        for child in list(children):
            proof = attestation(seed, child)
            children.append(proof)
            annotations = {
                "vnd.docker.reference.digest": child.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            }
            unknown = {"architecture": "unknown", "os": "unknown"}
            descriptors.append(proof.descriptor(annotations=annotations, platform=unknown))
    return _index(DOCKER_LIST if docker else OCI_INDEX, descriptors, children)


def artifact(seed: str, subject: Manifest) -> Manifest:
    """A signature-like artifact that refers to `subject`: what the referrers of `subject` are made of."""
    blobs = [Blob(EMPTY_CONFIG, b"{}"), Blob(SIGNATURE, _json({"signs": subject.digest, "seed": seed}))]
    return _manifest(OCI_MANIFEST, blobs, artifactType=SIGNATURE, subject=subject.descriptor())


def referrers_index(artifacts: Sequence[Manifest]) -> Manifest:
    """The index that stands under `referrers_tag(subject)` where a registry has no referrers API."""
    descriptors = [a.descriptor(artifactType=SIGNATURE) for a in artifacts]
    return _index(OCI_INDEX, descriptors, artifacts)


def referrers_tag(subject: Manifest) -> str:
    """The tag of the referrers tag schema (OCI distribution specification 1.1): `sha256-<hex>`."""
    return subject.digest.replace(":", "-")


def _manifest(media_type: str, blobs: Sequence[Blob], **more: object) -> Manifest:
    config, *layers = (blob.descriptor() for blob in blobs)
    body = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers, **more}
    return Manifest(media_type, _json(body), blobs=tuple(blobs))


def _index(media_type: str, descriptors: Sequence[dict[str, object]], children: Sequence[Manifest]) -> Manifest:
    body = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(descriptors)}
    return Manifest(media_type, _json(body), children=tuple(children))


def _json(value: Any) -> bytes:  # indented, as registries hold it: one who writes it anew changes the digest
    return json.dumps(value, indent=3).encode()
