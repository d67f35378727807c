"""What a service takes, sample by sample, and whether it grows."""

from dataclasses import dataclass, field
from statistics import median

from bench.memory import descriptors, pss, threads
from tests.soak.stock import MIB

PEAK = 150 * MIB
"""Bytes of all processes together."""
MORE_DESCRIPTORS, MORE_THREADS = 48, 2
"""In the last quarter than in the second: clients come and go."""


@dataclass
class Samples:
    """Of the process `pid` and all below it."""

    pid: int
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self) -> None:
        """One more of each."""
        self.memory.append(pss(self.pid))
        self.descriptors.append(descriptors(self.pid))
        self.threads.append(threads(self.pid))

    def check(self, more: int) -> None:
        """Memory is never more than it may be, and none of it grows: `more` bytes are none.

        The medians of the last quarter of the time are compared with those of the second: in the first comes what is
        used for the first time.
        """
        assert max(self.memory) <= PEAK, self
        assert growth(self.memory) <= more, self
        assert growth(self.descriptors) <= MORE_DESCRIPTORS, self
        assert growth(self.threads) <= MORE_THREADS, self

    def __str__(self) -> str:
        memory = [round(each / MIB, 1) for each in quarters(self.memory)]
        return (
            f"memory {memory} MiB, at most {max(self.memory) / MIB:.1f}; descriptors {quarters(self.descriptors)}, "
            f"at most {max(self.descriptors)}; threads {quarters(self.threads)}, at most {max(self.threads)}"
        )


def quarters(values: list[int]) -> list[float]:
    """The medians of the four quarters of a time."""
    length = len(values) // 4
    return [median(values[start : start + length]) for start in range(0, 4 * length, length)]


def growth(values: list[int]) -> float:
    """From the second quarter to the last."""
    _, second, _, last = quarters(values)
    return last - second
