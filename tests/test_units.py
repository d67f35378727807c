"""Sizes, durations, shares and rates are read as people write them, or refused with advice."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.units import (
    Share,
    Size,
    format_duration,
    format_rate,
    format_share,
    format_size,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_space,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("50GiB", 50 * 2**30),
        ("50 GiB", 50 * 2**30),
        ("50gib", 50 * 2**30),
        ("50Gi", 50 * 2**30),
        ("4MB", 4_000_000),
        ("4kB", 4000),
        ("4KB", 4000),
        ("512KiB", 512 * 1024),
        ("1.5GiB", 3 * 2**29),
        ("2TB", 2 * 10**12),
        ("1PiB", 2**50),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    """Binary and decimal units, in any capitals, with or without a fraction."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "-1", "+1", "50 gigs", "50G", "5e3", "1,5GiB", "0x10", "1_000", "٣", "50GiB ", "50  GiB", "nan"],
)
def test_what_is_no_size_is_refused_with_advice(text: str) -> None:
    """The message repeats what was written and says what can be. A bare G is 2**30 here, 10**9 there: so it is none."""
    with pytest.raises(ValueError, match=re.escape("write a number of bytes or 50GiB, 500MB")) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_a_size_is_a_whole_number_that_disks_can_have() -> None:
    """Half a byte and more than 2**63 - 1 bytes are refused, exactly at the limit."""
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        parse_size("0.5")
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        parse_size("8191.123456789PiB")
    with pytest.raises(ValueError, match="too large"):
        parse_size("9223372036854775808")
    with pytest.raises(ValueError, match="too large"):
        parse_size("8192PiB")


@given(st.integers(0, 2**63 - 1) | st.builds(int.__mul__, st.integers(0, 8191), st.sampled_from([2**30, 10**9, 2**50])))
def test_sizes_survive_being_written(size: int) -> None:
    """`parse(format(x)) == x` for every size, and for rates alike."""
    assert parse_size(format_size(size)) == size
    assert parse_rate(format_rate(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1023, "1023"), (2**30, "1GiB"), (4_000_000, "4MB"), (1_024_000, "1000KiB"), (1500, "1500")],
)
def test_a_size_is_written_in_the_largest_exact_unit(size: int, text: str) -> None:
    """Nothing is rounded: what does not fit a unit is written in the next smaller one."""
    assert format_size(size) == str(Size(size)) == f"{Size(size)}" == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("7d", 604_800.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("1.5h", 5400.0),
        ("90m", 5400.0),
        ("36500d", 36_500 * 86_400.0),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    """Units from days to milliseconds, the larger before the smaller, in seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "30", "-5s", "5 s", "30m1h", "1m1m", "5min", "1h ", "1e3s", "inf", "PT5M", "1:30", "5S", "٣s"]
)
def test_what_is_no_duration_is_refused_with_advice(text: str) -> None:
    """A number without a unit is refused too: nobody knows whether it is seconds or minutes."""
    with pytest.raises(ValueError, match="write 500ms, 30s, 10m, 1h30m or 7d") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_duration_has_limits() -> None:
    """Timers need no parts of a millisecond, and no centuries."""
    with pytest.raises(ValueError, match="the finest is 1ms"):
        parse_duration("0.0001s")
    with pytest.raises(ValueError, match="the longest is 36500d"):
        parse_duration("36500d1ms")
    with pytest.raises(ValueError, match="is not a duration"):
        format_duration(-1)


@given(st.integers(0, 36_500 * 86_400_000))
def test_durations_survive_being_written(milliseconds: int) -> None:
    """`parse(format(x)) == x` for every millisecond of a century."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (300, "5m"), (5400, "1h30m"), (0.5, "500ms"), (604_800, "7d"), (0.0004, "0s")]
)
def test_a_duration_is_written_short(seconds: float, text: str) -> None:
    """Only the units that are needed."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "percent"), [("80%", 80.0), ("0%", 0.0), ("100%", 100.0), ("12.5%", 12.5), ("80 %", 80.0)]
)
def test_a_share_is_read(text: str, percent: float) -> None:
    """Percent of a file system."""
    assert parse_share(text) == Share(percent)


@pytest.mark.parametrize("text", ["", "%", "80", "101%", "100.001%", "-1%", "1e1%", "80%%", "80percent"])
def test_what_is_no_share_is_refused_with_advice(text: str) -> None:
    """More than all there is, is no share."""
    with pytest.raises(ValueError, match="write 80%, from 0% to 100%"):
        parse_share(text)


@given(st.integers(0, 100_000))
def test_shares_survive_being_written(thousandths: int) -> None:
    """`parse(format(x)) == x` for every thousandth of a percent."""
    share = Share(thousandths / 1000)
    assert parse_share(format_share(share)) == share == parse_space(str(share))


@given(st.integers(0, 2**63 - 1), st.integers(0, 100_000))
def test_a_share_comes_to_bytes(total: int, thousandths: int) -> None:
    """Exactly, rounded down, also where floats have no more digits; a size comes to itself."""
    assert Share(thousandths / 1000).resolve(total) == total * thousandths // 100_000
    assert Size(total).resolve(thousandths) == total


def test_a_share_outside_its_limits_cannot_be_made() -> None:
    """Not by a program either."""
    with pytest.raises(ValueError, match="between 0% and 100%"):
        Share(100.5)


def test_space_is_a_size_or_a_share() -> None:
    """And the advice says so."""
    assert parse_space("5GiB") == Size(5 * 2**30)
    assert parse_space("20%") == Share(20)
    with pytest.raises(ValueError, match="'50 gigs' is not a size; write a number of bytes or 50GiB, 500MB, 80%"):
        parse_space("50 gigs")


@pytest.mark.parametrize(
    ("text", "rate"), [("50MB/s", 50_000_000), ("4MiB/s", 2**22), ("100/s", 100), ("4 MB /s", 4_000_000)]
)
def test_a_rate_is_read(text: str, rate: int) -> None:
    """Bytes per second."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "/s", "50MB", "50Mbit/s", "50MB/m", "50MBps"])
def test_what_is_no_rate_is_refused_with_advice(text: str) -> None:
    """Bits per second too, which are told from bytes by one capital."""
    with pytest.raises(ValueError, match=r"write bytes per second as 50MB/s or 4MiB/s") as caught:
        parse_rate(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    """Whatever is written, it is read or refused with a ValueError of one short line."""
    for parse in (parse_size, parse_space, parse_share, parse_duration, parse_rate):
        message = ""
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 200
