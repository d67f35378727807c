"""Spans against a set of numbers, and Range headers against a second reading of RFC 9110, 14."""

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mirrorproxy.spans import RangeRequest, Span, Spans, format_range, parse_content_range, parse_range

EDGE = 40
spans = st.integers(0, EDGE).flatmap(lambda start: st.tuples(st.just(start), st.integers(start, EDGE)))
offsets = st.integers(0, 2**62)
numbers = st.one_of(
    st.integers(0, 30).map(str), st.sampled_from(["", "007", "9223372036854775807", "18446744073709551615", "x", "٣"])
)
ranges = st.builds(
    "{}{}{}-{}{}".format,
    st.sampled_from(["bytes", "BYTES", "Bytes", "byte\u017f", "items", "byte", " bytes", ""]),
    st.sampled_from(["=", "=", "=", "==", ":", " "]),
    numbers,
    numbers,
    st.sampled_from(["", "", "", " ", "\t", ",0-1", ",", "-", "\n", "\xa0"]),
)


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The longest half-open runs of neighbours."""
    starts = sorted(number for number in numbers if number - 1 not in numbers)
    ends = sorted(number + 1 for number in numbers if number + 1 not in numbers)
    return list(zip(starts, ends, strict=True))


def selected(header: str, total: int) -> range | None:
    """Which bytes of `total` are asked for, None where the header is to be ignored. Empty: not satisfiable."""
    unit, equals, spec = header.strip(" \t").partition("=")
    first, dash, last = spec.partition("-")
    digits = set(string.digits)
    if unit.lower() != "bytes" or not equals or not dash or not set(first + last) <= digits or not first + last:
        return None
    everything = range(total)
    if not first:
        return everything[max(0, total - int(last)) :]
    if last and int(last) < int(first):
        return None
    return everything[int(first) : int(last) + 1 if last else total]


@settings(deadline=None)
@given(st.lists(spans, max_size=12))
def test_added_spans_are_the_union(added: list[tuple[int, int]]) -> None:
    """After each one: the spans are the runs of the set, sorted and apart; `total` and `front` count its numbers."""
    found, model = Spans(), set[int]()
    for start, end in added:
        found.add(start, end)
        model.update(range(start, end))
        assert list(found) == runs(model)
        assert len(found) == len(runs(model))
        assert found.total == len(model)
        assert found.front == next(number for number in range(EDGE + 2) if number not in model)


@settings(deadline=None)
@given(st.lists(spans, max_size=12), st.integers(0, EDGE + 5))
def test_end_of_is_the_first_hole(added: list[tuple[int, int]], offset: int) -> None:
    """From `offset` on; a missing byte is its own end."""
    model = {number for start, end in added for number in range(start, end)}
    expected = next(number for number in range(offset, 2 * EDGE) if number not in model)
    assert Spans(added).end_of(offset) == expected


@settings(deadline=None)
@given(st.lists(spans, max_size=12), st.integers(0, EDGE + 5), st.integers(0, EDGE + 5))
def test_gaps_are_what_is_missing(added: list[tuple[int, int]], start: int, end: int) -> None:
    """Between two bounds, in order, none empty, no two touching; filling them makes it whole."""
    found = Spans(added)
    model = {number for low, high in added for number in range(low, high)}
    gaps = list(found.gaps(end, start))
    assert gaps == runs(set(range(start, end)) - model)
    for gap in gaps:
        found.add(*gap)
    assert list(found.gaps(end, start)) == []
    assert found.end_of(start) >= end or start >= end


@settings(deadline=None)
@given(st.lists(spans, max_size=8).flatmap(lambda added: st.tuples(st.just(added), st.permutations(added))))
def test_order_does_not_matter(pair: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    """Equal sets are equal, however they came about, and come back from what is written down of them."""
    one, other = Spans(pair[0]), Spans(pair[1])
    assert one == other
    assert repr(one) == repr(other)
    assert Spans(one) == one
    one.add(EDGE + 1, EDGE + 2)
    assert one != other


@pytest.mark.parametrize("span", [(-1, 1), (-2, -1), (3, 2)])
def test_what_is_no_span_is_not_added(span: tuple[int, int]) -> None:
    """A fault of the caller, and the set stays as it was."""
    found = Spans([(1, 3)])
    with pytest.raises(ValueError, match=f"{span[0]}..{span[1]}"):
        found.add(*span)
    assert list(found) == [Span(1, 3)]


def test_sets_with_the_same_beginnings_differ_by_their_ends() -> None:
    """And nothing else than a set of bytes equals one."""
    assert Spans([(0, 2), (5, 6)]) != Spans([(0, 2), (5, 7)])
    assert Spans([(0, 2)]) != [(0, 2)]
    with pytest.raises(TypeError):
        hash(Spans())


@settings(deadline=None)
@given(st.one_of(ranges, st.text("bytes=-0123456789, ", max_size=16)), st.integers(0, 40))
@example("bytes=0-", 0)
@example("bytes=-0", 10)
@example("bytes=-5", 0)
@example("bytes=5-9223372036854775807", 10)
@example("bytes=5-18446744073709551615", 10)
@example("bytes=18446744073709551615-", 10)
def test_a_range_selects_what_the_rfc_says(header: str, total: int) -> None:
    """The same bytes as the second reading, the whole where that ignores the header, 416 where it finds none."""
    found, expected = parse_range(header), selected(header, total)
    if expected is None:
        assert found is None
        return
    assert found is not None
    span = found.resolve(total)
    assert (range(0) if span is None else range(*span)) == expected
    assert span is None or 0 <= span.start < span.end <= total


@settings(deadline=None)
@given(offsets, st.one_of(st.none(), st.integers(1, 2**40)), st.integers(0, 2**62))
def test_a_range_that_we_write_is_read_as_meant(start: int, size: int | None, total: int) -> None:
    """Parsing what was formatted gives it back, and resolves to the part that the content has."""
    end = None if size is None else start + size
    found = parse_range(format_range(start, end))
    assert found == RangeRequest(start, end)
    stop = total if end is None else min(end, total)
    assert RangeRequest(start, end).resolve(total) == (Span(start, stop) if start < total else None)


@settings(deadline=None)
@given(offsets, st.integers(1, 2**40), st.integers(0, 2**40))
def test_a_content_range_that_we_write_is_read_as_meant(start: int, size: int, more: int) -> None:
    """As far as 18 digits go; beyond, it does not parse."""
    span = Span(start, start + size)
    total = span.end + more
    assert span.size == size
    expected = (span, total) if total < 10**18 else None
    assert parse_content_range(span.content_range(total)) == expected


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes 0-4/10", ((0, 5), 10)),
        ("bytes 9-9/10", ((9, 10), 10)),
        (" Bytes 0-4/5 ", ((0, 5), 5)),
        ("bytes 3-4/*", ((3, 5), None)),
        ("bytes 4-3/10", None),
        ("bytes 5-3/*", None),
        ("bytes 0-10/10", None),
        ("bytes 0-0/0", None),
        ("bytes */10", None),
        ("bytes 0-/10", None),
        ("bytes -4/10", None),
        ("bytes 0-4", None),
        ("bytes=0-4/10", None),
        ("bytes 0 - 4 / 10", None),
        ("items 0-4/10", None),
        ("byte\u017f 0-4/10", None),
        ("bytes 0-٣/10", None),
        ("bytes 0-4/10, 6-7/10", None),
        ("bytes 0-" + "9" * 5000 + "/*", None),
        ("", None),
        (None, None),
    ],
)
def test_content_ranges(header: str | None, found: tuple[tuple[int, int], int | None] | None) -> None:
    """One span of bytes, not empty, inside of the total; else it does not parse."""
    assert parse_content_range(header) == found


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5",
        "bytes=5-4",
        "bytes=18446744073709551615-9223372036854775807",
        "bytes=a-b",
        "bytes=0x0-0x5",
        "bytes=+1-2",
        "bytes=1-+2",
        "bytes=--1",
        "bytes=1.0-2",
        "bytes = 0-5",
        "bytes= 0-5",
        "bytes=0 - 5",
        "bytes:0-5",
        "bytes 0-5",
        "items=0-5",
        "byte\u017f=0-5",
        "bytes=٣-٤",
        "bytes=0-5\n",
        "bytes=0-1,4-5",
        "bytes=0-1,",
        "bytes=" + "0-1," * 5000 + "0-1",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_ranges_that_are_answered_with_the_whole(header: str | None) -> None:
    """No range, no bytes, several, or nonsense: RFC 9110, 14.2, ignores it, and a registry may."""
    assert parse_range(header) is None


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=3-100", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-10", (0, 10)),
        ("bytes=-11", (0, 10)),
        ("BYTES=1-2", (1, 3)),
        ("\tbytes=1-2 ", (1, 3)),
        ("bytes=001-002", (1, 3)),
        ("bytes=5-9223372036854775807", (5, 10)),  # the largest int64
        ("bytes=5-18446744073709551615", (5, 10)),
        ("bytes=10-", None),
        ("bytes=10-10", None),
        ("bytes=9223372036854775807-", None),
        ("bytes=18446744073709551615-18446744073709551615", None),
        ("bytes=-0", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, span: tuple[int, int] | None) -> None:
    """What is there of what was asked; None is a 416."""
    found = parse_range(header)
    assert found is not None
    assert found.resolve(10) == span
    assert found.start is None or found.start < 2**63  # what the kernel takes for an offset


@settings(deadline=None)
@given(st.text("bytes 0123456789-/*", max_size=20))
@example("bytes 0-4/5")
@example("bytes 0-4/4")
def test_a_content_range_that_is_read_makes_sense(header: str) -> None:
    """Whatever upstream writes: not empty, not reversed, inside of the total."""
    found = parse_content_range(header)
    if found is not None:
        span, total = found
        assert 0 <= span.start < span.end <= (total or span.end)
        written = span.content_range(total or span.end).rpartition("/")[0]
        assert int(written.split()[1].partition("-")[0]) == span.start
