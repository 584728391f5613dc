"""Spans of calls and their stages, beneath the caller's span, and sent where they should go."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.errors import DependencyMissing
from cmamil_sdk.serving.calls import Call
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import background_server

pytest.importorskip("opentelemetry.sdk", reason="it is the extra otel")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cmamil_sdk.serving import tracing
from cmamil_sdk.serving.tracing import Tracing, export_to

PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return provider


@pytest.fixture
def traced(
    config: ServerConfig, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setattr(tracing, "export_to", lambda _endpoint: provider)
    settings = config.model_copy(
        update={"workers": 1, "otlp_endpoint": "http://127.0.0.1:4317", "log_slides": True}
    )
    with background_server(settings) as server:
        yield f"127.0.0.1:{server.port}"


def named(spans: tuple[ReadableSpan, ...]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def test_a_prediction_is_a_span_with_a_span_for_each_stage(
    traced: str, exported: InMemorySpanExporter, provider: TracerProvider
) -> None:
    slide = slide_pb2.SlideSource(uri="folder/b c.svs")
    request = prediction_pb2.PredictSlideRequest(slide=slide).SerializeToString()
    with grpc.insecure_channel(traced) as channel:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        channel.unary_unary(PREDICT)(request, metadata=METADATA, timeout=60)
    provider.force_flush()
    spans = named(exported.get_finished_spans())
    assert set(spans) == {PREDICT[1:], "queued", "planning", "tiles", "aggregating", "answering"}
    call = spans.pop(PREDICT[1:])
    assert call.parent is not None and call.attributes is not None
    assert f"{call.parent.span_id:016x}" == PARENT_ID
    assert f"{call.context.trace_id:032x}" == TRACE_ID
    assert call.attributes["rpc.method"] == "PredictSlide"
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert call.attributes["cmamil.model"] == "tiny/1"
    assert float(str(call.attributes["cmamil.seconds.decode"])) > 0
    previous = call.start_time or 0
    for stage in ("queued", "planning", "tiles", "aggregating", "answering"):
        span = spans[stage]
        assert span.parent is not None and span.parent.span_id == call.context.span_id
        assert previous <= (span.start_time or 0) <= (span.end_time or 0) <= (call.end_time or 0)
        previous = span.end_time or 0
    for span in (call, *spans.values()):
        assert "b c" not in span.to_json()


def test_a_failed_call_without_a_caller_has_a_trace_of_its_own(
    exported: InMemorySpanExporter, provider: TracerProvider
) -> None:
    watch = Tracing(provider)
    for code, reason in (("NOT_FOUND", "SLIDE_NOT_FOUND"), ("DATA_LOSS", "SLIDE_CORRUPT")):
        call = Call("a.B/C")
        call.end(code, reason)
        watch(call)
        assert len(call.trace_id) == 32
    theirs, ours = exported.get_finished_spans()
    assert theirs.parent is None and theirs.status.is_unset
    assert not ours.status.is_ok and ours.status.description == "SLIDE_CORRUPT"
    assert ours.attributes is not None and ours.attributes["error.type"] == "SLIDE_CORRUPT"


def test_spans_reach_a_collector_before_the_end() -> None:
    received: list[bytes] = []
    arrived = threading.Event()

    def export(data: bytes, _context: grpc.ServicerContext) -> bytes:
        received.append(data)
        arrived.set()
        return b""

    collector = grpc.server(ThreadPoolExecutor(1))
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    collector.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        watch = Tracing(export_to(f"http://127.0.0.1:{port}"))
        call = Call("a.B/C")
        call.enter("tiles")
        call.end("OK")
        watch(call)
        watch.close()
        assert arrived.wait(5)
    finally:
        collector.stop(0)
    (data,) = received
    assert b"a.B/C" in data and b"tiles" in data and b"cmamil" in data


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, config: ServerConfig
) -> None:
    monkeypatch.delitem(sys.modules, "cmamil_sdk.serving.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    asked = config.model_copy(update={"otlp_endpoint": "http://127.0.0.1:4317"})
    with pytest.raises(DependencyMissing, match=r"cmamil-sdk\[otel\]"), background_server(asked):
        pass


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    program = (
        "import sys, cmamil_sdk.serving.observation\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)
