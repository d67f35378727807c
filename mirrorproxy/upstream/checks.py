"""Is what came what was asked for? Pure checks of answers with status 200 and 206. All raise `BadAnswer`."""

import json
import re
from collections.abc import Mapping

from mirrorproxy.errors import BadAnswer, DigestInvalid, DigestMismatch
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, OCI_INDEX, bare_media_type, parse
from mirrorproxy.names import Descriptor, Digest, Reference
from mirrorproxy.registry import Manifest
from mirrorproxy.spans import Span, parse_content_range
from mirrorproxy.upstream.answers import Answer

_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})", re.IGNORECASE)


def check_encoding(answer: Answer) -> None:
    """The bytes are the content's own: a digest is over those, and `identity` was asked for."""
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BadAnswer(f"{answer.host} sent content with the encoding {encoding[:40]!r}, which was not asked for")


def check_blob(answer: Answer, digest: Digest) -> None:
    """The headers are this blob's: not a web page's (unless by its digest the blob is one), nor another digest's."""
    check_encoding(answer)
    told = _told_digest(answer.headers)
    if answer.is_html and told != digest:
        raise BadAnswer(f"{answer.host} sent a web page instead of a blob: is this a registry?")
    _check_digest(answer, told, digest)


def described(answer: Answer, reference: Reference) -> Descriptor | None:
    """The manifest that the answer to a HEAD describes, or None where it does not say all that there is to say."""
    told = _told_digest(answer.headers)
    if isinstance(reference, Digest):
        _check_digest(answer, told, reference)
        told = reference
    if told is None or not answer.length or answer.length > MAX_SIZE or answer.media_type not in MEDIA_TYPES:
        return None
    return Descriptor(answer.media_type, told, answer.length)


def manifest(body: bytes, headers: Mapping[str, str], reference: Reference) -> Manifest:
    """The manifest that is `body`. Its digest is the reference where that is one, else the one told, else the sha256.

    Raises `DigestMismatch` where the reference is a digest and not this body's; `BadAnswer` where it is no manifest.
    """
    contents = parse(body, headers.get("Content-Type", ""))
    digest = reference if isinstance(reference, Digest) else _told_digest(headers) or Digest.of(body)
    if digest.of_same_algorithm(body) != digest:
        if isinstance(reference, Digest):
            raise DigestMismatch(f"upstream sent a manifest that is not {reference}")
        raise BadAnswer("upstream sent a manifest whose digest is not the one that it told with it")
    return Manifest(Descriptor(contents.media_type, digest, len(body)), body, contents)


def _told_digest(headers: Mapping[str, str]) -> Digest | None:
    """`Docker-Content-Digest`, None where it is missing or of no kind that we know."""
    try:
        return Digest(headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _check_digest(answer: Answer, told: Digest | None, wanted: Digest) -> None:
    """A registry may tell a digest by another algorithm than it was asked by; that says nothing."""
    if told is not None and told.algorithm == wanted.algorithm and told != wanted:
        raise BadAnswer(f"{answer.host} answered with another digest than the one that it was asked for")


def received_span(answer: Answer, start: int, end: int | None) -> tuple[Span | None, int | None]:
    """Which bytes of a blob an answer holds, and how many the blob has. The span is None where nobody knows its end.

    `start` and `end`: the range that was asked for, 0 and None for none. A 200 holds the whole, whatever was asked; a
    416 nothing.
    """
    if answer.status == 200:
        return None if answer.length is None else Span(0, answer.length), answer.length
    if answer.status == 416 and (size := size_of(answer)) is not None and start >= size:
        return Span(start, start), size  # nothing, and how far beyond the end that was
    if answer.status == 416:
        raise BadAnswer(f"{answer.host} says that a blob has no bytes from {start} on, and not where it ends")
    told = parse_content_range(answer.headers.get("Content-Range"))
    if told is None or (start == 0 and end is None):
        raise BadAnswer(f"{answer.host} sent a part of a blob without being asked, or without saying which")
    span, total = told
    ends = [bound for bound in (end, total) if bound is not None]
    wanted = Span(start, min(ends) if ends else span.end)
    if span != wanted or answer.length not in (None, span.size):
        raise BadAnswer(f"{answer.host} sent the bytes {span.start} to {span.end} of a blob, not those asked for")
    return span, total


def size_of(answer: Answer) -> int | None:
    """How many bytes the blob has of which a part was asked for; None where the answer does not say."""
    if answer.status == 200:
        return answer.length
    if answer.status == 416:
        match = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", "").strip())
        return int(match[1]) if match else None
    told = parse_content_range(answer.headers.get("Content-Range"))
    return told[1] if told else None


def check_tags(host: str, body: bytes) -> None:
    """`body` is `{"name": .., "tags": [..]}`; a repository without tags may have null there."""
    document = _object(host, body, "list of tags")
    if not isinstance(document.get("name"), str) or not isinstance(document.get("tags", 0), list | None):
        raise BadAnswer(f"{host} sent JSON that is not a list of tags")


def check_referrers(host: str, body: bytes, content_type: str) -> None:
    """`body` is an image index: a page of referrers. Anything else must not be taken for "there are none"."""
    document = _object(host, body, "list of referrers")
    media_type = document.get("mediaType", bare_media_type(content_type))
    if media_type != OCI_INDEX or not isinstance(document.get("manifests"), list):
        raise BadAnswer(f"{host} sent JSON that is not a list of referrers")


def _object(host: str, body: bytes, what: str) -> dict[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer(f"{host} sent something that is not JSON for a {what}") from None
    if not isinstance(document, dict):
        raise BadAnswer(f"{host} sent JSON that is not a {what}")
    return document
