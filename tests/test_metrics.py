"""The names, labels and zeros that dashboards and alerts rely on."""

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mirrorproxy import __version__
from mirrorproxy.metrics import Metrics
from mirrorproxy.registry import Kind, Result

REGISTRIES = ("docker.io", "ghcr.io")
KINDS = {"blob", "manifest", "tags", "referrers"}
RESULTS = {"hit", "miss", "coalesced", "revalidated", "stale", "negative", "bypass", "error"}
REASONS = {"size", "age", "manual", "corrupt"}

# Family (as the text format names it, a counter without its `_total`): type and labels.
CONTRACT: dict[str, tuple[str, set[str]]] = {
    "mirrorproxy_cache_requests": ("counter", {"registry", "kind", "result"}),
    "mirrorproxy_response_bytes": ("counter", {"registry", "kind", "result"}),
    "mirrorproxy_upstream_requests": ("counter", {"registry", "kind", "code"}),
    "mirrorproxy_upstream_received_bytes": ("counter", {"registry", "kind"}),
    "mirrorproxy_http_request_duration_seconds": ("histogram", {"method", "endpoint", "code"}),
    "mirrorproxy_http_time_to_first_byte_seconds": ("histogram", {"kind", "result"}),
    "mirrorproxy_fills_inflight": ("gauge", set()),
    "mirrorproxy_fill_readers": ("gauge", set()),
    "mirrorproxy_fill_resumes": ("counter", {"registry"}),
    "mirrorproxy_cache_size_bytes": ("gauge", set()),
    "mirrorproxy_cache_limit_bytes": ("gauge", set()),
    "mirrorproxy_cache_objects": ("gauge", set()),
    "mirrorproxy_filesystem_free_bytes": ("gauge", set()),
    "mirrorproxy_cache_evictions": ("counter", {"reason"}),
    "mirrorproxy_cache_evicted_bytes": ("counter", {"reason"}),
    "mirrorproxy_cache_evicted_age_seconds": ("histogram", set()),
    "mirrorproxy_digest_mismatches": ("counter", {"registry"}),
    "mirrorproxy_auth_failures": ("counter", {"direction"}),
    "mirrorproxy_upstream_ratelimit_remaining": ("gauge", {"registry"}),
    "mirrorproxy_upstream_ratelimit_limit": ("gauge", {"registry"}),
    "mirrorproxy_upstream_up": ("gauge", {"registry", "endpoint"}),
    "mirrorproxy_build_info": ("gauge", {"version"}),
}
# What was added to the names above, and is as fixed from then on.
ADDED: dict[str, tuple[str, set[str]]] = {
    "mirrorproxy_fill_connections": ("gauge", {"registry"}),
    "mirrorproxy_fill_reconnects": ("counter", {"registry", "reason"}),
    "mirrorproxy_fills_abandoned": ("counter", {"registry"}),
    "mirrorproxy_fills_not_kept": ("counter", {"registry"}),
    "mirrorproxy_fills_ahead": ("counter", {"registry"}),
    "mirrorproxy_partials_dropped": ("counter", {"reason"}),
    "mirrorproxy_refused": ("counter", {"limit"}),
    "mirrorproxy_scrub_bytes": ("counter", set()),
    "mirrorproxy_scrub_objects": ("counter", {"result"}),
    "mirrorproxy_scrub_last_completed_timestamp_seconds": ("gauge", set()),
    "mirrorproxy_pushes_refused": ("counter", set()),
    "mirrorproxy_worker_restarts": ("counter", set()),
    "mirrorproxy_upstream_request_duration_seconds": ("histogram", {"registry", "kind"}),
    "mirrorproxy_upstream_last_success_timestamp_seconds": ("gauge", {"registry", "endpoint"}),
    "mirrorproxy_fills_waiting": ("gauge", set()),
    "mirrorproxy_fill_failures": ("counter", {"registry"}),
    "mirrorproxy_filesystem_size_bytes": ("gauge", set()),
    "mirrorproxy_http_requests_inflight": ("gauge", set()),
    "mirrorproxy_tls_certificate_expiry_timestamp_seconds": ("gauge", set()),
}
GAUGES_OF_THE_SERVICE = (
    *("cache_size_bytes", "cache_limit_bytes", "cache_objects", "filesystem_free_bytes", "filesystem_size_bytes"),
    *("http_requests_inflight", "tls_certificate_expiry_timestamp_seconds", "scrub_last_completed_timestamp_seconds"),
)
PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
STANDARD = ("process_", "python_")


def scrape(metrics: Metrics) -> dict[str, Metric]:
    """Our families as a scraper sees them, by name."""
    text = generate_latest(metrics.collectors).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families if not family.name.startswith(STANDARD)}


def series(metrics: Metrics, family: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The value of each series of a family, by its labels' values."""
    samples = scrape(metrics)[family].samples
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in samples}


def eventful() -> Metrics:
    """Metrics of a service in which everything happened once."""
    metrics = Metrics(REGISTRIES)
    for name in GAUGES_OF_THE_SERVICE:
        metrics.observe(name, "What the service knows.", lambda: 5.0)
    metrics.request("docker.io", Kind.BLOB, Result.HIT).inc()
    metrics.sent("docker.io", Kind.BLOB, Result.HIT).inc(4096)
    metrics.upstream_requests.labels("ghcr.io", Kind.TAGS, "503").inc()
    metrics.upstream_bytes.labels("ghcr.io", Kind.TAGS).inc(10)
    metrics.duration.labels("GET", "blob", "200").observe(0.2)
    metrics.first_byte.labels(Kind.BLOB, Result.HIT).observe(0.002)
    metrics.rate_limit.labels("docker.io").set(100)
    metrics.rate_remaining.labels("docker.io").set(76)
    metrics.upstream_up.labels("docker.io", "registry-1.docker.io").set(1)
    metrics.last_success.labels("docker.io", "registry-1.docker.io").set_to_current_time()
    metrics.round_trip.labels("docker.io", Kind.BLOB).observe(0.2)
    return metrics


def test_names_types_and_labels_are_the_contract() -> None:
    """All of it and nothing else, in a service where everything happened."""
    families = scrape(eventful())
    promised = CONTRACT | ADDED
    assert {name: family.type for name, family in families.items()} == {
        name: kind for name, (kind, _) in promised.items()
    }
    for name, family in families.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == promised[name][1], sample
        assert family.documentation.endswith(".")


def test_the_page_has_each_metric_with_its_labels() -> None:
    """And no other."""
    told: dict[str, set[str]] = {}
    for line in PAGE.read_text().splitlines():
        if match := re.fullmatch(r"\| (`mirrorproxy_[^|]*) \|([^|]*)\| (.+) \|", line):
            labels = {label.strip() for label in match[2].split(",")} - {""}
            told |= dict.fromkeys(re.findall(r"`(mirrorproxy_[a-z_]+)`", match[1]), labels)
    assert told == {
        f"{name}_total" if kind == "counter" else name: labels for name, (kind, labels) in (CONTRACT | ADDED).items()
    }


def test_what_is_not_configured_any_more_is_not_shown() -> None:
    """An alert on an upstream that was taken away would never end; counters stay, as they must."""
    metrics = eventful()
    metrics.upstream_up.labels("docker.io", "site-cache:5000").set(0)
    metrics.upstream_up.labels("quay.io", "quay.io").set(0)
    metrics.rate_limit.labels("quay.io").set(1)
    metrics.retain({"docker.io": ["registry-1.docker.io"], "ghcr.io": ["ghcr.io"]})
    assert set(series(metrics, "mirrorproxy_upstream_up", "registry", "endpoint")) == {
        ("docker.io", "registry-1.docker.io")
    }
    assert set(series(metrics, "mirrorproxy_upstream_ratelimit_limit", "registry")) == {("docker.io",)}
    metrics.retain({"ghcr.io": ["ghcr.io"]})
    for name in ("up", "last_success_timestamp_seconds", "ratelimit_limit", "ratelimit_remaining"):
        assert scrape(metrics)[f"mirrorproxy_upstream_{name}"].samples == []
    assert series(metrics, "mirrorproxy_cache_requests", "registry", "kind", "result")["docker.io", "blob", "hit"] == 1


def test_promtool_finds_nothing_to_complain_about() -> None:
    """Prometheus's own check, of names, units, help texts and the format."""
    text = generate_latest(eventful().collectors)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_promtool_is_heard_when_it_complains() -> None:
    """The check above can fail."""
    metrics = eventful()
    metrics.observe("age_minutes_total", "A gauge that is named as a counter, in no base unit.", lambda: 1.0)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.collectors), capture_output=True, timeout=60
    )
    assert checked.returncode != 0
    assert b"mirrorproxy_age_minutes_total" in checked.stdout + checked.stderr


@pytest.mark.parametrize("family", ["mirrorproxy_cache_requests", "mirrorproxy_response_bytes"])
def test_what_clients_get_is_zero_from_the_start(family: str) -> None:
    """Each registry, kind and result, so that `increase()` sees the first event; and no other."""
    assert series(Metrics(REGISTRIES), family, "registry", "kind", "result") == {
        (registry, kind, result): 0.0 for registry in REGISTRIES for kind in KINDS for result in RESULTS
    }


def test_what_comes_from_upstream_is_zero_from_the_start() -> None:
    """The codes that registries send; others come when they come."""
    metrics = Metrics(REGISTRIES)
    every = [(registry, kind) for registry in REGISTRIES for kind in KINDS]
    received = series(metrics, "mirrorproxy_upstream_received_bytes", "registry", "kind")
    assert received == dict.fromkeys(every, 0.0)
    asked = series(metrics, "mirrorproxy_upstream_requests", "registry", "kind", "code")
    codes = ("0", "200", "206", "304", "401", "403", "404", "429", "500", "502", "503", "504")
    assert asked == {(*pair, code): 0.0 for pair in every for code in codes}


@pytest.mark.parametrize(
    ("family", "label", "values"),
    [
        ("mirrorproxy_fill_resumes", "registry", set(REGISTRIES)),
        ("mirrorproxy_digest_mismatches", "registry", set(REGISTRIES)),
        ("mirrorproxy_fills_ahead", "registry", set(REGISTRIES)),
        ("mirrorproxy_fills_abandoned", "registry", set(REGISTRIES)),
        ("mirrorproxy_fills_not_kept", "registry", set(REGISTRIES)),
        ("mirrorproxy_partials_dropped", "reason", {"size", "age", "count", "manual"}),
        ("mirrorproxy_scrub_objects", "result", {"right", "wrong", "unreadable", "refetched"}),
        ("mirrorproxy_cache_evictions", "reason", REASONS),
        ("mirrorproxy_cache_evicted_bytes", "reason", REASONS),
        ("mirrorproxy_auth_failures", "direction", {"client", "upstream"}),
    ],
)
def test_the_other_counters_are_zero_from_the_start(family: str, label: str, values: set[str]) -> None:
    """One series for each value that the label can have."""
    assert series(Metrics(REGISTRIES), family, label) == {(value,): 0.0 for value in values}


def test_reconnects_are_zero_from_the_start() -> None:
    """By registry and by reason."""
    found = series(Metrics(REGISTRIES), "mirrorproxy_fill_reconnects", "registry", "reason")
    assert found == {(registry, reason): 0.0 for registry in REGISTRIES for reason in ("broken", "slow")}


def test_gauges_are_known_or_absent() -> None:
    """What was never measured has no series; what can be counted from the start has."""
    families = scrape(Metrics(REGISTRIES))
    for name in ("upstream_ratelimit_remaining", "upstream_ratelimit_limit", "upstream_up"):
        assert families[f"mirrorproxy_{name}"].samples == []
    for name in ("http_request_duration_seconds", "http_time_to_first_byte_seconds"):
        assert families[f"mirrorproxy_{name}"].samples == []
    for name in ("fills_inflight", "fill_readers"):
        assert [sample.value for sample in families[f"mirrorproxy_{name}"].samples] == [0.0]
    assert [sample.value for sample in families["mirrorproxy_fill_connections"].samples] == [0.0] * len(REGISTRIES)
    assert not {f"mirrorproxy_{name}" for name in GAUGES_OF_THE_SERVICE} & set(families)


def test_an_observed_gauge_is_read_at_each_scrape() -> None:
    """Absent while nobody knows; 0 is a value."""
    metrics, value = Metrics(REGISTRIES), list[float | None]()
    metrics.observe("cache_size_bytes", "Bytes of cached content.", lambda: value[-1])
    for known in (None, 0.0, 7.0, None):
        value.append(known)
        found = scrape(metrics).get("mirrorproxy_cache_size_bytes")
        assert [sample.value for sample in found.samples] == [known] if found else known is None


@pytest.mark.parametrize("name", ["cache_size_bytes", "fills_inflight"])
def test_a_name_is_given_once(name: str) -> None:
    """A family that is there twice would make Prometheus refuse the whole scrape."""
    metrics = Metrics(REGISTRIES)
    metrics.observe("cache_size_bytes", "Bytes of cached content.", lambda: None)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.observe(name, "Once more.", lambda: 1.0)


def test_a_reload_adds_registries_and_keeps_counts() -> None:
    """New ones begin at 0; the old ones are not set back."""
    metrics = Metrics(["docker.io"])
    metrics.request("docker.io", Kind.BLOB, Result.HIT).inc(3)
    metrics.prepare(["docker.io", "quay.io"])
    found = series(metrics, "mirrorproxy_cache_requests", "registry", "kind", "result")
    assert found.pop(("docker.io", "blob", "hit")) == 3.0
    assert set(found.values()) == {0.0}
    assert {registry for registry, _, _ in found} == {"docker.io", "quay.io"}


def test_the_quick_way_to_a_child_is_the_child() -> None:
    """`request` and `sent` look a label set up once, by its words as well as by its members."""
    metrics = Metrics(REGISTRIES)
    child = metrics.request("docker.io", Kind.BLOB, Result.HIT)
    assert metrics.request("docker.io", "blob", "hit") is child
    assert child is metrics.requests.labels("docker.io", "blob", "hit")
    assert metrics.sent("docker.io", Kind.BLOB, Result.HIT) is metrics.response_bytes.labels("docker.io", "blob", "hit")


def test_labels_have_no_room_for_more() -> None:
    """A repository, a tag, a digest or an address cannot slip in as one label more."""
    metrics = Metrics(REGISTRIES)
    with pytest.raises(ValueError, match="label"):
        metrics.requests.labels("docker.io", "blob", "hit", "library/alpine")
    with pytest.raises(ValueError, match="label"):
        metrics.requests.labels(registry="docker.io", kind="blob", repository="library/alpine")
    assert {str(kind) for kind in Kind} == KINDS
    assert {str(result) for result in Result} == RESULTS


def test_two_services_in_one_process_count_apart() -> None:
    """Nothing is registered globally."""
    one, other = Metrics(REGISTRIES), Metrics(REGISTRIES)
    one.resumes.labels("docker.io").inc()
    assert series(other, "mirrorproxy_fill_resumes", "registry")[("docker.io",)] == 0.0


def test_the_build_and_the_process_are_shown() -> None:
    """Version, memory, descriptors, collections; and no `_created` series, which doubles the number of all."""
    metrics = Metrics(REGISTRIES)
    assert series(metrics, "mirrorproxy_build_info", "version") == {(__version__,): 1.0}
    text = generate_latest(metrics.collectors).decode()
    for name in ("process_resident_memory_bytes", "process_open_fds", "python_gc_collections_total", "python_info"):
        assert f"\n{name}" in text
    assert "_created" not in text


def test_the_buckets_reach_from_memory_to_slow_links() -> None:
    """A manifest from memory takes under a millisecond, a layer over a slow link minutes."""
    metrics = Metrics(REGISTRIES)
    for seconds in (0.0005, 1500):
        metrics.duration.labels("GET", "blob", "200").observe(seconds)
    samples = scrape(metrics)["mirrorproxy_http_request_duration_seconds"].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["600.0"], buckets["1800.0"], buckets["+Inf"]) == (1.0, 1.0, 2.0, 2.0)
