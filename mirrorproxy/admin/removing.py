"""`rm` and `prune`: let go of images, or of what nobody used for long. What is pinned, read or being filled stays."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar

from mirrorproxy.admin.anatomy import Anatomist
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Progress, Refused, Row
from mirrorproxy.admin.images import moment, name_of
from mirrorproxy.admin.references import find
from mirrorproxy.errors import Invalid
from mirrorproxy.names import Digest, Reference, Repository, Tag
from mirrorproxy.store.layout import Entry

_SAID_EVERY = 100  # pieces


@dataclass(frozen=True, slots=True)
class Removed(Row):
    """An image that is not cached any more (a `dry_run`: would not be). `stays` says why its content did not go too:
    other images name all of it.
    """

    kind: ClassVar[str] = "removed"
    name: str
    digest: str
    stays: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Content(Row):
    """A piece of content that went, or would go: bytes on the disk, and its last use."""

    kind: ClassVar[str] = "content"
    digest: str
    size: int
    last_used: str | None


@dataclass(frozen=True, slots=True)
class Part(Row):
    """What came of a download that did not end, and went, or would go: bytes on the disk, and when the last came."""

    kind: ClassVar[str] = "part"
    digest: str
    size: int
    last_used: str | None


@dataclass(frozen=True, slots=True)
class Freed(Row):
    """The last row: how many pieces went, and the bytes on the disk that this freed."""

    kind: ClassVar[str] = "freed"
    objects: int
    size: int
    dry_run: bool


async def rm(desk: Desk, references: list[str], *, dry_run: bool = False) -> AsyncGenerator[Event, None]:
    """Remove images: their tags, and what no other cached image names, parts of downloads too. All of `references` are
    cached, or nothing goes.

    Raises an `Invalid`; `ManifestUnknown`, with near matches; `Refused` for one that is pinned or being pulled, and for
    a digest that a tag of its repository leads to.
    """
    entries = list(dict.fromkeys([await find(desk, reference) for reference in references]))
    await desk.retention.write_uses()
    await _refuse_pinned(desk, entries)
    pulled = await desk.retention.images.waiting_for(desk.retention.parts.filling)
    for entry in entries:
        if entry.descriptor.digest in pulled:
            raise Refused(f"{name_of(entry)} is being pulled: try again when its layers are here")
    yield Progress("looking at what other images need", 0)
    tags = {(entry.repository, entry.reference) for entry in entries if isinstance(entry.reference, Tag)}
    roots = {entry.descriptor.digest for entry in entries}
    left = {repository: await _left(desk, repository, tags) for repository in {each.repository for each in entries}}
    for entry in entries:
        if isinstance(entry.reference, Digest) and entry.reference in left[entry.repository]:
            raise Refused(f"a tag of {entry.repository} leads to {entry.reference}: remove the tag")
    alone = await desk.retention.images.only_named_by(roots, without=tags)
    halves = [part for part in await desk.retention.parts.idle() if part.digest in alone]
    if dry_run:
        used = await desk.index.used_of(alone - desk.retention.pins.kept)
        sizes = [each.blocks for each in used.values()] + [each.blocks for each in halves]
    else:
        look = Anatomist(desk.blobs.path).look
        parts = {entry: (await asyncio.to_thread(look, entry.descriptor)).manifests() for entry in entries}
        sizes = [each.blocks for each in await desk.retention.remove(alone)]
        sizes += [each.blocks for each in halves if await desk.retention.parts.drop(each, "manual")]
        for entry in entries:
            await _forget(desk, entry, [each for each in parts[entry] if each not in left[entry.repository]])
        desk.changed()
    for entry in entries:
        yield Removed(name_of(entry), entry.descriptor.digest, entry.descriptor.digest not in alone, dry_run)
    yield Freed(len(sizes), sum(sizes), dry_run)


async def prune(
    desk: Desk, unused_for: float | None = None, to: int | None = None, *, dry_run: bool = False
) -> AsyncGenerator[Event, None]:
    """Remove what was not used for `unused_for` seconds, and what was not used for longest until all takes no more than
    `to` bytes: a row for each piece, parts of downloads first. Raises `Invalid` where neither is given.
    """
    if unused_for is None and to is None:
        raise Invalid("say what is to go: what was --unused-for 7d, or the oldest --to 20GiB that stay")
    objects = size = 0
    async for gone in desk.retention.prune(unused_for, to, dry_run=dry_run):
        objects += 1
        size += gone.blocks
        yield (Part if gone.is_part else Content)(gone.digest, gone.blocks, moment(gone.last))
        if objects % _SAID_EVERY == 0:
            yield Progress("removing", objects)
    yield Freed(objects, size, dry_run)


async def _left(desk: Desk, repository: Repository, tags: Collection[tuple[Repository, Reference]]) -> set[Digest]:
    """All that the tags of a repository lead to when these are gone."""
    others = await asyncio.to_thread(
        lambda: {record.digest for _, tag, record in desk.index.walk_tags(repository) if (repository, tag) not in tags}
    )
    return others | await desk.retention.images.all_named(others)


async def _forget(desk: Desk, entry: Entry, manifests: Iterable[Digest]) -> None:
    """The image is no longer one of its repository, also where its bytes stay for another's."""
    if isinstance(entry.reference, Tag):
        await desk.index.forget_tag(entry.repository, entry.reference)
    for digest in manifests:
        await desk.index.forget_fact(entry.repository, digest)


async def _refuse_pinned(desk: Desk, entries: list[Entry]) -> None:
    await desk.retention.pins.look()
    pinned = {(pin.repository, pin.reference) for pin in await desk.retention.pins.all()}
    for entry in entries:
        named: list[tuple[object, object]] = [(entry.repository, entry.reference)]
        named.append((entry.repository, Digest(entry.descriptor.digest)))
        if pinned.intersection(named):
            raise Refused(f"{name_of(entry)} is pinned: `mirrorproxy unpin` it first, or take it out of `pins:`")
