"""The policy against others, on made-up months of pulls: the very code that the service runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.scale import under_eviction
from bench.traces import TRACES, compare


def check(trace: str, results: Iterator[tuple[float, dict[str, float]]]) -> None:
    """Better than the least recently used, above all under scans; no better than can be."""
    for share, ratios in results:
        assert ratios["LRU"] - 0.002 <= ratios["S3-FIFO"] <= ratios["bound"], (trace, share, ratios)
        assert ratios["Belady"] <= ratios["bound"]
        if share == 0.05 and trace != "CI bursts":
            assert ratios["S3-FIFO"] > ratios["LRU"] + 0.03, (trace, share, ratios)


@pytest.mark.parametrize("trace", TRACES)
def test_a_tenth_of_a_trace(trace: str) -> None:
    """A few thousand pulls."""
    check(trace, compare(trace, (0.05,), part=0.1))


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("trace", TRACES)
def test_a_whole_trace(trace: str, seed: int) -> None:
    """Tens of thousands of pulls, and several sizes of the cache."""
    check(trace, compare(trace, (0.02, 0.05, 0.1, 0.25), seed))


@pytest.mark.soak
def test_warm_hits_while_ten_thousand_pieces_are_evicted(tmp_path: Path) -> None:
    """The 99th of 100 takes no more than twice what it takes in quiet, and a tenth of a millisecond."""
    quiet, busy, _ = under_eviction(tmp_path / "cache", 10_000)
    assert busy <= 2 * quiet + 0.0001
