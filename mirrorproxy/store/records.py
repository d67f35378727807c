"""What the index keeps, and the rows in which it keeps it. Pure.

    tag:<registry>/<name> <tag>            {"d": digest, "c": checked, "e": endpoint, "s": since}: "e", "s" may lack
    manifest:<registry>/<name> <digest>    {"t": media type, "s": size}     a manifest of this repository
    blob:<registry>/<name> <digest>        {"t": media type, "s": size}     anything else that belongs to it
    list:<registry>/<name> <kind> <hash>   {"t", "n", "f", "c"}, a line feed, the body as it came
    from:<digest>                          the endpoint that it came from

What content there is stands in a table of its own (`queues`).

A space sorts before every character of a name, so rows come in the order of repositories. What is a manifest stands
apart from what is not: another manifest that names its digest as a layer does not change what it is.

Every `parse_*` raises one of `BAD_ROW` where a row is not what it should be.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mirrorproxy.errors import Invalid
from mirrorproxy.manifests import MEDIA_TYPES
from mirrorproxy.names import Descriptor, Digest, Reference, Repository, Tag, reference, registry_name, repository
from mirrorproxy.registry import Kind, Listing

TAGS, MANIFESTS, BLOBS, LISTINGS, ORIGINS = "tag:", "manifest:", "blob:", "list:", "from:"

BAD_ROW = (ValueError, TypeError, KeyError, IndexError, RecursionError, Invalid)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag pointed at when upstream was last asked: `checked`, in Unix seconds; 0 for one that was rebuilt.

    `endpoint` is the one that said so, `since` when it was first said that it points there (Unix seconds), where that
    is known.
    """

    digest: Digest
    checked: float
    endpoint: str | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """What a digest is in a repository that has it: media type, and size in bytes."""

    media_type: str
    size: int


class Used(NamedTuple):
    """The last use of content, in Unix seconds, and the bytes it takes on the disk."""

    last: float
    blocks: int


class KeptListing(NamedTuple):
    """The last listing that upstream sent for a query, and when (Unix seconds)."""

    listing: Listing
    checked: float


def parse_repository(text: str) -> Repository:
    """The repository that `str()` wrote as `text`. Raises `NameInvalid`, or `ValueError` for another spelling."""
    registry, _, name = text.partition("/")
    found = repository(registry_name(registry), name)
    if str(found) != text:
        raise ValueError(f"{found} is not written as {text[:160]!r}")
    return found


def tag_key(repository: Repository, tag: Tag) -> str:
    """The key of a tag's record."""
    return f"{TAGS}{repository} {tag}"


def fact_key(repository: Repository, digest: Digest, media_type: str) -> str:
    """The key under which this fact is kept."""
    return f"{MANIFESTS if media_type in MEDIA_TYPES else BLOBS}{repository} {digest}"


def fact_keys(repository: Repository, digest: Digest) -> tuple[str, str]:
    """The keys under which a fact may be; the first that is there counts."""
    return f"{MANIFESTS}{repository} {digest}", f"{BLOBS}{repository} {digest}"


def listing_key(repository: Repository, kind: Kind, query: str) -> str:
    """The key of a listing; the query is hashed, since its length and its characters are the client's."""
    return f"{LISTINGS}{repository} {kind} {hashlib.sha256(query.encode('utf-8', 'surrogatepass')).hexdigest()}"


def origin_key(digest: Digest) -> str:
    """The key of where content came from."""
    return f"{ORIGINS}{digest}"


def parse_origin(value: bytes) -> str:
    """The endpoint in a row's value."""
    return value.decode()


def tag_row(record: TagRecord) -> bytes:
    """The value of a tag's record."""
    known = {name: value for name, value in (("e", record.endpoint), ("s", record.since)) if value is not None}
    return json.dumps({"d": record.digest, "c": record.checked, **known}).encode()


def fact_row(fact: Fact) -> bytes:
    """The value of a fact."""
    return json.dumps({"t": fact.media_type, "s": fact.size}).encode()


def fact_rows(repository: Repository, descriptors: Iterable[Descriptor]) -> Iterator[tuple[str, bytes]]:
    """Keys and values that say that these belong to the repository."""
    for each in descriptors:
        yield fact_key(repository, each.digest, each.media_type), fact_row(Fact(each.media_type, each.size))


def listing_row(kept: KeptListing) -> bytes:
    """The value of a listing."""
    listing = kept.listing
    head = {"t": listing.media_type, "n": listing.next_query, "f": listing.filters, "c": kept.checked}
    return json.dumps(head).encode() + b"\n" + listing.body


def parse_tag(value: bytes) -> TagRecord:
    """The record in a row's value."""
    row = json.loads(value)
    endpoint, since = _text(row["e"]) if "e" in row else None, _time(row["s"]) if "s" in row else None
    return TagRecord(Digest(row["d"]), _time(row["c"]), endpoint, since)


def parse_fact(value: bytes) -> Fact:
    """The fact in a row's value."""
    row = json.loads(value)
    return Fact(sys.intern(_text(row["t"])), _size(row["s"]))


def parse_listing(value: bytes) -> KeptListing:
    """The listing in a row's value."""
    head, _, body = value.partition(b"\n")
    row = json.loads(head)
    next_query, filters = (None if row[name] is None else _text(row[name]) for name in "nf")
    return KeptListing(Listing(body, _text(row["t"]), next_query, filters), _time(row["c"]))


def tag_entry(key: str, value: bytes) -> tuple[Repository, Tag, TagRecord]:
    """A whole row of a tag; `key` without its prefix, as in all of these."""
    repository, _, tag = key.partition(" ")
    return parse_repository(repository), Tag(tag), parse_tag(value)


def manifest_entry(key: str, value: bytes) -> tuple[Repository, Digest, Fact]:
    """A whole row of a manifest."""
    repository, _, digest = key.partition(" ")
    return parse_repository(repository), Digest(digest), parse_fact(value)


def parse_name(text: str) -> tuple[Repository, Reference]:
    """An image's name in full: `docker.io/library/alpine:3.20`, `docker.io/library/alpine@sha256:...`."""
    name, at, rest = text.partition("@") if "@" in text else text.rpartition(":")
    found = reference(rest)
    if isinstance(found, Digest) != (at == "@"):
        raise ValueError("a name that is neither a tag's nor a digest's")
    return parse_repository(name), found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} is not a number of bytes")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.40} is not a time")
    return float(value)
