"""What several processes count is one set of metrics."""

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from mirrorproxy.metrics import Metrics
from mirrorproxy.registry import Kind, Result
from mirrorproxy.workers.totals import Tally, Totals

WORKERS = 3
REGISTRIES = ["docker.io", "ghcr.io"]
_SERIES = st.tuples(st.sampled_from(REGISTRIES), st.sampled_from(list(Kind)), st.sampled_from(list(Result)))
_KINDS = st.sampled_from(["count", "observe", "tell", "die"])
_STEPS = st.lists(st.tuples(st.integers(0, WORKERS - 1), _KINDS, _SERIES, st.floats(0.001, 100)), max_size=60)


def samples(totals: Totals) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything there is, but for what belongs to this process."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in totals.collect()
        for sample in family.samples
        if sample.name.startswith("mirrorproxy_")
    }


@settings(max_examples=60, deadline=None)
@given(_STEPS)
def test_all_that_was_told_is_counted_once(
    steps: list[tuple[int, str, tuple[str, Kind, Result], float]],
) -> None:
    """Whatever workers count, tell and when they die: the sum is that of one process which counted what was told, no
    counter ever goes back, and every series of a histogram is whole.
    """
    totals, expected = Totals(Metrics(REGISTRIES)), Metrics(REGISTRIES)
    mine = [Metrics(REGISTRIES) for _ in range(WORKERS)]
    tallies = [Tally(each, lambda: 2) for each in mine]
    untold: list[list[tuple[str, tuple[str, Kind, Result], float]]] = [[] for _ in range(WORKERS)]
    before = samples(totals)
    for worker, step, series, value in steps:
        if step == "count":
            mine[worker].request(*series).inc(value)
            untold[worker].append((step, series, value))
        elif step == "observe":
            mine[worker].first_byte.labels(series[1], series[2]).observe(value)
            untold[worker].append((step, series, value))
        elif step == "tell":
            totals.add(worker, tallies[worker].take())
            for told, (registry, kind, result), amount in untold[worker]:
                if told == "count":
                    expected.request(registry, kind, result).inc(amount)
                else:
                    expected.first_byte.labels(kind, result).observe(amount)
            untold[worker] = []
        else:
            totals.left(worker)
            mine[worker] = Metrics(REGISTRIES)
            tallies[worker] = Tally(mine[worker], lambda: 2)
            untold[worker] = []
        now = samples(totals)
        assert all(now[key] >= value for key, value in before.items() if not key[0].endswith("_inflight"))
        before = now
    wanted = samples(Totals(expected))
    found = {key: value for key, value in before.items() if key[0] != "mirrorproxy_http_requests_inflight"}
    assert found.keys() == wanted.keys()
    assert all(abs(found[key] - wanted[key]) < 1e-6 for key in wanted)
    assert generate_latest(totals)


def test_what_is_now_is_summed_over_those_that_live() -> None:
    """Requests under way and memory are sums; descriptors are those of the process that has most of them."""
    core = Metrics(["docker.io"])
    core.observe("http_requests_inflight", "Requests.", lambda: 1)
    totals = Totals(core)
    tallies = [Tally(Metrics(["docker.io"]), lambda: 5) for _ in range(2)]
    alone = _process(totals)
    for worker, tally in enumerate(tallies):
        totals.add(worker, tally.take())
    both = _process(totals)
    assert both["mirrorproxy_http_requests_inflight"] == 11
    assert totals.requests == 10
    assert both["process_resident_memory_bytes"] > 2 * alone["process_resident_memory_bytes"]
    assert both["process_open_fds"] < 2 * alone["process_open_fds"]
    assert both["process_cpu_seconds_total"] > 2.5 * alone["process_cpu_seconds_total"]
    assert both["process_start_time_seconds"] == alone["process_start_time_seconds"]
    totals.left(0)
    one = _process(totals)
    assert one["mirrorproxy_http_requests_inflight"] == 6
    assert one["process_cpu_seconds_total"] >= both["process_cpu_seconds_total"]


def _process(totals: Totals) -> dict[str, float]:
    return {sample.name: sample.value for family in totals.collect() for sample in family.samples if not sample.labels}
