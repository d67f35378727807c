"""`du`: what registries and repositories take on the disk."""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import ClassVar, Literal

from mirrorproxy.admin.anatomy import Piece
from mirrorproxy.admin.census import Census, Share, new_census
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Progress, Row
from mirrorproxy.names import Digest, Repository

_BATCH = 500
Scope = Literal["registry", "repository", "other", "partial", "total"]


@dataclass(frozen=True, slots=True)
class Usage(Row):
    """Bytes on the disk: `own` is in no other repository (registry) of the cache, `shared` is; `size` is both.

    `scope`: a registry or a repository; `other` is content that no repository is known to have; `partial` what there
    is of downloads that did not come to their end; `total` all content, each piece counted once, and the partial ones.
    """

    kind: ClassVar[str] = "usage"
    scope: Scope
    name: str
    own: int
    shared: int
    size: int
    objects: int


async def du(desk: Desk) -> AsyncGenerator[Event, None]:
    """A row for each registry, and before it one for each of its repositories; then what is nobody's, and the total."""
    async with new_census() as repositories, new_census() as registries:
        count = 0
        belongings = _belongings(desk)
        while batch := await asyncio.to_thread(lambda: list(islice(belongings, _BATCH))):
            await asyncio.to_thread(_count, repositories, registries, batch)
            count += len(batch)
            yield Progress("counting content of repositories", count)
        other, total = Share(0, 0, 0), Share(0, 0, 0)
        stored = desk.blobs.scan()
        while found := await asyncio.to_thread(lambda: list(islice(stored, _BATCH))):
            pieces = [Piece(each.digest, each.blocks, each.blocks) for each in found]
            strange = await asyncio.to_thread(repositories.strange, pieces)
            other, total = _sum(other, strange), _sum(total, pieces)
            yield Progress("counting content on the disk", total.objects)
        parts = await asyncio.to_thread(lambda: [part.blocks for part in desk.partials.scan()])
        holders = await asyncio.to_thread(repositories.holders)
        for registry, names in groupby(holders, key=lambda name: name.partition("/")[0]):
            for name in names:
                yield _usage("repository", name, await asyncio.to_thread(repositories.share, name))
            yield _usage("registry", registry, await asyncio.to_thread(registries.share, registry))
        yield _usage("other", "", other)
        yield _usage("partial", "", Share(sum(parts), 0, len(parts)))
        yield _usage("total", "", Share(total.own + sum(parts), 0, total.objects + len(parts)))


def _belongings(desk: Desk) -> Iterator[tuple[Repository, Piece]]:
    """What is known to belong to each repository, by repository, as far as it is on the disk. Blocks."""
    merged = heapq.merge(desk.index.walk_manifests(), desk.index.walk_blobs(), key=lambda row: str(row[0]))
    for repository, digest, fact in merged:
        yield repository, Piece(digest, fact.size, blocks_of(desk, digest))


def blocks_of(desk: Desk, digest: Digest) -> int | None:
    """The bytes that content takes on the disk, None where it is not here. Blocks."""
    try:
        return max(desk.blobs.path(digest).lstat().st_blocks, 1) * 512
    except OSError:
        return None


def _count(repositories: Census, registries: Census, batch: list[tuple[Repository, Piece]]) -> None:
    for repository, pieces in groupby(batch, key=lambda row: row[0]):
        here = [piece for _, piece in pieces if piece.blocks is not None]
        if here:
            repositories.extend(str(repository), here)
            registries.extend(repository.registry, here)


def _sum(share: Share, pieces: list[Piece]) -> Share:
    return Share(share.own + sum(piece.blocks or 0 for piece in pieces), 0, share.objects + len(pieces))


def _usage(scope: Scope, name: str, share: Share) -> Usage:
    return Usage(scope, name, share.own, share.shared, share.own + share.shared, share.objects)
