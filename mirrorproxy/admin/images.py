"""`ls`: the images in the cache, in the order of their names."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, ClassVar

from mirrorproxy.admin.anatomy import Anatomist, Anatomy, State
from mirrorproxy.admin.census import Census, new_census
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Progress, Row
from mirrorproxy.admin.pinning import pinned_platforms
from mirrorproxy.admin.references import written
from mirrorproxy.manifests import INDEXES
from mirrorproxy.names import Digest, Tag
from mirrorproxy.retention import Rule
from mirrorproxy.store.layout import Entry, cached

_BATCH = 50  # images that are looked at in one go of a thread
_NAMES = 500


@dataclass(frozen=True, slots=True)
class PlatformState:
    """One platform of an image, and how much of it is cached."""

    platform: str
    state: State


@dataclass(frozen=True, slots=True)
class Image(Row):
    """A cached image: a tag, or a manifest that was pulled by its digest. Sizes are bytes on the disk.

    `complete`: all that was pulled of it is here. `own` goes when the image goes, `shared` other images name too.
    `pinned`: all of it must stay, or the platforms `pinned_for`, where there are such.
    `last_used` is its manifests' last use; `checked` when upstream
    last vouched for the tag, `fresh_until` for how long that is believed; times as RFC 3339 writes them, None for what
    is not known or, of a digest, makes no sense.
    """

    kind: ClassVar[str] = "image"
    name: str
    registry: str
    repository: str
    tag: str | None
    digest: str
    platforms: list[PlatformState]
    complete: bool
    own: int
    shared: int
    pinned: bool
    pinned_for: list[str]
    last_used: str | None
    checked: str | None
    fresh_until: str | None


async def ls(desk: Desk, pattern: str | None = None) -> AsyncGenerator[Event, None]:
    """The images whose name matches: a row for each.

    What an image shares is known when all were looked at: so rows come at the end, and wait on the disk where they are
    many, see `Census`.
    """
    await desk.retention.write_uses()
    pinned = pinned_platforms(await desk.retention.pins.all())
    wanted = matcher(pattern)
    anatomist = Anatomist(desk.blobs.path)
    async with new_census() as census:
        count = 0
        async for batch in looked_at(desk, anatomist):
            await asyncio.to_thread(_count, census, batch, wanted)
            count += len(batch)
            yield Progress("looking at images", count)
        after = 0
        while notes := await asyncio.to_thread(_shares, census, after):
            after = notes[-1][0]
            documents = [document for _, document in notes]
            used = await desk.index.used_of({Digest(each) for d in documents for each in d["manifests"]})
            for document in documents:
                last = max((used[each].last for each in document.pop("manifests") if each in used), default=None)
                yield _row(desk, document, last, pinned)


@dataclass(frozen=True, slots=True)
class Name(Row):
    """The name of a cached tag."""

    kind: ClassVar[str] = "name"
    name: str


async def names(desk: Desk, pattern: str | None = None) -> AsyncGenerator[Event, None]:
    """The names of the tags whose name matches; quick, since nothing is looked at but the index."""
    wanted = matcher(pattern)
    entries = cached(desk.index, desk.blobs)
    while batch := await asyncio.to_thread(lambda: list(islice(entries, _NAMES))):
        for entry in batch:
            if isinstance(entry.reference, Tag) and wanted(name := name_of(entry)):
                yield Name(name)


async def looked_at(desk: Desk, anatomist: Anatomist) -> AsyncGenerator[list[tuple[Entry, Anatomy]], None]:
    """All images with what they consist of, by repository, in batches: tags first, then what only a digest names and
    no other image consists of. Raises `CacheFailed`.
    """
    images = _images(cached(desk.index, desk.blobs), anatomist)
    while batch := await asyncio.to_thread(lambda: list(islice(images, _BATCH))):
        yield batch


def matcher(pattern: str | None) -> Callable[[str], bool]:
    """Does a name match? A pattern with `*` is one as in the rules of retention, without it is a part of the name."""
    if pattern is None:
        return lambda _: True
    return Rule(pattern).matches if "*" in pattern else lambda name: pattern in name


def name_of(entry: Entry) -> str:
    """`docker.io/library/alpine:3.20`, or with `@` and a digest."""
    return written(entry.repository, entry.reference)


def moment(seconds: float | None) -> str | None:
    """Unix seconds as RFC 3339 writes them; None for what is not known."""
    if not seconds:
        return None
    return datetime.fromtimestamp(min(seconds, 253402300799), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fresh_until(desk: Desk, registry: str, checked: float | None) -> float | None:
    """Until when a tag is believed, by the settings in effect; None for a digest, and for a registry that is gone."""
    upstream = desk.settings().upstreams.get(registry)
    return None if not checked or upstream is None else checked + upstream.tag_ttl


def _images(entries: Iterator[Entry], anatomist: Anatomist) -> Iterator[tuple[Entry, Anatomy]]:
    """Blocks."""
    for _, group in groupby(entries, key=lambda entry: entry.repository):
        parts: set[Digest] = set()
        alone = []
        for entry in group:
            if isinstance(entry.reference, Digest):
                alone.append(entry)
                continue
            anatomy = anatomist.look(entry.descriptor)
            parts.update(anatomy.manifests())
            yield entry, anatomy
        # Indexes first: they may name the others.
        for entry in sorted(alone, key=lambda entry: entry.descriptor.media_type not in INDEXES):
            if entry.reference not in parts:
                anatomy = anatomist.look(entry.descriptor)
                parts.update(anatomy.manifests())
                yield entry, anatomy


def _count(census: Census, batch: list[tuple[Entry, Anatomy]], wanted: Callable[[str], bool]) -> None:
    for entry, anatomy in batch:
        holder = str(anatomy.root.digest)  # two tags of one image do not share anything with each other
        census.add(holder, anatomy.pieces())
        if wanted(name := name_of(entry)):
            document = {
                "name": name,
                "registry": entry.repository.registry,
                "repository": entry.repository.name,
                "tag": entry.reference if isinstance(entry.reference, Tag) else None,
                "digest": entry.descriptor.digest,
                "platforms": [asdict(PlatformState(each.platform, each.state)) for each in anatomy.variants],
                "complete": anatomy.state is State.COMPLETE,
                "manifests": anatomy.manifests(),
                "checked": None if entry.record is None else entry.record.checked,
            }
            census.note(holder, json.dumps(document))


def _shares(census: Census, after: int) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for number, holder, text in census.notes(after, _BATCH):
        share = census.share(holder)
        found.append((number, {**json.loads(text), "own": share.own, "shared": share.shared}))
    return found


def _row(desk: Desk, document: dict[str, Any], last: float | None, pinned: Mapping[str, list[str]]) -> Image:
    checked = document.pop("checked")
    until = fresh_until(desk, document["registry"], checked)
    platforms = [PlatformState(each["platform"], State(each["state"])) for each in document.pop("platforms")]
    return Image(
        **document,
        platforms=platforms,
        pinned=document["name"] in pinned,
        pinned_for=pinned.get(document["name"], []),
        last_used=moment(last),
        checked=moment(checked),
        fresh_until=moment(until),
    )
