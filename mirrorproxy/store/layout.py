"""`index.json`: the cached tags, in the words of the OCI image layout, and the way back from there to the index.

One descriptor a line, each with its name as `org.opencontainers.image.ref.name`: `docker.io/library/alpine:3.20` for a
tag, `docker.io/library/alpine@sha256:...` for a manifest that no tag of its repository points at. Only what is in
`blobs/` is named. So `skopeo copy oci:DIRECTORY:docker.io/library/alpine:3.20 ...` works, and a lost index can be
filled again: tags, media types, and what belongs to which repository.
"""

import asyncio
import heapq
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

from mirrorproxy.errors import BadAnswer, CacheFailed
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, parse
from mirrorproxy.names import Descriptor, Digest, Reference, Repository, Tag
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.directory import INDEX_HEAD, INDEX_TAIL
from mirrorproxy.store.files import disk_errors, write_whole
from mirrorproxy.store.index import Index
from mirrorproxy.store.records import BAD_ROW, Fact, TagRecord, parse_name
from mirrorproxy.tasks import Tasks, within

log = logging.getLogger(__name__)

_NAME = "org.opencontainers.image.ref.name"
_LARGEST_LINE = 1 << 12  # bytes; ours have about 250
_LARGEST_FOREIGN = 64 << 20  # bytes: a file that another tool wrote is read as a whole
_PAUSE = 2.0  # seconds from a change to its being written, at least
_PAUSE_FACTOR = 100  # times as long as the last write took: fewer than one hit in a hundred meets one
_BATCH = 100


_Row = tuple[Repository, Reference, Fact | TagRecord]


class Entry(NamedTuple):
    """A cached manifest, by tag or by its digest. `record` is the tag's, where the index gave it."""

    repository: Repository
    reference: Reference
    descriptor: Descriptor
    record: TagRecord | None = None


def write(directory: Path, entries: Iterable[Entry]) -> None:
    """Write `index.json` in one step, entry by entry. Blocks. Raises `CacheFailed`."""
    with disk_errors("write index.json"):
        write_whole(directory / "index.json", _lines(entries), scratch=directory / "partial", mode=0o600)


def read(directory: Path) -> Iterator[Entry]:
    """What `index.json` names, as far as it can be read: the rest is logged. Blocks. Raises `CacheFailed`."""
    bad = 0
    with disk_errors("read index.json"):
        try:
            file = (directory / "index.json").open("rb")
        except FileNotFoundError:
            return
        with file:
            ours = file.readline(_LARGEST_LINE).rstrip(b"\n") == INDEX_HEAD
            for document in _our_lines(file) if ours else _foreign(file):
                try:
                    yield _entry(document)
                except BAD_ROW:
                    bad += 1
    if bad:
        log.warning("left out of index.json: %d entries that are not ours, or damaged", bad)


def cached(index: Index, blobs: BlobStore) -> Iterator[Entry]:
    """What `index.json` should name, by repository. Blocks. Raises `CacheFailed`."""
    known: Iterator[_Row] = index.walk_manifests()
    tagged: Iterator[_Row] = index.walk_tags()
    # Both come in the order of repositories; of each repository its manifests first.
    merged = heapq.merge(known, tagged, key=lambda row: str(row[0]))
    for repository, rows in itertools.groupby(merged, key=lambda row: row[0]):
        manifests: dict[Digest, Descriptor] = {}
        covered: set[Digest] = set()
        for _, name, value in rows:
            if isinstance(value, Fact):
                digest = Digest(name)
                if blobs.path(digest).is_file():
                    manifests[digest] = Descriptor(value.media_type, digest, value.size)
            elif value.digest in manifests:
                covered.add(value.digest)
                yield Entry(repository, Tag(name), manifests[value.digest], value)
        for digest, descriptor in manifests.items():
            if digest not in covered:
                yield Entry(repository, digest, descriptor)


async def rebuild(blobs: BlobStore, index: Index, directory: Path) -> int:
    """Fill the index from `index.json` and from the manifests that it names; returns how many these were.

    What the index knows already stays. May be broken off and begun again. Raises `CacheFailed` where the index does.
    """
    entries = read(directory)
    count = 0
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(entries, _BATCH))):
        for entry in batch:
            count += await _restore(entry, blobs, index)
    await index.rebuilt()
    return count


class LayoutWriter:
    """Keeps `index.json` as new as is cheap: some time after a change, in a thread, and at `aclose`.

    The pause before a write is at least `pause` seconds, and 100 times as long as the last one took. Nothing is written
    while the index still has to be rebuilt from what would be overwritten. Close this before the index.
    """

    def __init__(self, directory: Path, index: Index, blobs: BlobStore, *, pause: float = _PAUSE) -> None:
        self._directory = directory
        self._index = index
        self._blobs = blobs
        self._least_pause = pause
        self._pause = pause
        self._dirty = False
        self._failing = False
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._tasks = Tasks()

    def __repr__(self) -> str:
        return f"<LayoutWriter {'behind' if self._dirty else 'done'}, pause {self._pause:.1f} s>"

    def start(self) -> None:
        """Begin, with a write of what there is: the last stop may not have been a clean one."""
        self.changed()
        self._working = self._tasks.start(self._work(), name="write index.json")

    def changed(self) -> None:
        """Say that a tag or a manifest came or went."""
        self._dirty = True
        self._wake.set()

    async def aclose(self) -> None:
        """Write what is not written yet, and stop."""
        self._stop.set()
        self._wake.set()
        await self._working
        await self._tasks.aclose()

    async def _work(self) -> None:
        while not self._stop.is_set():
            await self._wake.wait()
            with suppress(TimeoutError):
                await within(self._pause, self._stop.wait())
            await self._write_if_needed()
        await self._write_if_needed()  # what came while it was writing

    async def _write_if_needed(self) -> None:
        if self._dirty and not self._index.rebuild_needed:
            await self._write()

    async def _write(self) -> None:
        self._dirty = False
        self._wake.clear()
        started = monotonic()
        try:
            await asyncio.to_thread(write, self._directory, self._entries())
        except CacheFailed as error:
            self.changed()
            if not self._failing:
                log.warning("index.json is not up to date, and will be tried again: %s", error)
            self._failing = True
        else:
            self._failing = False
        self._pause = max(self._least_pause, _PAUSE_FACTOR * (monotonic() - started))

    def _entries(self) -> Iterator[Entry]:
        """What to write. Blocks. Raises `CacheFailed`, also where the index turned out to be a new one as it was read:
        what it lacks would be lost for good. And where it lacks what could not be written into it.
        """
        yield from cached(self._index, self._blobs)
        if self._index.rebuild_needed:
            raise CacheFailed("the index has to be rebuilt first")
        if self._index.is_behind:
            raise CacheFailed("the index could not be written")


async def _restore(entry: Entry, blobs: BlobStore, index: Index) -> bool:
    """Put what the manifest is, and all that it names, into the index; of an index (of images) also its manifests'."""
    tags = [entry.reference] if isinstance(entry.reference, Tag) else []
    pending, seen, found = [entry.descriptor], {entry.descriptor.digest}, False
    while pending:
        descriptor = pending.pop()
        try:
            body = await blobs.read(descriptor.digest, MAX_SIZE)
            contents = None if body is None else await asyncio.to_thread(parse, body, descriptor.media_type)
        except (BadAnswer, CacheFailed) as error:
            log.warning("cannot restore what belongs to %s@%s: %s", entry.repository, descriptor.digest, error)
            continue
        if contents is None:
            continue
        await index.restore(entry.repository, [descriptor, *contents.children], tags)
        found, tags = True, []
        for child in contents.manifests:
            if child.media_type in MEDIA_TYPES and child.digest not in seen:
                seen.add(child.digest)
                pending.append(child)
    return found


def _lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    yield INDEX_HEAD
    separator = b"\n"
    for repository, name, descriptor, _ in entries:
        document = {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
            "annotations": {_NAME: f"{repository}{'@' if isinstance(name, Digest) else ':'}{name}"},
        }
        yield separator + json.dumps(document, separators=(",", ":")).encode()
        separator = b",\n"
    yield INDEX_TAIL


def _our_lines(file: BinaryIO) -> Iterator[object]:
    """The documents in the lines, None for what is none; a file without its end has lost some."""
    while line := file.readline(_LARGEST_LINE):
        text = line.strip().removesuffix(b",")
        if text == b"]}":
            return
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            yield None
    yield None


def _foreign(file: BinaryIO) -> Iterator[object]:
    """The same of a file that another tool wrote."""
    file.seek(0)
    data = file.read(_LARGEST_FOREIGN + 1)
    try:
        documents = json.loads(data)["manifests"] if len(data) <= _LARGEST_FOREIGN else None
    except (ValueError, TypeError, KeyError, RecursionError):
        documents = None
    yield from documents if isinstance(documents, list) else [None]


def _entry(document: Any) -> Entry:
    """Raises one of `BAD_ROW`."""
    name, media_type, size = document["annotations"][_NAME], document["mediaType"], document["size"]
    (repository, found), digest = parse_name(name), Digest(document["digest"])
    if isinstance(found, Digest) and found != digest:
        raise ValueError("a name that is not this manifest's")
    if media_type not in MEDIA_TYPES or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise ValueError("not a manifest's descriptor")
    return Entry(repository, found, Descriptor(media_type, digest, size))
