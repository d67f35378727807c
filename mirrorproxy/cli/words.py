"""Sizes and times for people: short, not exact."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def size(count: int | None) -> str:
    """`1.4 GB`; decimal, as Docker writes sizes of images."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.0f} PB"


def span(seconds: float) -> str:
    """`3 h`: the largest unit of which there are two."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def ago(moment: str | None) -> str:
    """`3 h ago` for a time as RFC 3339 writes it; `-` for what is not known."""
    return "-" if moment is None else f"{span(-_from_now(moment))} ago"


def until(moment: str | None) -> str:
    """`4 min` for a time to come, `expired` for one that is over, `-` for what is not known."""
    if moment is None:
        return "-"
    left = _from_now(moment)
    return span(left) if left > 0 else "expired"


def pinned(image: Mapping[str, Any]) -> str:
    """`pinned`, with the platforms that alone must stay of it: `pinned (linux/arm64)`."""
    platforms = ", ".join(image["pinned_for"])
    return f"pinned ({platforms})" if platforms else "pinned"


def count(number: int, of: str) -> str:
    """`1 piece`, `1,234 pieces`."""
    return f"{number:,} {of if number == 1 else f'{of}s'}"


def _from_now(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
