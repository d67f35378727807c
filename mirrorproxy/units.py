"""Sizes, durations, shares and rates, as people write them: `50GiB`, `1h30m`, `80%`, `50MB/s`.

Every `parse_*` raises ValueError with words that say what is accepted, every `format_*` writes the shortest exact form,
so that `parse(format(x)) == x`. Sizes are whole bytes, durations float seconds in steps of a millisecond.
"""

import re
import reprlib
from dataclasses import dataclass
from fractions import Fraction

# Binary and decimal prefixes by their IEC and SI names. `Gi` is what Kubernetes writes. A bare `G` is not here on
# purpose: it is 2**30 for docker and 10**9 for Kubernetes.
_BINARY = {"PiB": 2**50, "TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_DECIMAL = {"PB": 10**15, "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}
_BYTES_IN = (
    {name.lower(): size for name, size in (_BINARY | _DECIMAL).items()}
    | {name[:2].lower(): size for name, size in _BINARY.items()}
    | {"": 1, "b": 1}
)
_WRITTEN_SIZES = sorted((_BINARY | _DECIMAL).items(), key=lambda unit: -unit[1])

_MILLISECONDS_IN = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

_NUMBER = r"([0-9]{1,19}(?:\.[0-9]{1,9})?)"
_SIZE = re.compile(rf"{_NUMBER} ?([a-z]*)", re.IGNORECASE)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%")
_RATE = re.compile(r"(.*)/s")
_DURATION = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in _MILLISECONDS_IN))

_LARGEST_SIZE = 2**63 - 1  # what file systems and SQLite can count to
_LONGEST_DURATION = 36_500 * _MILLISECONDS_IN["d"]


class Size(int):
    """A number of bytes that writes itself as `50GiB`."""

    def resolve(self, total_bytes: int) -> int:  # noqa: ARG002 - the same question is asked of a Share
        """The bytes meant on a file system of `total_bytes`: these, whatever its size."""
        return int(self)

    def __str__(self) -> str:
        return format_size(self)

    def __repr__(self) -> str:
        return f"Size({int(self)})"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a file system, in percent from 0 to 100."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise ValueError(f"{self.percent} % is not a share; it lies between 0% and 100%")

    def resolve(self, total_bytes: int) -> int:
        """The bytes meant on a file system of `total_bytes`, rounded down to a byte."""
        return total_bytes * round(self.percent * 1000) // 100_000

    def __str__(self) -> str:
        return format_share(self)


def parse_size(text: str) -> Size:
    """Read `50GiB`, `4MB`, `512KiB`, `1.5GiB`, `50Gi` or a number of bytes; capitals do not matter.

    Raises ValueError, also where the result is no whole number of bytes or above 2**63 - 1.
    """
    return _read_size(text, "a size; write a number of bytes or 50GiB, 500MB")


def parse_space(text: str) -> Size | Share:
    """Read room on a disk: a size as in `parse_size`, or a share of the file system as in `parse_share`.

    Raises ValueError.
    """
    if text.endswith("%"):
        return parse_share(text)
    return _read_size(text, "a size; write a number of bytes or 50GiB, 500MB, 80%")


def format_size(size: int) -> str:
    """Write `size` bytes exactly, in the largest unit that leaves a whole number: `50GiB`, `4MB`, `1023`."""
    for name, unit in _WRITTEN_SIZES:
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{int(size):d}"


def parse_share(text: str) -> Share:
    """Read `80%` or `12.5%` (0 to 100, at most three decimals). Raises ValueError."""
    match = _SHARE.fullmatch(text)
    if not match or float(match[1]) > 100:
        raise ValueError(f"{reprlib.repr(text)} is not a share; write 80%, from 0% to 100%")
    return Share(float(match[1]))


def format_share(share: Share) -> str:
    """Write a share as `80%` or `12.5%`."""
    return f"{share.percent:g}%"


def parse_duration(text: str) -> float:
    """Read `500ms`, `30s`, `10m`, `1h30m`, `7d` or `0s` as seconds; larger units come first, each at most once.

    Raises ValueError, also for a number without a unit, anything finer than a millisecond and more than 36500 days.
    """
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        raise ValueError(f"{reprlib.repr(text)} is not a duration; write 500ms, 30s, 10m, 1h30m or 7d")
    parts = zip(match.groups(), _MILLISECONDS_IN.values(), strict=True)
    milliseconds = sum((Fraction(number) * unit for number, unit in parts if number), Fraction())
    if milliseconds > _LONGEST_DURATION:
        raise ValueError(f"{reprlib.repr(text)} is too long a duration; the longest is 36500d")
    if milliseconds % 1:
        raise ValueError(f"{reprlib.repr(text)} is too fine a duration; the finest is 1ms")
    return int(milliseconds) / 1000


def format_duration(seconds: float) -> str:
    """Write `seconds`, rounded to a millisecond, as `1h30m`, `500ms` or `0s`. Raises ValueError for negative ones."""
    rest = round(seconds * 1000)
    if rest < 0:
        raise ValueError(f"{seconds} s is not a duration")
    written = ""
    for name, unit in _MILLISECONDS_IN.items():
        count, rest = divmod(rest, unit)
        written += f"{count}{name}" if count else ""
    return written or "0s"


def parse_rate(text: str) -> Size:
    """Read `50MB/s` or `4MiB/s` as bytes per second. Raises ValueError, also without the `/s` and for bits."""
    accepted = "a rate; write bytes per second as 50MB/s or 4MiB/s"
    match = _RATE.fullmatch(text)
    if not match:
        raise ValueError(f"{reprlib.repr(text)} is not {accepted}")
    return _read_size(match[1].rstrip(" "), accepted, text)


def format_rate(bytes_per_second: int) -> str:
    """Write bytes per second exactly, as `50MB/s`."""
    return f"{format_size(bytes_per_second)}/s"


def _read_size(text: str, accepted: str, whole: str | None = None) -> Size:
    shown = reprlib.repr(whole or text)
    match = _SIZE.fullmatch(text)
    if not match or match[2].lower() not in _BYTES_IN:
        raise ValueError(f"{shown} is not {accepted}")
    size = Fraction(match[1]) * _BYTES_IN[match[2].lower()]
    if size > _LARGEST_SIZE:
        raise ValueError(f"{shown} is too large; the largest size is 8191PiB")
    if size % 1:
        raise ValueError(f"{shown} is not a whole number of bytes")
    return Size(size)
