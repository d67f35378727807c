"""When there are traces, and that there is nothing of them otherwise."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from mirrorproxy import tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test sets up, there are no traces after it; and what is set up has nothing to send."""
    monkeypatch.setattr(tracing, "_tracer", None)
    yield
    if tracing._tracer is not None:
        tracing._tracer.close()


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_environment_says(environ: dict[str, str], on: bool) -> None:
    """As the specification of OpenTelemetry has it; but without an address to send them to, there are none."""
    tracing.set_up(environ)
    assert tracing.is_on() is on


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_what_is_wanted_and_cannot_be_is_told(
    environ: dict[str, str], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And is no reason not to serve."""
    tracing.set_up(environ)
    assert not tracing.is_on()
    assert word in caplog.text


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracing.set_up(ENDPOINT)
    assert not tracing.is_on()
    assert "mirrorproxy[otel]" in caplog.text


async def test_without_traces_nothing_happens() -> None:
    """Spans, notes and headers are nothing, and errors pass."""
    with tracing.span("one", "SERVER", {"a": 1}, headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}):
        tracing.note({"b": None}, name="two", failed=True)
        assert tracing.trace_id() is None
        assert tracing.carried() == {}
    with pytest.raises(KeyError), tracing.span("three"):
        raise KeyError
    await tracing.aclose()


def test_nothing_is_imported() -> None:
    """A service without traces has none of OpenTelemetry in memory."""
    code = "import sys, mirrorproxy.service, mirrorproxy.cli; print([m for m in sys.modules if 'opentelemetry' in m])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "[]\n"
