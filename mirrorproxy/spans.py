"""Byte ranges: half-open spans, sets of them, and the headers that speak of them (RFC 9110, section 14).

Everything counts from 0 and ends before `end`. Pure arithmetic: the store says which spans it holds, the web which
span a client wants, the upstream which span it sent.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Some clients write the largest integer that they know, of 19 or 20 digits, for "to the end".
_RANGE = re.compile(r"bytes=(?:([0-9]{1,20})-([0-9]{1,20})?|-([0-9]{1,20}))", re.IGNORECASE | re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE | re.ASCII)
_FURTHEST = 2**63 - 1  # what an off_t holds: no content has a byte behind it


class Span(NamedTuple):
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.start

    def content_range(self, total: int) -> str:
        """The Content-Range header of a 206 with these bytes of `total`."""
        return f"bytes {self.start}-{self.end - 1}/{total}"


class RangeRequest(NamedTuple):
    """One range of a Range header as the client wrote it: `start` None for a suffix, `end` (exclusive) None for open.

    For a suffix `end` is the number of bytes wanted.
    """

    start: int | None
    end: int | None

    def resolve(self, total: int) -> Span | None:
        """The span that is meant in content of `total` bytes, or None where it is not satisfiable (416)."""
        if self.start is None:
            wanted = self.end or 0
            return Span(max(0, total - wanted), total) if wanted and total else None
        if self.start >= total:
            return None
        return Span(self.start, total if self.end is None else min(self.end, total))


def parse_range(header: str | None) -> RangeRequest | None:
    """The one byte range that a Range header asks for, or None where the whole is the answer.

    None for no header, for what does not parse (RFC 9110, 14.2: an invalid Range is ignored), for other units, and for
    several ranges, which a registry may answer with the whole.
    """
    if header is None or not (match := _RANGE.fullmatch(header.strip(" \t"))):
        return None
    first, last, suffix = (None if digits is None else int(digits) for digits in match.groups())
    if suffix is not None:
        return RangeRequest(None, min(suffix, _FURTHEST))
    if first is None or (last is not None and last < first):
        return None
    return RangeRequest(min(first, _FURTHEST), None if last is None else min(last, _FURTHEST) + 1)


def format_range(start: int, end: int | None) -> str:
    """The Range header for the bytes from `start` up to, not including, `end` (None: to the end of the content)."""
    return f"bytes={start}-{'' if end is None else end - 1}"


def parse_content_range(header: str | None) -> tuple[Span, int | None] | None:
    """The span and the total size (None for `*`) of a Content-Range header; None where it does not parse."""
    if header is None or not (match := _CONTENT_RANGE.fullmatch(header.strip(" \t"))):
        return None
    first, last, total = match.groups()
    span, size = Span(int(first), int(last) + 1), None if total == "*" else int(total)
    if span.size <= 0 or (size is not None and span.end > size):
        return None
    return span, size


class Spans:
    """A set of bytes, kept as sorted spans that do not touch.

    Adding costs a binary search and the removal of the spans swallowed; a download in order keeps it at one span.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Put in the bytes from `start` up to `end`. Raises `ValueError` on a negative or reversed span."""
        if not 0 <= start <= end:
            raise ValueError(f"not a span: {start}..{end}")
        if start == end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def end_of(self, offset: int) -> int:
        """Up to where the bytes from `offset` on are there without a hole; `offset` itself when it is missing."""
        at = bisect_right(self._starts, offset) - 1
        return max(offset, self._ends[at]) if at >= 0 else offset

    @property
    def front(self) -> int:
        """Up to where the bytes from 0 on are there without a hole."""
        return self.end_of(0)

    @property
    def total(self) -> int:
        """How many bytes are there."""
        return sum(self._ends) - sum(self._starts)

    def gaps(self, end: int, start: int = 0) -> Iterator[Span]:
        """What is missing between `start` and `end`, in order."""
        while start < end:
            start = min(self.end_of(start), end)
            at = bisect_right(self._starts, start)
            stop = min(self._starts[at], end) if at < len(self._starts) else end
            if start < stop:
                yield Span(start, stop)
            start = stop

    def __iter__(self) -> Iterator[Span]:
        return (Span(start, end) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"<Spans {' '.join(f'{start}..{end}' for start, end in self)}>"
