"""Traces by OpenTelemetry, where `mirrorproxy[otel]` is installed and the environment says where they go.

Else nothing is imported, and a span costs a look at a variable. Spans follow the flow of the code, through tasks too:
what is begun within one is a part of it. The trace of a client goes on, and is passed on to the registry's own
endpoints (W3C Trace Context, `traceparent` and `tracestate`; baggage, which may hold anything, is not).
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

from mirrorproxy import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

Kind = Literal["SERVER", "CLIENT", "INTERNAL"]
Value = str | int | float | bool
"""What an attribute may be. One that is None is left out."""

_NOTHING = nullcontext()
_FAREWELL = 5.0  # seconds for the last spans


class _Tracer:
    """What is used of OpenTelemetry, imported when it is wanted."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._context = context
        self._provider = provider
        self._tracer = provider.get_tracer("mirrorproxy", __version__)
        self._headers = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self, name: str, kind: Kind, attributes: Mapping[str, Value | None], headers: Mapping[str, str] | None
    ) -> Iterator[None]:
        given = None if headers is None else {name.lower(): value for name, value in headers.items()}
        with self._tracer.start_as_current_span(
            name,
            None if given is None else self._headers.extract(given),
            self._trace.SpanKind[kind],
            {key: value for key, value in attributes.items() if value is not None},
            record_exception=False,  # its words and its stack are for the log
            set_status_on_exception=False,
        ):
            try:
                yield
            except Exception as error:
                self.note({"error.type": type(error).__name__}, failed=True)
                raise

    @contextmanager
    def going_on(self, headers: Mapping[str, str]) -> Iterator[None]:
        token = self._context.attach(self._headers.extract(headers))
        try:
            yield
        finally:
            self._context.detach(token)

    def note(self, attributes: Mapping[str, Value | None], name: str | None = None, *, failed: bool = False) -> None:
        span = self._trace.get_current_span()
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        if name is not None:
            span.update_name(name)
        if failed:
            span.set_status(self._trace.StatusCode.ERROR)

    def trace_id(self) -> str | None:
        context = self._trace.get_current_span().get_span_context()
        return self._trace.format_trace_id(context.trace_id) if context.is_valid else None

    def carried(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._headers.inject(carrier)
        return carrier

    def close(self) -> None:
        self._provider.force_flush(int(_FAREWELL * 1000))
        self._provider.shutdown()


_tracer: _Tracer | None = None


def set_up(environ: Mapping[str, str]) -> None:
    """Trace from now on, if `environ` (OTEL_*) says so; else, or where that cannot be, the log says why."""
    global _tracer  # noqa: PLW0603 - one for the process, as logging is
    if not _wanted(environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("the environment wants traces (OTEL_*), and OpenTelemetry is missing: install mirrorproxy[otel]")
        return
    own = {"service.version": __version__}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.name"] = "mirrorproxy"
    provider = TracerProvider(resource=Resource.create(own))  # sampler, limits and batches: OTEL_*, read by the package
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _Tracer(provider)
    log.info("traces are sent by OTLP over HTTP")


async def aclose() -> None:
    """Send the last spans, and trace no more."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        await asyncio.to_thread(tracer.close)


def is_on() -> bool:
    """Are there traces?"""
    return _tracer is not None


def span(
    name: str,
    kind: Kind = "INTERNAL",
    attributes: Mapping[str, Value | None] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> AbstractContextManager[None]:
    """A span, current within. `headers`: those of a request, whose trace goes on. Errors pass through it, noted."""
    return _NOTHING if _tracer is None else _tracer.span(name, kind, attributes or {}, headers)


def note(attributes: Mapping[str, Value | None], *, name: str | None = None, failed: bool = False) -> None:
    """Say more of the current span."""
    if _tracer is not None:
        _tracer.note(attributes, name, failed=failed)


def trace_id() -> str | None:
    """The trace that the current span is of, in hex; None where there is none."""
    return None if _tracer is None else _tracer.trace_id()


def carried() -> dict[str, str]:
    """Headers that have a server go on with the current trace."""
    return {} if _tracer is None else _tracer.carried()


def going_on(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Within, the trace is the one that these headers, `carried` from another process, tell of."""
    return _NOTHING if _tracer is None else _tracer.going_on(headers)


def _wanted(environ: Mapping[str, str]) -> bool:
    """Source: OpenTelemetry specification, "Environment Variable Specification"."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter not in ("", "otlp"):
        if exporter != "none":
            log.warning("OTEL_TRACES_EXPORTER may be otlp or none here; there are no traces")
        return False
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    if protocol not in ("", "http/protobuf"):
        log.warning("OTEL_EXPORTER_OTLP_PROTOCOL may be http/protobuf here; there are no traces")
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter == "otlp" or any(environ.get(name) for name in endpoints)
