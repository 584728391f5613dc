"""OpenTelemetry: a span for each call and, within it, for each of its stages.

Spans are made when a call is over, with the times that were noted, so that tracing costs a call nothing.
"""

from __future__ import annotations

from typing import Any

from cmamil_sdk import __version__
from cmamil_sdk.errors import DependencyMissing

from .calls import HEALTH, Call

try:
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise DependencyMissing(
        f"Tracing needs {missing.name}, which is not installed; install cmamil-sdk[otel], or leave "
        "otlp_endpoint out."
    ) from missing

_SERVERS_FAULT = {
    *("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
}


def export_to(endpoint: str) -> TracerProvider:
    """A provider that sends spans to ``endpoint``, OTLP over gRPC, in batches from a thread.

    The variables ``OTEL_...`` of the environment say the rest: headers, sampling, further attributes.
    """
    resource = Resource.create({"service.name": "cmamil", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Makes the spans of each call, beneath the caller's span where it sent W3C trace context."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("cmamil_sdk.serving", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, call: Call) -> None:
        """Make the spans of a call that is over; none of a health check."""
        if call.service == HEALTH:
            return
        span = self._tracer.start_span(
            call.rpc,
            context=self._propagator.extract(call.headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(call),
            start_time=call.started_ns,
        )
        call.trace_id = format_trace_id(span.get_span_context().trace_id)
        if call.code in _SERVERS_FAULT:
            span.set_status(StatusCode.ERROR, call.reason or call.code)
        inside = set_span_in_context(span)
        for stage in call.stages:
            part = self._tracer.start_span(stage.name, context=inside, start_time=stage.started_ns)
            part.end(stage.ended_ns)
        span.end(call.ended_ns)

    def close(self) -> None:
        """Send what is left; may take seconds."""
        self._provider.shutdown()


def _attributes(call: Call) -> dict[str, Any]:
    service, _, method = call.rpc.partition("/")
    found = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": grpc.StatusCode[call.code].value[0],
        "error.type": call.reason,
        "cmamil.model": call.model,
        "cmamil.request_id": call.request_id,
    }
    found |= {f"cmamil.seconds.{stage}": took_s for stage, took_s in call.seconds.items()}
    return {key: value for key, value in found.items() if value != ""}


__all__ = ["Tracing", "export_to"]
