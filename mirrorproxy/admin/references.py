"""What a person calls an image, and which cached one is meant."""

import asyncio
import difflib
from itertools import islice

from mirrorproxy.admin.desk import Desk
from mirrorproxy.config import Settings
from mirrorproxy.errors import Invalid, ManifestUnknown, NameInvalid
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Descriptor, Digest, Reference, Repository, Tag, image
from mirrorproxy.store.layout import Entry

_CONSIDERED = 2000  # names that are compared: 20 ms of a thread
_NEAR = 3
_ALIKE = 0.8  # of the last part of a name: alpin and alpine, not nginx and redis
_LONGEST = 512  # characters; a repository has 255 bytes, a tag 128, a digest 135


def parse(text: str, settings: Settings) -> tuple[Repository, Reference]:
    """Read `alpine`, `alpine:3.20`, `ghcr.io/team/app:1` or `...@sha256:...` as Docker does: no tag is `latest`, no
    registry the default one. A first part that is a configured registry counts as one whatever it looks like.

    Raises an `Invalid`.
    """
    if len(text) > _LONGEST:
        raise NameInvalid(f"not the name of an image: it has {len(text)} characters")
    return image(text, default=settings.default_registry, known=settings.upstreams)


def written(place: Repository, name: Reference) -> str:
    """`docker.io/library/alpine:3.20`, or with `@` and a digest."""
    return f"{place}{'@' if isinstance(name, Digest) else ':'}{name}"


async def find(desk: Desk, text: str) -> Entry:
    """The cached image that is meant. Its manifest may have gone meanwhile.

    Raises an `Invalid`, and `ManifestUnknown` where nothing of it is known, both with near matches; `CacheFailed`.
    """
    try:
        place, name = parse(text, desk.settings())
    except Invalid as error:
        raise type(error)(f"{_shown(text)}: {error.message}", detail={"near": await _like(desk, text)}) from None
    record = await desk.index.tag(place, name) if isinstance(name, Tag) else None
    digest = name if isinstance(name, Digest) else None if record is None else record.digest
    fact = None if digest is None else await desk.index.fact(place, digest)
    if digest is None or fact is None or fact.media_type not in MEDIA_TYPES:
        near = await near_matches(desk, place, name)
        raise ManifestUnknown(f"{written(place, name)} is not in the cache", detail={"near": near})
    return Entry(place, name, Descriptor(fact.media_type, digest, fact.size), record)


async def near_matches(desk: Desk, place: Repository, name: Reference) -> list[str]:
    """Cached images whose names are like this one: other tags of the repository, else tags of others like it."""
    return await asyncio.to_thread(_near, desk, place, name)


def _near(desk: Desk, place: Repository, name: Reference) -> list[str]:
    """Blocks."""
    known = _tags(desk, place)
    if known:
        best = difflib.get_close_matches(str(name), known, n=_NEAR, cutoff=0.0)
        return [written(place, Tag(tag)) for tag in best]
    names: dict[str, Repository] = {}
    for other, _, _ in desk.index.walk_tags():
        names.setdefault(str(other), other)
        if len(names) >= _CONSIDERED:
            break
    found = []
    for other in _alike(place, list(names.values())):
        best = difflib.get_close_matches(str(name), _tags(desk, other), n=1, cutoff=0.0)
        found += [written(other, Tag(tag)) for tag in best]
    return found


def _alike(place: Repository, known: list[Repository]) -> list[Repository]:
    """Repositories whose last part is nearly that of `place`: with what stands before it, all images of one registry
    would be alike.
    """
    by_tail: dict[str, list[Repository]] = {}
    for each in known:
        by_tail.setdefault(_tail(each), []).append(each)
    near = difflib.get_close_matches(_tail(place), list(by_tail), n=_NEAR, cutoff=_ALIKE)
    return [each for tail in near for each in by_tail[tail]][:_NEAR]


def _tail(place: Repository) -> str:
    return place.name.rpartition("/")[2]


def _tags(desk: Desk, place: Repository) -> list[str]:
    return [str(tag) for _, tag, _ in islice(desk.index.walk_tags(place), _CONSIDERED)]


async def _like(desk: Desk, text: str) -> list[str]:
    """Near matches for what is no name: as if its capitals and spaces were a slip."""
    try:
        place, name = parse("".join(text.lower().split()), desk.settings())
    except Invalid:
        return []
    return await near_matches(desk, place, name)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
