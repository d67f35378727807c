"""The metrics of all processes as one set: each worker tells what it counted, the core adds it to its own.

prometheus_client's way for several processes keeps every value in files that all of them map, and knows neither
collectors of one's own nor `process_*`; it must also be chosen before the first import. Here a worker that is killed
takes with it what it counted in its last two seconds, and nothing that was told before goes back.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mirrorproxy.metrics import Metrics

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]

_CPU = "process_cpu_seconds_total"
_RESIDENT = "process_resident_memory_bytes"
_SUMS = frozenset({_RESIDENT, "process_virtual_memory_bytes"})
_FULLEST = "process_open_fds"  # the limit beside it is one process's
_INFLIGHT = "mirrorproxy_http_requests_inflight"


class Samples(NamedTuple):
    """What a worker tells: `counted` since it last told, and what `is` now; by the name and labels of the samples.

    `series`: what of `Metrics.of_clients` has counted for the first time, by its place there and its labels.
    """

    counted: dict[Key, float]
    now: dict[str, float]
    series: list[tuple[int, Labels]]


class Tally:
    """A worker's side. `take` may be called in any thread, one at a time."""

    def __init__(self, metrics: Metrics, inflight: Callable[[], int]) -> None:
        self._metrics = metrics
        self._inflight = inflight
        self._before: dict[Key, float] = {}

    def take(self) -> Samples:
        """What is to be told now."""
        counted: dict[Key, float] = {}
        series: dict[tuple[int, Labels], None] = {}
        for place, metric in enumerate(self._metrics.of_clients):
            for name, labels, value in _samples(metric):
                key = name, _labels(labels)
                before = self._before.get(key)
                if value == (before or 0.0):
                    continue
                self._before[key] = value
                counted[key] = value - (before or 0.0)
                if before is None:
                    series[place, tuple(pair for pair in key[1] if pair[0] != "le")] = None
        now = {_INFLIGHT: float(self._inflight())}
        for name, _, value in _samples(self._metrics.process):
            if name == _CPU:
                counted[_CPU, ()] = value - self._before.get((_CPU, ()), 0.0)
                self._before[_CPU, ()] = value
            elif name in _SUMS or name == _FULLEST:
                now[name] = value
        now |= resident()
        return Samples(counted, now, list(series))


def resident(pid: int | str = "self") -> dict[str, float]:
    """What a process has of memory: what it shares with others by its share (PSS), so that a sum has it once.

    Blocks, for 0.6 ms at 45 MiB and 1.8 at 115. Empty where the kernel does not tell: then all of it counts for each.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return {_RESIDENT: float(int(line.split()[1]) << 10)}
    return {}


class Totals(Collector):
    """The core's side: its own metrics and those that workers told, in the place of its own at a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: dict[Key, float] = {}
        self._now: dict[int, dict[str, float]] = {}
        self.of_template: dict[str, float] = {}
        """What `resident` says of the process that workers are copies of, which counts nothing itself."""

    def add(self, worker: int, samples: Samples) -> None:
        """Take in what this worker told."""
        for place, labels in samples.series:
            metric = self._metrics.of_clients[place]
            if labels:
                metric.labels(**dict(labels))  # which puts the series there, at 0
        for key, value in samples.counted.items():
            self._counted[key] = self._counted.get(key, 0.0) + value
        self._now[worker] = samples.now

    @property
    def requests(self) -> int:
        """How many requests workers were answering when they last told."""
        return int(sum(each.get(_INFLIGHT, 0.0) for each in self._now.values()))

    def left(self, worker: int) -> None:
        """It is gone: what it counted stays."""
        self._now.pop(worker, None)

    def replaced(self) -> None:
        """Another is in the place of one that died."""
        self._metrics.worker_restarts.inc()

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        counted, now = dict(self._counted), [*self._now.values(), self.of_template]
        mine = resident() if self._now else {}
        for family in self._metrics.collectors.collect():
            family.samples = [
                sample._replace(value=_total(sample.name, own, counted, _labels(sample.labels), now))
                for sample in family.samples
                for own in (mine.get(sample.name, sample.value),)
            ]
            yield family


def _total(name: str, own: float, counted: dict[Key, float], labels: Labels, now: list[dict[str, float]]) -> float:
    if name == _FULLEST:
        return max([own, *(each.get(name, 0.0) for each in now)])
    if name in _SUMS or name == _INFLIGHT:
        return own + sum(each.get(name, 0.0) for each in now)
    return own + counted.get((name, labels), 0.0)


def _samples(collector: Collector | Counter | Histogram) -> Iterator[tuple[str, dict[str, str], float]]:
    families: Iterable[Metric] = collector.collect()
    return ((sample.name, sample.labels, sample.value) for family in families for sample in family.samples)


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))
