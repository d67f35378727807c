"""Which bytes to ask for next: pure arithmetic over what is here, what is on its way, and what readers wait for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mirrorproxy.spans import Span, Spans

_LEAST_PART = 512 << 10  # bytes


@dataclass(slots=True, eq=False)
class Claim:
    """The bytes from `at` up to `end` are on their way, at `rate` bytes a second (0: not known yet)."""

    at: int
    end: int
    rate: float = 0.0

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self.end - self.at

    @property
    def seconds(self) -> float:
        """How long they will take."""
        return self.left / self.rate if self.rate else float("inf")


C = TypeVar("C", bound=Claim)


def next_span(spans: Spans, claims: Iterable[Claim], wanted: Iterable[int], total: int, length: int) -> Span | None:
    """The part to fetch next, of at most `length` bytes; None where every byte is here or on its way.

    First what a reader waits for that is not even on its way, the foremost first; then what follows the foremost
    reader's bytes; then what is left anywhere. A part ends where another reader waits, who may get its own connection:
    one that is cut short then has sent some of the next part for nothing.
    """
    taken = Spans(spans)
    for claim in claims:
        taken.add(claim.at, max(claim.at, claim.end))
    positions = sorted(position for position in wanted if position < total)
    starving = [position for position in positions if taken.end_of(position) == position]
    for position in (*starving[:1], *positions[:1], 0):
        for gap in taken.gaps(total, position):
            others = (other for other in positions if other >= gap.start + _LEAST_PART)
            return Span(gap.start, min(gap.end, gap.start + length, next(others, total)))
    return None


def steal(claims: Sequence[Claim], least: float) -> tuple[Claim, Span] | None:
    """The second half of what the slowest claim has left, where that takes it `least` seconds or more.

    Below that a request comes too late, and what the victim's connection has under way already is sent for nothing.
    The claim is the caller's to shorten.
    """
    victim = max(claims, key=lambda claim: (claim.seconds, claim.left), default=None)
    if victim is None or victim.seconds < 2 * least or victim.left < 2:
        return None
    return victim, Span(victim.at + victim.left // 2, victim.end)


def superfluous(spans: Spans, claims: Iterable[C], wanted: Iterable[int]) -> C:
    """The claim to give up where there is one too many: the farthest of those for whose bytes no reader waits."""
    heads = {spans.end_of(position) for position in wanted}
    return max(claims, key=lambda claim: (not any(claim.at <= head < claim.end for head in heads), claim.at))


def starving(spans: Spans, claims: Iterable[Claim], wanted: Iterable[int], total: int, soon: float) -> int | None:
    """The foremost place where a reader waits for bytes that will not come within `soon` seconds, as things are."""
    claims = list(claims)
    for position in sorted(wanted):
        if position < total and spans.end_of(position) == position:
            on_their_way = [claim for claim in claims if claim.at <= position < claim.end]
            if not any(position - claim.at <= claim.rate * soon for claim in on_their_way):
                return position
    return None
