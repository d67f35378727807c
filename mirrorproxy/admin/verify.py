"""`verify`: is what the cache holds what it should be? Everything is looked at: content, manifests, tags, parts.

What is not here is not wrong: a platform that nobody pulled, content that was evicted. It will be fetched when it is
asked for. Wrong is what would be served, believed or counted and is not so; and what nobody would ever take away.
"""

import asyncio
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, TypeVar

from mirrorproxy.admin.anatomy import Anatomist
from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import End, Event, Progress, Row
from mirrorproxy.admin.images import looked_at, name_of
from mirrorproxy.audit import Checker, Fate, State, Verdict
from mirrorproxy.errors import BadAnswer, DigestInvalid
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, Contents, parse
from mirrorproxy.names import Descriptor, Digest, Repository
from mirrorproxy.retention import Missing
from mirrorproxy.store.directory import ALGORITHMS
from mirrorproxy.store.files import TEMPORARY, disk_errors
from mirrorproxy.store.partfile import BAD_STATE, parse_state
from mirrorproxy.store.records import Fact

T = TypeVar("T")

_BATCH = 500
_ABANDONED = 86_400.0  # seconds after which nobody is writing a temporary file any more
_SLACK = 8 << 20  # bytes that may come or go while they are counted
_BROKEN_DISK = 3  # files that cannot be read, and it is the disk: then none of them is taken away


@dataclass(frozen=True, slots=True)
class Finding(Row):
    """Something that is wrong: what it is (blob, manifest, tag, pin, part, file, accounting), which one, and why.

    `became`: of content that was repaired, whether it was fetched again, or why not. `images` are those that consist of
    it too, as far as that is known.
    """

    kind: ClassVar[str] = "finding"
    what: str
    name: str
    problem: str
    repaired: bool = False
    became: str | None = None
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stranger(Row):
    """A file among the content that is none, which is somebody's: it is named, left alone, and not wrong."""

    kind: ClassVar[str] = "stranger"
    name: str


@dataclass(frozen=True, slots=True)
class Incomplete(Row):
    """A manifest that names something that is not here, which is not wrong."""

    kind: ClassVar[str] = "incomplete"
    name: str


@dataclass(frozen=True, slots=True)
class Summary(Row):
    """What was looked at: pieces of content and their bytes; manifests, by repository, and how many of them name
    something that is not here; tags, and how many of them have their manifest no more; parts; files that are not ours.
    And what is wrong, what of that was repaired, and how much content was fetched again for it.
    """

    kind: ClassVar[str] = "summary"
    blobs: int
    bytes: int
    manifests: int
    incomplete: int
    tags: int
    absent: int
    parts: int
    strangers: int
    wrong: int
    repaired: int
    refetched: int


class _Verify:
    """One run. Each step yields what it finds and how far it is."""

    def __init__(self, desk: Desk, checker: Checker, *, repair: bool) -> None:
        self._desk = desk
        self._checker = checker
        self._repair = repair
        self.blobs = self.bytes = self.manifests = self.incomplete = self.tags = self.absent = self.parts = 0
        self.strangers_found = self.refetched = 0
        self._condemned_names: set[str] = set()

    async def content(self) -> AsyncGenerator[Event, None]:
        """All blobs, manifests among them, are read and hashed; what is wrong is set aside and fetched again."""
        total, after = self._desk.ledger.used, None
        unreadable: list[tuple[Digest, Verdict]] = []
        while batch := await asyncio.to_thread(self._desk.blobs.names, after, _BATCH):
            after = batch[-1]
            found: list[Finding] = []
            for digest in batch:
                verdict = await self._checker.check(self._desk.blobs.path(digest), digest)
                self.blobs += verdict.state is not State.GONE
                self.bytes += verdict.size
                if verdict.state is State.UNREADABLE:
                    unreadable.append((digest, verdict))
                elif verdict.state is State.WRONG:
                    found.append(await self._condemned(digest, verdict))
                yield Progress("reading", self.bytes, total, "bytes")
            for finding in await self._with_images(found):
                yield finding
        found = []
        for digest, verdict in unreadable:
            if len(unreadable) < _BROKEN_DISK:
                found.append(await self._condemned(digest, verdict))
            else:
                problem = f"{verdict.reason}; left there, as the disk may be at fault"
                found.append(Finding("blob", digest, problem))
        for finding in await self._with_images(found):
            yield finding

    async def _with_images(self, findings: list[Finding]) -> list[Finding]:
        """These, with the images that consist of them: all are looked at for that."""
        names: dict[str, list[str]] = {finding.name: [] for finding in findings}
        self._condemned_names.update(names)
        if names:
            async for batch in looked_at(self._desk, Anatomist(self._desk.blobs.path)):
                for entry, anatomy in batch:
                    for piece in anatomy.pieces():
                        if piece.digest in names:
                            names[piece.digest].append(name_of(entry))
        return [replace(finding, images=names[finding.name]) for finding in findings]

    async def _condemned(self, digest: Digest, verdict: Verdict) -> Finding:
        repaired, became = False, None
        if self._repair and verdict.identity is not None:
            repaired = await self._desk.blobs.condemn(digest, verdict.reason, verdict.identity)
            if repaired:
                became = await self._desk.refetch(digest)
                self.refetched += became is Fate.REFETCHED
        return Finding("blob", digest, f"is {verdict.reason}", repaired, became)

    async def said_to_be_manifests(self) -> AsyncGenerator[Event, None]:
        """What the index says is a manifest is one."""
        index = self._desk.index
        async for repository, digest, fact in _in_batches(index.walk_manifests()):
            self.manifests += 1
            yield Progress("looking at manifests", self.manifests)
            body = await asyncio.to_thread(self._read, digest)
            try:
                if body is not None:
                    await asyncio.to_thread(parse, body, fact.media_type)
            except BadAnswer as error:
                if self._repair:
                    await index.forget_fact(repository, digest)
                yield Finding("manifest", f"{repository}@{digest}", f"is none: {error}", self._repair)

    async def known_manifests(self) -> AsyncGenerator[Event, None]:
        """Manifests have the size that the index says, and what they name is known to belong to their repository."""
        index = self._desk.index
        async for repository, digest, fact in _in_batches(index.walk_manifests()):
            body = await asyncio.to_thread(self._read, digest)
            if body is None:
                continue
            try:
                contents = await asyncio.to_thread(parse, body, fact.media_type)
            except BadAnswer:  # which was said
                continue
            before = self.incomplete
            problem = await self._problem_of(repository, fact, body, contents)
            if self.incomplete > before:
                yield Incomplete(f"{repository}@{digest}")
            if problem:
                if self._repair:
                    await index.forget_fact(repository, digest)
                    right = Descriptor(fact.media_type, digest, len(body))
                    await index.put_facts(repository, [right, *contents.children])
                yield Finding("manifest", f"{repository}@{digest}", problem, self._repair)

    async def _problem_of(self, repository: Repository, fact: Fact, body: bytes, contents: Contents) -> str | None:
        missing = False
        for child in contents.children:
            if await self._desk.index.fact(repository, child.digest) is None:
                return f"names {child.digest}, which is not known to belong there"
            missing = missing or not await asyncio.to_thread(self._desk.blobs.path(child.digest).exists)
        self.incomplete += missing
        return None if fact.size == len(body) else f"is known as {fact.size} bytes; it has {len(body)}"

    def _read(self, digest: Digest) -> bytes | None:
        """A manifest that is here and right; what is wrong was found before."""
        path = self._desk.blobs.path(digest)
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_SIZE:
                return None
            body = path.read_bytes()
        except OSError:
            return None
        return body if digest.of_same_algorithm(body) == digest else None

    async def known_tags(self) -> AsyncGenerator[Event, None]:
        """Tags point at what is known as a manifest, and were not checked in the future."""
        index = self._desk.index
        async for repository, tag, record in _in_batches(index.walk_tags()):
            self.tags += 1
            yield Progress("looking at tags", self.tags)
            fact = await index.fact(repository, record.digest)
            if fact is None or fact.media_type not in MEDIA_TYPES:
                if self._repair:
                    await index.forget_tag(repository, tag)
                    self._desk.changed()
                problem = f"points at {record.digest}, which is not known as a manifest there"
                yield Finding("tag", f"{repository}:{tag}", problem, self._repair)
                continue
            self.absent += not await asyncio.to_thread(self._desk.blobs.path(record.digest).exists)
            if record.checked > time.time() + _ABANDONED:
                if self._repair:
                    await index.put_tag(repository, tag, replace(record, checked=0.0))
                yield Finding("tag", f"{repository}:{tag}", "was last checked in the future", self._repair)

    async def pinned(self) -> AsyncGenerator[Event, None]:
        """What is pinned is here, all of it. What lacks because it was found wrong is not told again."""
        pins = self._desk.retention.pins
        await pins.look()
        for each in pins.missing:
            what = [one for one in each.what if one not in self._condemned_names]
            if what:
                yield Finding(
                    "pin", str(each.pin), f"is not complete: {Missing(each.pin, tuple(what)).listed} is not here"
                )

    async def partial(self) -> AsyncGenerator[Event, None]:
        """Parts have what their state says, and nothing else is left there."""
        for path in await asyncio.to_thread(lambda: _listed(self._desk.directory / "partial")):
            try:
                digest = Digest(path.name.replace("-", ":", 1))
            except DigestInvalid:
                digest = None
            if digest is None:
                if await asyncio.to_thread(_is_left, path):
                    if self._repair:
                        await asyncio.to_thread(path.unlink, missing_ok=True)
                    yield Finding("file", f"partial/{path.name}", "was left there by a crash", self._repair)
                continue
            self.parts += 1
            problem = await asyncio.to_thread(_problem_of_part, path)
            if problem and digest not in self._desk.retention.parts.filling:
                if self._repair:
                    await asyncio.to_thread(self._desk.partials.remove, digest)
                yield Finding("part", digest, problem, self._repair)

    async def strangers(self) -> AsyncGenerator[Event, None]:
        """Things beside the content, which nobody would ever take away. They are somebody's, and are left alone."""
        for algorithm in ALGORITHMS:
            for name in await asyncio.to_thread(_strange, self._desk.directory, algorithm):
                self.strangers_found += 1
                yield Stranger(f"blobs/{algorithm}/{name}")

    async def accounting(self) -> AsyncGenerator[Event, None]:
        """What the service believes to use is what is there."""
        ledger = self._desk.ledger
        before = ledger.used
        if before is None:
            return
        found = await asyncio.to_thread(lambda: sum(each.blocks for each in self._desk.blobs.scan()))
        after = ledger.used or 0
        if not min(before, after) - _SLACK <= found <= max(before, after) + _SLACK:
            problem = f"content takes {found} bytes, and is counted as {after}; a restart counts anew"
            yield Finding("accounting", "the size of the cache", problem)


async def verify(desk: Desk, repair: bool = False) -> AsyncGenerator[Event, None]:
    """Everything is read and compared: a `Finding` for each thing that is wrong, and a `Summary`.

    `repair`: wrong content goes into quarantine and is fetched again, and wrong records and parts go, so that the next
    pull fetches them.
    """
    told: set[tuple[str, str, str]] = set()
    repaired = 0
    async with AsyncExitStack() as parts:
        checker = Checker()
        parts.push_async_callback(checker.aclose)
        run = _Verify(desk, checker, repair=repair)
        steps = (run.content, run.said_to_be_manifests, run.known_manifests, run.known_tags)
        for step in (*steps, run.pinned, run.partial, run.strangers, run.accounting):
            async for event in step():
                if isinstance(event, Finding):
                    said = event.what, event.name, event.problem
                    if said in told:  # a row that was put right may come by again
                        continue
                    told.add(said)
                    repaired += event.repaired
                yield event
    yield Summary(
        run.blobs,
        run.bytes,
        run.manifests,
        run.incomplete,
        run.tags,
        run.absent,
        run.parts,
        run.strangers_found,
        len(told),
        repaired,
        run.refetched,
    )
    yield End(ok=len(told) == repaired)


async def _in_batches(rows: Iterator[T]) -> AsyncIterator[T]:
    """Rows of an iterator that blocks."""
    while batch := await asyncio.to_thread(lambda: list(islice(rows, _BATCH))):
        for row in batch:
            yield row


def _listed(folder: Path) -> list[Path]:
    with disk_errors("look for partial files"):
        return sorted(folder.iterdir())


def _is_left(path: Path) -> bool:
    """A temporary file that nobody writes to any more; others' files are others'."""
    try:
        return path.name.startswith(TEMPORARY) and path.lstat().st_mtime < time.time() - _ABANDONED
    except OSError:
        return False


def _problem_of_part(folder: Path) -> str | None:
    """What is wrong with a part. One without a state is as good as empty, and that is no fault."""
    try:
        size = (folder / "data").stat().st_size
        text = (folder / "state").read_bytes()
    except OSError:
        return None
    try:
        spans, _ = parse_state(text)
    except BAD_STATE:
        return "has a state that cannot be read"
    end = max((span.end for span in spans), default=0)
    return f"has a state that speaks of {end} bytes, where {size} are" if end > size else None


def _strange(directory: Path, algorithm: str) -> list[str]:
    found = []
    with disk_errors("look through the cache"):
        for path in (directory / "blobs" / algorithm).iterdir():
            try:
                Digest(f"{algorithm}:{path.name}")
            except DigestInvalid:
                found.append(path.name)
    return sorted(found)
