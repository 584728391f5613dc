"""A server that answers predictions as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2

Handler = Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]


@contextmanager
def answering(handler: Handler) -> Iterator[str]:
    """A server whose StreamPredictSlide is ``handler``; yields its address."""
    methods = {"StreamPredictSlide": grpc.unary_stream_rpc_method_handler(handler)}
    service = "cmamil.v1.SlidePredictionService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


def fail(
    context: grpc.ServicerContext, code: grpc.StatusCode, reason: str = "", retry_s: int = 0
) -> None:
    status = status_pb2.Status(code=code.value[0], message="sentence")
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="cmamil.dev")
        status.details.add().Pack(info)
    if retry_s:
        delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_s))
        status.details.add().Pack(delay)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, "sentence")


def result() -> bytes:
    answer = prediction_pb2.PredictSlideResponse(
        slide_id="a",
        label="benign",
        scores=[prediction_pb2.ClassScore(label="benign", probability=1.0)],
        mpp=0.5,
        mpp_source=slide_pb2.MPP_SOURCE_OVERRIDE,
        attention=[
            prediction_pb2.ScaleAttention(
                scale="20x", tile_size=224.5, coords=[1, 2], attention=[1.0], contribution=[0.25]
            ),
            prediction_pb2.ScaleAttention(scale="10x", tile_size=449.0, coords=[3, 4]),
        ],
    )
    return prediction_pb2.StreamPredictSlideResponse(result=answer).SerializeToString()
