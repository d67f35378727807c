"""What an image consists of, and how much of it is on the disk. Everything here blocks."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mirrorproxy.errors import BadAnswer
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, is_foreign, parse, platform_in
from mirrorproxy.names import Descriptor, Digest

_LARGEST_CONFIG = 1 << 20
_DEEPEST = 4  # indexes in indexes


class State(StrEnum):
    """How much of it is here: all that a pull needs, some, or nothing."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    ABSENT = "absent"


class Piece(NamedTuple):
    """Content that an image names: `size` by its descriptor; `blocks`, on the disk, None where it is missing."""

    digest: Digest
    size: int
    blocks: int | None


@dataclass(frozen=True, slots=True)
class Variant:
    """An image for one platform; `platform` is empty where nothing here says which."""

    platform: str
    manifest: Piece
    blobs: tuple[Piece, ...] = ()

    @property
    def state(self) -> State:
        """Can it be pulled from here alone? What has only its manifest missing was not pulled: it is absent."""
        if self.manifest.blocks is None:
            return State.ABSENT
        return State.PARTIAL if self.missing else State.COMPLETE

    @property
    def missing(self) -> list[Piece]:
        """What would have to be fetched."""
        return [piece for piece in (self.manifest, *self.blobs) if piece.blocks is None]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """An image: the manifest that its name points at, and the variants of it; one, where it is for one platform."""

    root: Piece
    variants: tuple[Variant, ...]
    indexes: tuple[Piece, ...] = ()

    @property
    def state(self) -> State:
        """Complete: every platform of which something was pulled is whole, and there is one."""
        if self.root.blocks is None:
            return State.ABSENT
        states = {variant.state for variant in self.variants if variant.platform != "unknown/unknown"}
        return State.COMPLETE if State.COMPLETE in states and State.PARTIAL not in states else State.PARTIAL

    def pieces(self) -> list[Piece]:
        """All of it, each once, as far as it is known here."""
        all_of_it = {self.root.digest: self.root} | {piece.digest: piece for piece in self.indexes}
        for variant in self.variants:
            all_of_it |= {piece.digest: piece for piece in (variant.manifest, *variant.blobs)}
        return list(all_of_it.values())

    def manifests(self) -> list[Digest]:
        """The root, the indexes and the manifests below it."""
        return [self.root.digest, *(each.digest for each in self.indexes), *(v.manifest.digest for v in self.variants)]


class Anatomist:
    """Looks at images. `path` says where content is; nothing is removed that turns out to be wrong."""

    def __init__(self, path: Callable[[Digest], Path]) -> None:
        self._path = path

    def look(self, root: Descriptor) -> Anatomy:
        """The image whose manifest is `root`."""
        piece = self._piece(root)
        indexes: dict[Digest, Piece] = {}
        variants = tuple(self._variants(root, piece, indexes, _DEEPEST))
        return Anatomy(piece, variants, tuple(indexes.values()))

    def _variants(
        self, descriptor: Descriptor, piece: Piece, indexes: dict[Digest, Piece], depth: int
    ) -> Iterator[Variant]:
        body = None if piece.blocks is None else self._read(descriptor.digest, MAX_SIZE)
        try:
            contents = None if body is None else parse(body, descriptor.media_type)
        except BadAnswer:
            contents = None
        if contents is None:
            yield Variant(descriptor.platform or "", piece._replace(blocks=None))
            return
        if not contents.manifests:
            blobs = [each for each in contents.children if not is_foreign(each.media_type)]
            yield Variant(
                descriptor.platform or self._platform(contents.config),
                piece,
                tuple(self._piece(each, whole=True) for each in blobs),
            )
            return
        for child in contents.manifests:
            below = self._piece(child)
            if child.media_type not in MEDIA_TYPES or depth == 0:
                continue
            variants = list(self._variants(child, below, indexes, depth - 1))
            if [each.manifest.digest for each in variants] != [child.digest]:
                indexes[child.digest] = below
            for each in variants:
                yield each if each.platform else replace(each, platform=child.platform or "")

    def _piece(self, descriptor: Descriptor, *, whole: bool = False) -> Piece:
        """`whole`: a file of another size than the descriptor says is missing, since it would be fetched again.

        Manifests are read and hashed, so what somebody says of their size does not matter.
        """
        try:
            found = self._path(descriptor.digest).lstat()
        except OSError:
            return Piece(descriptor.digest, descriptor.size, None)
        if whole and found.st_size != descriptor.size:
            return Piece(descriptor.digest, descriptor.size, None)
        return Piece(descriptor.digest, descriptor.size, max(found.st_blocks, 1) * 512)

    def _platform(self, config: Descriptor | None) -> str:
        body = None if config is None else self._read(config.digest, _LARGEST_CONFIG)
        try:
            return platform_in(json.loads(body or b"null")) or ""
        except (ValueError, RecursionError):
            return ""

    def _read(self, digest: Digest, limit: int) -> bytes | None:
        """Content of at most `limit` bytes, None where it is not here, or is something else."""
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb", 0) as file:
                if os.fstat(descriptor).st_size > limit:
                    return None
                data = file.readall()
        except OSError:
            return None
        return data if digest.of_same_algorithm(data) == digest else None
