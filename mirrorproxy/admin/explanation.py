"""`why`: what is cached of an image, where it came from, and what a pull would do."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mirrorproxy.admin.anatomy import Anatomist, Anatomy, Piece, State
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Row
from mirrorproxy.admin.images import fresh_until, moment, name_of
from mirrorproxy.admin.pinning import pinned_platforms
from mirrorproxy.admin.references import find
from mirrorproxy.names import Digest, Tag
from mirrorproxy.policy import allowed
from mirrorproxy.store.layout import Entry

Pull = Literal["hit", "check", "fetch", "refused"]

_UNTOLD = "unknown"  # the platform of an image whose config does not tell it, or is not here


@dataclass(frozen=True, slots=True)
class PlatformReport:
    """One platform of the image. `missing` pieces of `missing_bytes` a pull of it would fetch; None and None where its
    manifest is not here, so that nobody knows.
    """

    platform: str
    state: State
    digest: str
    size: int
    missing: int | None
    missing_bytes: int | None


@dataclass(frozen=True, slots=True)
class Why(Row):
    """The whole story of a cached image. Sizes are bytes: `size` on the disk, those of what is missing as told.

    `manifest` says whether the manifest that its name points at is here. `tag_endpoint` vouched for the tag last,
    `endpoints` are those that the content came from; None and nothing where that is not known (content of before
    this was put down). `pull`: what one would do now: `hit` asks nobody anything, `check` asks upstream about the tag
    alone, `fetch` brings what is missing, `refused` gets an error; `pull_words` says it to people.
    `begun_bytes` of what is missing are here as parts of downloads, `downloading` pieces of it are coming now.
    `survives`: the platforms that can be pulled when the upstream is gone, which `survives_words` says to people.
    """

    kind: ClassVar[str] = "why"
    name: str
    digest: str
    media_type: str
    manifest: bool
    size: int
    pinned: bool
    pinned_for: list[str]
    platforms: list[PlatformReport]
    last_used: str | None
    checked: str | None
    fresh_until: str | None
    fresh: bool
    tag_endpoint: str | None
    endpoints: list[str]
    begun_bytes: int
    downloading: int
    pull: Pull
    pull_words: str
    survives: list[str]
    survives_words: str


async def why(desk: Desk, reference: str) -> AsyncGenerator[Event, None]:
    """One row. Raises an `Invalid`, or `ManifestUnknown` where it is not cached, with near matches."""
    entry = await find(desk, reference)
    await desk.retention.write_uses()
    anatomy = await asyncio.to_thread(Anatomist(desk.blobs.path).look, entry.descriptor)
    pieces = anatomy.pieces()
    uses = await desk.index.used_of(anatomy.manifests())
    origins = await desk.index.origins_of(piece.digest for piece in pieces if piece.blocks is not None)
    pinned = pinned_platforms(await desk.retention.pins.all())
    begun = await asyncio.to_thread(_begun, desk, anatomy)
    checked = None if entry.record is None else entry.record.checked
    until = fresh_until(desk, entry.repository.registry, checked)
    fresh = isinstance(entry.reference, Digest) or (until is not None and until > time.time())
    pull, words = _pull(desk, entry, anatomy, begun, fresh=fresh)
    survives = [_named(each.platform) for each in anatomy.variants if each.state is State.COMPLETE]
    yield Why(
        name=name_of(entry),
        digest=entry.descriptor.digest,
        media_type=entry.descriptor.media_type,
        manifest=anatomy.root.blocks is not None,
        size=sum(piece.blocks or 0 for piece in pieces),
        pinned=name_of(entry) in pinned,
        pinned_for=pinned.get(name_of(entry), []),
        platforms=[
            PlatformReport(
                _named(each.platform),
                each.state,
                each.manifest.digest,
                sum(piece.blocks or 0 for piece in (each.manifest, *each.blobs)),
                None if each.state is State.ABSENT else len(each.missing),
                None if each.state is State.ABSENT else _to_fetch(each.missing, begun),
            )
            for each in anatomy.variants
        ],
        last_used=moment(max((used.last for used in uses.values()), default=None)),
        checked=moment(checked),
        fresh_until=moment(until),
        fresh=fresh,
        tag_endpoint=None if entry.record is None else entry.record.endpoint,
        endpoints=sorted(set(origins.values())),
        begun_bytes=sum(begun.values()),
        downloading=sum(piece.digest in desk.retention.parts.filling for piece in pieces if piece.blocks is None),
        pull=pull,
        pull_words=words,
        survives=survives,
        survives_words=_survival(entry, anatomy, survives),
    )


def _pull(desk: Desk, entry: Entry, anatomy: Anatomy, begun: Mapping[Digest, int], *, fresh: bool) -> tuple[Pull, str]:
    upstream = desk.settings().upstreams.get(entry.repository.registry)
    if upstream is None:
        return "refused", f"404: {entry.repository.registry} is not one of the configured registries any more"
    if upstream.repositories and not allowed(upstream.repositories).fullmatch(entry.repository.name):
        return "refused", f"403: {entry.repository} is not among the `repositories` of {entry.repository.registry}"
    ask = "" if fresh else "upstream is asked about the tag (one HEAD); while it says the same: "
    pulled = [each for each in anatomy.variants if each.state is not State.ABSENT]
    missing = {piece.digest: piece for each in pulled for piece in each.missing}
    if anatomy.root.blocks is None:
        return "fetch", f"{ask}the manifest and all that is missing of it is fetched"
    if not pulled:
        return "fetch", f"{ask}the manifest of the client's platform, and what that names, is fetched"
    if missing:
        return "fetch", f"{ask}{_count(missing.values())} to fetch, {_to_fetch(missing.values(), begun):,} bytes"
    others = " (other platforms than these are fetched)" if len(pulled) < len(anatomy.variants) else ""
    if fresh:
        return "hit", f"all comes from the cache, upstream is asked nothing{others}"
    return "check", f"{ask}all comes from the cache{others}"


def _survival(entry: Entry, anatomy: Anatomy, survives: list[str]) -> str:
    if not survives:
        return "nothing of it could be pulled whole"
    lost = [_named(each.platform) for each in anatomy.variants if each.state is State.PARTIAL]
    words = f"{'it' if survives == [_UNTOLD] else ', '.join(survives)} could still be pulled"
    if isinstance(entry.reference, Tag):
        words += ", marked stale once the tag is no longer fresh"
    if lost:
        words += f"; {', '.join(lost)} could not: pieces are missing"
    if any(each.state is State.ABSENT for each in anatomy.variants):
        words += "; platforms of which nothing is cached could not"
    return words


def _named(platform: str) -> str:
    return platform or _UNTOLD


def _begun(desk: Desk, anatomy: Anatomy) -> dict[Digest, int]:
    """The bytes that are here of what is missing. Blocks."""
    missing = (piece.digest for piece in anatomy.pieces() if piece.blocks is None)
    return {digest: size for digest in missing if (size := desk.partials.begun(digest))}


def _to_fetch(pieces: Iterable[Piece], begun: Mapping[Digest, int]) -> int:
    """Bytes; a download goes on with what is here of it."""
    return sum(max(0, piece.size - begun.get(piece.digest, 0)) for piece in pieces)


def _count(pieces: Iterable[Piece]) -> str:
    number = len(list(pieces))
    return f"{number} missing {'piece' if number == 1 else 'pieces'}"
