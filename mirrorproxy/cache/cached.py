"""`Cached`: a `Registry` in front of another, that answers from the shelf what it can."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from mirrorproxy.cache.ahead import Ahead, Mode
from mirrorproxy.cache.memory import Negatives
from mirrorproxy.cache.noting import Noting
from mirrorproxy.cache.shelf import HIT, Shelf
from mirrorproxy.errors import BadAnswer, NotFound, Overloaded, Unauthorized, UpstreamError
from mirrorproxy.fill import Fills
from mirrorproxy.fill.passage import Passage
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Descriptor, Digest, Reference, Repository, Tag
from mirrorproxy.registry import MISS, Blob, Kind, Listing, Manifest, Origin, Outcome, Resolved, Result
from mirrorproxy.store.memory import Recent
from mirrorproxy.store.records import KeptListing, TagRecord
from mirrorproxy.tasks import SingleFlight, Tasks

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEPT = Outcome(Result.MISS, stored=True)
_NOT_KEPT = Outcome(Result.BYPASS)
_A_MOMENT = 0.02  # seconds in which a client that does not wait for the config asks for layers too
_LEAVE_ALONE = (
    10.0  # seconds that a failing upstream is not asked about a tag again: one time-out a while, not one a pull
)


@dataclass(frozen=True)
class Rules:
    """How long an answer is believed, and how long one is waited for where a copy is at hand; seconds. And whether to
    read ahead.
    """

    tag_ttl: float = 300.0
    negative_ttl: float = 10.0
    patience: float = 5.0
    prefetch: Mode = Mode.AUTO


class Cached:
    """One registry through the cache. See the package's page for the rules, `Registry` for the methods."""

    def __init__(
        self,
        source: Origin,
        shelf: Shelf,
        fills: Fills,
        rules: Rules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._bringing = Noting(source)
        self._shelf = shelf
        self._fills = fills
        self._rules = rules
        self._clock = clock
        self._negatives = Negatives(rules.negative_ttl, clock)
        self._asking: SingleFlight[tuple[object, ...], Any] = SingleFlight()
        # When upstream failed about a tag, and what a HEAD said of a tag whose manifest is not here yet.
        self._failed: Recent[tuple[object, ...], float] = Recent(4096)
        self._heard: Recent[tuple[Repository, Tag], tuple[Descriptor, TagRecord]] = Recent(4096)

        self._ahead = Ahead(rules.prefetch, self._fetch_ahead, self._expect_layers)
        self._tasks = Tasks()

    async def aclose(self) -> None:
        """Stop asking. The source is its owner's to close."""
        await self._tasks.aclose()
        await self._asking.aclose()

    # Manifests.

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """See `Registry.resolve`. By digest, the word of a manifest that names it is enough."""
        if isinstance(reference, Tag):
            resolved, _ = await self._resolve_tag(repository, reference, fresh=fresh, body=False)
            if resolved.outcome.stored:
                self._shelf.served(resolved.descriptor.digest)
            return resolved
        fact = await self._shelf.fact(repository, reference)
        if fact is not None and fact.media_type in MEDIA_TYPES:
            return Resolved(Descriptor(fact.media_type, reference, fact.size), HIT)
        found, joined = await self._ask(
            (Kind.MANIFEST, "HEAD", repository, reference), lambda: self._source.resolve(repository, reference)
        )
        await self._shelf.know(repository, (found.descriptor,))
        return replace(found, outcome=_came(joined, MISS))

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """See `Registry.manifest`."""
        manifest = await self._manifest(repository, reference, fresh=fresh)
        self._shelf.served(manifest.descriptor.digest)
        self._ahead.served(repository, manifest, new=manifest.outcome.result is Result.MISS)
        return manifest

    async def _manifest(self, repository: Repository, reference: Reference, *, fresh: bool) -> Manifest:
        if isinstance(reference, Digest):
            return await self._manifest_by_digest(repository, reference)
        resolved, manifest = await self._resolve_tag(repository, reference, fresh=fresh, body=True)
        if manifest is None:
            manifest = await self._manifest_by_digest(repository, resolved.descriptor.digest)
            if manifest.outcome.result is not Result.HIT:
                return manifest
        return replace(manifest, outcome=resolved.outcome)

    async def _manifest_by_digest(self, repository: Repository, digest: Digest) -> Manifest:
        if (here := await self._shelf.manifest(repository, digest)) is not None:
            return here
        key = (Kind.MANIFEST, "GET", repository, digest)
        manifest, joined = await self._ask(key, lambda: self._fetch_manifest(repository, digest))
        return replace(manifest, outcome=_came(joined, manifest.outcome))

    async def _fetch_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        if isinstance(reference, Digest) and await self._shelf.has(reference):
            # The bytes came from another repository: this one's word that it has them too is enough.
            found = await self._source.resolve(repository, reference)
            await self._shelf.know(repository, (found.descriptor,))
            if (here := await self._shelf.manifest(repository, reference)) is not None:
                await self._shelf.keep(repository, here)
                await self._name(repository, here.descriptor)
                return replace(here, outcome=replace(_KEPT, endpoint=found.outcome.endpoint))
        manifest = await self._source.manifest(repository, reference)
        kept = await self._shelf.keep(repository, manifest)
        if kept and isinstance(reference, Digest):
            await self._name(repository, manifest.descriptor)
        return replace(manifest, outcome=replace(_KEPT if kept else _NOT_KEPT, endpoint=manifest.outcome.endpoint))

    # Tags.

    async def refresh(self, repository: Repository, tag: Tag) -> Resolved:
        """Ask upstream about a tag now, and keep the manifest that it names. An error stays one. Nobody is served: it
        is no use of the image.
        """
        self._negatives.forget((Kind.MANIFEST, "tag", repository, tag, True))
        record = await self._shelf.tag(repository, tag)
        found, _ = await self._check(repository, tag, record, body=True)
        await self._manifest_by_digest(repository, found.descriptor.digest)  # also one that was evicted meanwhile
        return found

    async def _resolve_tag(
        self, repository: Repository, tag: Tag, *, fresh: bool, body: bool
    ) -> tuple[Resolved, Manifest | None]:
        """What the tag points at, by the rules of freshness, and the manifest where it came with the answer.

        `body`: the manifest is wanted too.
        """
        record, now = await self._shelf.tag(repository, tag), self._clock()
        known = None if record is None else await self._shelf.fact(repository, record.digest)
        key = (repository, tag)
        if record is not None and known is not None:
            descriptor = Descriptor(known.media_type, record.digest, known.size)
            age = max(0.0, now - record.checked)
            if not fresh and 0 <= now - record.checked < self._rules.tag_ttl:
                return Resolved(descriptor, Outcome(Result.HIT, age, stored=True)), None
            stale = Resolved(descriptor, Outcome(Result.STALE, age, stored=True))
            if not fresh and self._left_alone(key):
                return stale, None
            try:
                async with asyncio.timeout(self._rules.patience):
                    return await self._check(repository, tag, record, body=body)
            except (UpstreamError, Overloaded, TimeoutError) as error:
                self._failed.put(key, self._clock())
                log.warning("%s:%s is served stale: %s", repository, tag, str(error) or "upstream takes too long")
                return stale, None
        if not fresh and (heard := self._heard.get(key)) is not None:
            descriptor, told = heard
            if 0 <= now - told.checked < self._rules.tag_ttl:
                return Resolved(descriptor, Outcome(Result.HIT, now - told.checked)), None
        return await self._check(repository, tag, None, body=body)

    async def _check(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, body: bool
    ) -> tuple[Resolved, Manifest | None]:
        """Ask upstream about a tag: once for all who want to know."""
        key = (Kind.MANIFEST, "tag", repository, tag, body or record is not None)
        (found, manifest), joined = await self._ask(key, lambda: self._ask_tag(repository, tag, record, body=body))
        return replace(found, outcome=_came(joined, found.outcome)), manifest

    async def _ask_tag(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, body: bool
    ) -> tuple[Resolved, Manifest | None]:
        manifest = None
        try:
            if record is None and body:
                manifest = await self._fetch_manifest(repository, tag)
                found = Resolved(manifest.descriptor, manifest.outcome)
            else:
                found = await self._source.resolve(repository, tag)
                endpoint = found.outcome.endpoint
                if record is not None and found.descriptor.digest == record.digest:
                    found = replace(found, outcome=Outcome(Result.REVALIDATED, stored=True, endpoint=endpoint))
                elif record is not None:
                    manifest = await self._moved_to(repository, tag, found.descriptor.digest)
                    found = Resolved(manifest.descriptor, replace(manifest.outcome, endpoint=endpoint))
        except NotFound:
            await self._shelf.forget_tag(repository, tag)
            raise
        await self._vouched(repository, tag, found)
        return found, manifest

    async def _moved_to(self, repository: Repository, tag: Tag, digest: Digest) -> Manifest:
        """What the tag points at now. Where that is not there upstream contradicts itself: the tag is."""
        try:
            return await self._manifest_by_digest(repository, digest)
        except NotFound as error:
            raise BadAnswer(f"upstream says that {repository}:{tag} is {digest}, which it does not have") from error

    async def _vouched(self, repository: Repository, tag: Tag, found: Resolved) -> None:
        """Upstream says where the tag is now. Only what is kept is recorded: the record may have to be served stale."""
        self._failed.drop((repository, tag))
        record = TagRecord(found.descriptor.digest, self._clock(), found.outcome.endpoint)
        if found.outcome.stored:
            self._heard.drop((repository, tag))
            await self._shelf.set_tag(repository, tag, record)
            return
        self._heard.put((repository, tag), (found.descriptor, record))
        if await self._shelf.has(record.digest):  # by another tag, or from another repository: no GET of it may follow
            await self._shelf.know(repository, (found.descriptor,))
            await self._name(repository, found.descriptor)

    async def _name(self, repository: Repository, descriptor: Descriptor) -> None:
        """A manifest is here: give it the tags of which a HEAD has told."""
        for (place, tag), (heard, record) in self._heard.items():
            if place == repository and heard.digest == descriptor.digest:
                self._heard.drop((place, tag))
                await self._shelf.set_tag(repository, tag, record)

    # Blobs.

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry.stat`. The word of a manifest that names it is enough."""
        if (fact := await self._shelf.fact(repository, digest)) is not None:
            return Resolved(Descriptor(fact.media_type, digest, fact.size), HIT)
        key = (Kind.BLOB, "HEAD", repository, digest)
        found, joined = await self._ask(key, lambda: self._source.stat(repository, digest))
        await self._shelf.know(repository, (found.descriptor,))
        return replace(found, outcome=_came(joined, MISS))

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """See `Registry.blob`: from the store, else by the one flight of this digest, which fetches all of it."""
        del end  # every byte is wanted, by the next client if not by this one
        fact = await self._shelf.fact(repository, digest)
        size = None if fact is None else fact.size
        may_be_here = fact is not None or self._fills.flown_for(digest) is not None or await self._shelf.has(digest)
        if fact is None:
            flown_for = self._fills.flown_for(digest)
            if may_be_here if flown_for is None else flown_for != repository:
                # Somebody else's bytes: shown here only on this repository's own word.
                size = (await self.stat(repository, digest)).descriptor.size
                may_be_here = True
        if may_be_here and (here := await self._shelf.blob(digest, size)) is not None:
            here.instead = partial(Passage, self._source, repository, digest, here.size)
            self._ahead.asked(repository, digest)
            return here
        key = (Kind.BLOB, "GET", repository, digest)
        self._negatives.check(key)
        if size is None and self._fills.must_wait(repository.registry, digest):
            # On that word its client has headers now, and bytes when it is their turn.
            size = (await self.stat(repository, digest)).descriptor.size
        stored = partial(self._stored, repository, digest)
        self._ahead.asked(repository, digest)  # begins in the next step of the loop: behind what is begun here
        try:
            return await self._fills.join(self._bringing, repository, digest, size, start=start, stored=stored)
        except (NotFound, Unauthorized) as error:
            self._negatives.remember(key, error)
            raise

    async def _stored(self, repository: Repository, digest: Digest, size: int) -> None:
        await self._shelf.committed(repository, digest, size, self._bringing.brought(digest))

    def _fetch_ahead(self, repository: Repository, descriptors: Iterable[Descriptor]) -> None:
        """Begin the downloads of what is not here, behind those that clients wait for."""

        async def begin() -> None:
            for each in await self._missing(descriptors):
                stored = partial(self._stored, repository, each.digest)
                self._fills.fetch_ahead(self._bringing, repository, each.digest, each.size, stored)

        self._tasks.start(begin(), name=f"read ahead in {repository}")

    async def _missing(self, descriptors: Iterable[Descriptor]) -> list[Descriptor]:
        """Those whose content is not here, looked for all at once."""
        wanted = list(descriptors)
        here = await asyncio.gather(*(self._shelf.has(each.digest) for each in wanted))
        return [each for each, found in zip(wanted, here, strict=True) if not found]

    def _expect_layers(self, repository: Repository, image: Digest) -> None:
        """Have connections made for the layers of an image, while its client is still busy with the config."""

        async def expect() -> None:
            await asyncio.sleep(_A_MOMENT)
            missing = await self._missing(self._ahead.to_come(repository, image))
            if len(missing) > 1:
                self._source.expect(len(missing) - 1)  # and the connection that the config came over

        self._tasks.start(expect(), name=f"expect layers of {repository}")

    # Listings.

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry.tags`: upstream's answer, or the last one where upstream is away."""
        return await self._listing((repository, Kind.TAGS, query), lambda: self._source.tags(repository, query))

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry.referrers`. An outage never becomes an empty list: that would read as "unsigned"."""
        return await self._listing(
            (repository, Kind.REFERRERS, f"{digest} {query}"),
            lambda: self._source.referrers(repository, digest, query),
        )

    async def _listing(
        self, key: tuple[Repository, Kind, str], fetch: Callable[[], Coroutine[Any, Any, Listing]]
    ) -> Listing:
        kept = await self._shelf.listing(*key)
        if kept is not None and self._left_alone(key):
            return self._stale(kept)
        try:
            async with asyncio.timeout(None if kept is None else self._rules.patience):
                listing, joined = await self._ask(("list", *key), fetch)
        except (UpstreamError, Overloaded, TimeoutError):
            if kept is None:
                raise
            self._failed.put(key, self._clock())
            return self._stale(kept)
        if not joined:
            await self._shelf.keep_listing(*key, listing, self._clock())
        return replace(listing, outcome=_came(joined, _KEPT))

    def _stale(self, kept: KeptListing) -> Listing:
        age = max(0.0, self._clock() - kept.checked)
        return replace(kept.listing, outcome=Outcome(Result.STALE, age, stored=True))

    # Upstream.

    def _left_alone(self, key: tuple[object, ...]) -> bool:
        """Did upstream fail at this a moment ago?"""
        failed = self._failed.get(key)
        return failed is not None and 0 <= self._clock() - failed < _LEAVE_ALONE

    async def _ask(self, key: tuple[object, ...], work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """Ask upstream, once for all who ask the same; a "no" is believed for a while."""
        self._negatives.check(key)
        try:
            return await self._asking.do(key, work)
        except (NotFound, Unauthorized) as error:
            self._negatives.remember(key, error)
            raise


def _came(joined: bool, outcome: Outcome) -> Outcome:
    """What a request is told of an answer that came from upstream: by another's request, or by its own."""
    return replace(outcome, result=Result.COALESCED) if joined and outcome.result is Result.MISS else outcome
