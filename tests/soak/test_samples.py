"""What the soak calls growth."""

import os

import pytest

from tests.soak.samples import Samples
from tests.soak.stock import MIB


def samples(memory: list[int], descriptors: int = 0, threads: int = 0) -> Samples:
    """As many as `memory` has, with so many more descriptors and threads in each than in the one before."""
    count = range(len(memory))
    return Samples(0, memory, [60 + each * descriptors for each in count], [10 + each * threads for each in count])


def test_what_comes_at_first_is_no_growth() -> None:
    """Nor are peaks, up to the most that there may be."""
    samples([*range(0, 20 * MIB, MIB), *[20 * MIB] * 30, 149 * MIB, *[20 * MIB] * 29]).check(MIB)


@pytest.mark.parametrize(
    "grown",
    [
        samples([*[50 * MIB] * 60, 151 * MIB, *[50 * MIB] * 19]),
        samples([50 * MIB + each * MIB // 10 for each in range(80)]),
        samples([50 * MIB] * 80, descriptors=2),
        samples([50 * MIB] * 80, threads=1),
    ],
    ids=["a peak", "memory", "descriptors", "threads"],
)
def test_what_is_too_much(grown: Samples) -> None:
    """Is told with all that was seen."""
    with pytest.raises(AssertionError, match="MiB, at most"):
        grown.check(MIB)


def test_a_process_is_seen() -> None:
    """Its memory, its descriptors, its threads."""
    seen = Samples(os.getpid())
    seen.take()
    assert seen.memory[0] > 10 * MIB
    assert seen.descriptors[0] >= 3
    assert seen.threads[0] >= 1
