"""Traces of a real service, at a receiver as a collector is: what belongs together, and what is never told."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("e2e traces")]

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1", "baggage": "user=somebody"}


class Receiver:
    """What a collector would have got."""

    def __init__(self) -> None:
        self.resource: dict[str, str] = {}
        self.spans: list[Span] = []
        self.bytes = b""

    async def handle(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        data = await request.read()
        self.bytes += data
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.resource = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> list[Span]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]


def said(span: Span) -> dict[str, Any]:
    """A span's attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in span.attributes}


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str]]:
    """A receiver and its URL."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield receiver, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_pull_is_one_trace(hub: Hub, tmp_path: Path) -> None:
    """The client's: its request, the download that it began, what was asked upstream; passed on to the registry alone.

    No signed URL, token or baggage is told or passed on.
    """
    image = hub.add_image("team/traced", "1", os.urandom(200_000))
    layer = image.layers[0].digest
    hub.script.next("cdn", Quirk(cut=100_000))
    async with receiving() as (receiver, url):
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        async with Proxy(tmp_path, settings({"docker.io": upstream(hub)}), environ=environ) as proxy:
            await proxy.ask("/v2/team/traced/manifests/1", headers=HEADERS)
            cold = await proxy.ask(f"/v2/team/traced/blobs/{layer}", headers=HEADERS)
            await proxy.idle()
            warm = await proxy.ask(f"/v2/team/traced/blobs/{layer}", headers=HEADERS)
            assert len(cold.body) == len(warm.body) == 200_000
            await proxy.ask("/metrics", headers=HEADERS)
            await until(lambda: len(receiver.named("GET blob")) >= 4 and bool(receiver.named("fill")))
            line = await proxy.logged(warm.headers["X-Request-ID"])
            assert line["trace_id"] == TRACE
        assert receiver.resource["service.name"] == "mirrorproxy"
        assert receiver.resource["deployment.environment.name"] == "test"
        assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
        by_id = {span.span_id: span for span in receiver.spans}
        servers = [span for span in receiver.spans if span.kind == Span.SPAN_KIND_SERVER]
        assert sorted(span.name for span in servers) == ["GET blob", "GET blob", "GET manifest"]
        assert {span.parent_span_id.hex() for span in servers} == {CALLER}
        (fill,) = receiver.named("fill")
        assert by_id[fill.parent_span_id].name == "GET blob"
        assert said(fill)["mirrorproxy.digest"] == layer
        parts = [span for span in receiver.spans if span.parent_span_id == fill.span_id]
        redirected = next(span for span in parts if span.name == "GET blob")
        assert said(redirected)["http.response.status_code"] in (302, 307)
        hit = max(servers, key=lambda span: span.start_time_unix_nano)
        assert said(hit)["mirrorproxy.cache"] == "hit"
        assert said(hit)["mirrorproxy.repository"] == "team/traced"
        for secret in hub.secrets() | {"somebody", "Signature"}:
            assert secret.encode() not in receiver.bytes
    for seen in hub.log:
        passed = seen.headers.get("traceparent")
        assert (passed is not None) is (seen.kind in ("manifest", "blob")), seen
        assert passed is None or passed.split("-")[1] == TRACE
        assert "baggage" not in seen.headers


async def test_no_collector_is_no_trouble(hub: Hub, tmp_path: Path) -> None:
    """Content is served, and the end does not wait for long."""
    hub.log.clear()
    image = hub.add_image("team/untraced", "1", b"layer")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.9:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with Proxy(tmp_path, settings({"docker.io": upstream(hub)}), environ=environ) as proxy:
        proxy.tolerate("opentelemetry")
        assert (await proxy.ask("/v2/team/untraced/manifests/1")).body == image.body


async def test_without_a_word_of_traces_there_are_none(hub: Hub, tmp_path: Path) -> None:
    """A client's own trace ends here, and the log has no field for it."""
    hub.log.clear()
    hub.add_image("team/untraced", "2", b"layer")
    async with Proxy(tmp_path, settings({"docker.io": upstream(hub)})) as proxy:
        answer = await proxy.ask("/v2/team/untraced/manifests/2", headers=HEADERS)
        assert "trace_id" not in await proxy.logged(answer.headers["X-Request-ID"])
    assert hub.log
    assert not any("traceparent" in seen.headers for seen in hub.log)
