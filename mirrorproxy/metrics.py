"""All metrics of the program, as one object that is handed down. The names are a contract (docs/metrics.md)."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mirrorproxy import __version__
from mirrorproxy.registry import Kind, Result

# Seconds. Layers over slow links take minutes, manifests from memory well under a millisecond.
_DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800)
_FIRST_BYTES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROUND_TRIPS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_HOUR, _DAY = 3600, 86_400
_AGES = (60, 600, _HOUR, 6 * _HOUR, _DAY, 3 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY)
_CODES = ("0", "200", "206", "304", "401", "403", "404", "429", "500", "502", "503", "504")  # others when they come

LIMITS = ("requests", "readers", "fills", "connections")
"""What there may be so many of at a time: `Overloaded.limit`."""
_KNOWN_CODES = frozenset(status.value for status in HTTPStatus)


def code_label(status: int) -> str:
    """The label of what an upstream answered: it may send any number, and each would be a series of its own."""
    return str(status) if status in _KNOWN_CODES else "other"


class Metrics:
    """Counters, gauges and histograms, registered with a registry of their own.

    `registries` are the configured names: the label `registry` takes no other value, and each counter stands at 0 for
    each of them from the start, so that `increase()` sees the first event.
    """

    def __init__(self, registries: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the package's own omission
        self.collectors = CollectorRegistry()
        self.process = ProcessCollector(registry=self.collectors)
        PlatformCollector(registry=self.collectors)
        GCCollector(registry=self.collectors)
        by = ("registry", "kind", "result")
        self.requests = self._counter("cache_requests", "Requests for content, by what the cache did.", by)
        self.response_bytes = self._counter("response_bytes", "Body bytes sent to clients.", by)
        self.upstream_requests = self._counter(
            "upstream_requests", "Requests sent upstream; code 0 is no answer.", ("registry", "kind", "code")
        )
        self.upstream_bytes = self._counter(
            "upstream_received_bytes", "Body bytes received from upstream.", ("registry", "kind")
        )
        self.duration = Histogram(
            "mirrorproxy_http_request_duration_seconds",
            "From a request's head to its response's last byte.",
            ("method", "endpoint", "code"),
            buckets=_DURATIONS,
            registry=self.collectors,
        )
        self.first_byte = Histogram(
            "mirrorproxy_http_time_to_first_byte_seconds",
            "From a request's head to its response's first body byte.",
            ("kind", "result"),
            buckets=_FIRST_BYTES,
            registry=self.collectors,
        )
        self.worker_restarts = self._counter("worker_restarts", "Workers that died and were replaced.", ())
        self.pushes = self._counter("pushes_refused", "Requests that would change something; this is a cache.", ())
        self.round_trip = Histogram(
            "mirrorproxy_upstream_request_duration_seconds",
            "From a request upstream to the head of its answer, connecting included.",
            ("registry", "kind"),
            buckets=_ROUND_TRIPS,
            registry=self.collectors,
        )
        self.fills = Gauge("mirrorproxy_fills_inflight", "Downloads under way.", registry=self.collectors)
        self.readers = Gauge("mirrorproxy_fill_readers", "Clients that read from them.", registry=self.collectors)
        self.waiting = Gauge(
            "mirrorproxy_fills_waiting", "Downloads that wait for their turn.", registry=self.collectors
        )
        self.not_kept = self._counter("fills_not_kept", "Downloads that the disk did not take.", ("registry",))
        self.fill_failures = self._counter("fill_failures", "Downloads that ended without the whole.", ("registry",))
        self.resumes = self._counter("fill_resumes", "Downloads continued at the first missing byte.", ("registry",))
        self.fills_ahead = self._counter("fills_ahead", "Downloads begun before a client asked.", ("registry",))
        self.fills_abandoned = self._counter(
            "fills_abandoned", "Downloads given up since all clients had left.", ("registry",)
        )
        self.reconnects = self._counter(
            "fill_reconnects", "Connections of downloads that ended early.", ("registry", "reason")
        )
        self.connections = Gauge(
            "mirrorproxy_fill_connections", "Connections of downloads, by now.", ("registry",), registry=self.collectors
        )
        self.refused = self._counter("refused", "Requests answered with 503, as a limit was reached.", ("limit",))
        self.partials_dropped = self._counter("partials_dropped", "Parts of blobs thrown away.", ("reason",))
        self.evictions = self._counter("cache_evictions", "Objects removed from the cache.", ("reason",))
        self.evicted_bytes = self._counter("cache_evicted_bytes", "Bytes removed from the cache.", ("reason",))
        self.scrubbed = self._counter(
            "scrub_objects", "Objects that the scrub has read, by what it found.", ("result",)
        )
        self.scrubbed_bytes = self._counter("scrub_bytes", "Bytes that the scrub has read.", ())
        self.evicted_age = Histogram(
            "mirrorproxy_cache_evicted_age_seconds",
            "From the last use of what was removed for want of room, or by a rule, until then.",
            buckets=_AGES,
            registry=self.collectors,
        )
        self.mismatches = self._counter(
            "digest_mismatches", "Bytes that were not what their digest says.", ("registry",)
        )
        self.auth_failures = self._counter("auth_failures", "Requests refused for want of a right.", ("direction",))
        self.rate_limit = Gauge(
            "mirrorproxy_upstream_ratelimit_limit", "Pulls granted a window.", ("registry",), registry=self.collectors
        )
        self.rate_remaining = Gauge(
            "mirrorproxy_upstream_ratelimit_remaining", "Pulls left in it.", ("registry",), registry=self.collectors
        )
        self.upstream_up = Gauge(
            "mirrorproxy_upstream_up",
            "1 when its last answer was one.",
            ("registry", "endpoint"),
            registry=self.collectors,
        )
        self.last_success = Gauge(
            "mirrorproxy_upstream_last_success_timestamp_seconds",
            "When it last gave an answer.",
            ("registry", "endpoint"),
            registry=self.collectors,
        )
        Info("mirrorproxy_build", "What runs.", registry=self.collectors).info({"version": __version__})
        for reason in ("size", "age", "manual", "corrupt"):
            self.evictions.labels(reason)
            self.evicted_bytes.labels(reason)
        for result in ("right", "wrong", "unreadable", "refetched"):
            self.scrubbed.labels(result)
        for reason in ("size", "age", "count", "manual"):
            self.partials_dropped.labels(reason)
        for limit in LIMITS:
            self.refused.labels(limit)
        for direction in ("client", "upstream"):
            self.auth_failures.labels(direction)
        self.prepare(registries)
        self.of_clients: tuple[Counter | Histogram, ...] = (
            self.requests,
            self.response_bytes,
            self.duration,
            self.first_byte,
            self.pushes,
            self.refused,
            self.auth_failures,
        )
        """What moves where clients are answered, which may be in several processes."""
        # One child a label set, looked up once: labels() costs 1.2 us, the child's inc() 0.4 us.
        self.request = cache(self.requests.labels)
        self.sent = cache(self.response_bytes.labels)

    def prepare(self, registries: Iterable[str]) -> None:
        """Put every series of these registries at 0. Called again after a reload that added some."""
        for registry in registries:
            self.resumes.labels(registry)
            self.mismatches.labels(registry)
            self.not_kept.labels(registry)
            self.fill_failures.labels(registry)
            self.fills_ahead.labels(registry)
            self.fills_abandoned.labels(registry)
            self.connections.labels(registry)
            for reason in ("broken", "slow"):
                self.reconnects.labels(registry, reason)
            for kind in Kind:
                self.upstream_bytes.labels(registry, kind)
                for code in _CODES:
                    self.upstream_requests.labels(registry, kind, code)
                for result in Result:
                    self.requests.labels(registry, kind, result)
                    self.response_bytes.labels(registry, kind, result)

    def retain(self, endpoints: Mapping[str, Collection[str]]) -> None:
        """Show no gauge any more of registries and endpoints that are not these: an alert on one would never end."""
        for gauge in (self.upstream_up, self.last_success, self.rate_limit, self.rate_remaining):
            for family in list(gauge.collect()):
                for sample in family.samples:
                    registry, endpoint = sample.labels["registry"], sample.labels.get("endpoint")
                    if registry not in endpoints:
                        gauge.remove_by_labels({"registry": registry})
                    elif endpoint is not None and endpoint not in endpoints[registry]:
                        gauge.remove(registry, endpoint)

    def observe(self, name: str, documentation: str, read: Callable[[], float | None]) -> None:
        """Show a gauge that is read at each scrape; absent while `read` returns None.

        Raises `ValueError` where the name is taken: a series that is there twice breaks the whole scrape.
        """
        self.collectors.register(_Reading(f"mirrorproxy_{name}", documentation, read))

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"mirrorproxy_{name}_total", documentation, labels, registry=self.collectors)


class _Reading(Collector):
    def __init__(self, name: str, documentation: str, read: Callable[[], float | None]) -> None:
        self._name, self._documentation, self._read = name, documentation, read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._documentation)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        value = self._read()
        if value is not None:
            yield GaugeMetricFamily(self._name, self._documentation, value)
