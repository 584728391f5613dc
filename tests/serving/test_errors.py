"""Each row of the error table, through the wire."""

from __future__ import annotations

import gc
import math
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, slide_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.errors import SlideFormatUnsupported, leaf_errors
from cmamil_sdk.serving.status import FieldProblem, RequestInvalid, status_of

from .waiting import wait_until

_PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"
_STREAM = "/cmamil.v1.SlidePredictionService/StreamPredictSlide"
_METHODS = (
    _PREDICT,
    "/cmamil.v1.SlidePredictionService/CreatePredictionJob",
    "/cmamil.v1.SlidePredictionService/GetPredictionJob",
    "/cmamil.v1.SlidePredictionService/ListPredictionJobs",
    "/cmamil.v1.SlidePredictionService/CancelPredictionJob",
    "/cmamil.v1.SlidePredictionService/DeletePredictionJob",
    "/cmamil.v1.SlideService/InspectSlide",
    "/cmamil.v1.SlideService/DeleteSlide",
    "/cmamil.v1.ModelService/ListModels",
    "/cmamil.v1.ModelService/GetModel",
    "/cmamil.v1.ServerService/GetServerInfo",
    "/cmamil.v1.ServerService/GetServerStats",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelConfig",
    "/inference.GRPCInferenceService/ModelInfer",
)
RawCall = Callable[..., Any]


def request(uri: str = "a.svs", **fields: Any) -> bytes:
    slide = slide_pb2.SlideSource(uri=uri, expected_sha256=fields.pop("sha256", ""))
    if "mpp" in fields:
        fields["tiling"] = slide_pb2.TilingOptions(mpp_override=fields.pop("mpp"))
    if "top_k" in fields:
        fields["output"] = prediction_pb2.OutputOptions(top_k=fields.pop("top_k"))
    return prediction_pb2.PredictSlideRequest(slide=slide, **fields).SerializeToString()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (request(uri=""), "slide.uri"),
        (request(uri="x" * 5000), "slide.uri"),
        (request(sha256="abc"), "slide.expected_sha256"),
        (request(mpp=math.nan), "tiling.mpp_override"),
        (request(mpp=math.inf), "tiling.mpp_override"),
        (request(mpp=0.0), "tiling.mpp_override"),
        (request(mpp=-0.5), "tiling.mpp_override"),
        (request(top_k=-1), "output.top_k"),
        (request(top_k=1001), "output.top_k"),
        (request(request_id="seven"), "request_id"),
        (request(model="tiny"), "model"),
        (request(model="models/tiny/versions/"), "model"),
    ],
    ids=repr,
)
def test_wrong_fields_are_named(address: str, raw_call: RawCall, data: bytes, field: str) -> None:
    code, reason, details = raw_call(address, _PREDICT, data)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert [violation.field for violation in details[1].field_violations] == [field]


def test_all_wrong_fields_are_named_at_once(address: str, raw_call: RawCall) -> None:
    _, _, details = raw_call(address, _PREDICT, request(uri="", mpp=0.0, request_id="x"))
    fields = {violation.field for violation in details[1].field_violations}
    assert fields == {"slide.uri", "tiling.mpp_override", "request_id"}


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (request(model="models/none"), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (request(model="models/tiny/versions/99"), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (request("/etc/passwd"), "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (request("../a.svs"), "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (request("http://host/a.svs"), "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (request("a.svs\0"), "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (request("folder"), "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (request("absent.svs"), "NOT_FOUND", "SLIDE_NOT_FOUND"),
        (request(sha256="0" * 64), "FAILED_PRECONDITION", "SLIDE_HASH_MISMATCH"),
        (request("text.svs"), "INVALID_ARGUMENT", "SLIDE_FORMAT_UNSUPPORTED"),
        (request("cut.svs"), "DATA_LOSS", "SLIDE_CORRUPT"),
        (request("holes.svs"), "DATA_LOSS", "SLIDE_CORRUPT"),
        (request("plain.tiff"), "FAILED_PRECONDITION", "MPP_UNKNOWN"),
        (request(mpp=40.0), "FAILED_PRECONDITION", "MPP_UNUSABLE"),
        (request("white.svs"), "FAILED_PRECONDITION", "NO_TISSUE"),
    ],
    ids=repr,
)
def test_rows_of_the_table(
    address: str, raw_call: RawCall, bad_slides: None, data: bytes, code: str, reason: str
) -> None:
    found = raw_call(address, _PREDICT, data)
    assert found[:2] == (grpc.StatusCode[code], reason)


@pytest.fixture(scope="session")
def bad_slides(slides_root: Path) -> None:
    """Slides that fail in different ways, beneath the root."""
    import numpy as np
    import tifffile

    from cmamil_sdk.synthetic.svs import write_svs

    whole = (slides_root / "a.svs").read_bytes()
    white = np.full((1200, 1200, 3), 245, dtype=np.uint8)
    write_svs(white, slides_root / "white.svs", mpp=0.5, objective_power=20.0)
    with tifffile.TiffFile(slides_root / "a.svs") as file:
        page = file.pages.first
        holes = bytearray(whole)
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            holes[offset : offset + size] = bytes(size)
        pixels = page.asarray()
    (slides_root / "holes.svs").write_bytes(holes)
    tifffile.imwrite(
        slides_root / "plain.tiff", pixels, tile=(256, 256), compression="jpeg", photometric="rgb"
    )
    (slides_root / "cut.svs").write_bytes(whole[: len(whole) // 2])


def test_a_message_names_no_path_of_the_server(
    address: str, raw_call: RawCall, bad_slides: None, slides_root: Path
) -> None:
    with grpc.insecure_channel(address) as channel:
        for name in ("text.svs", "holes.svs", "plain.tiff", "white.svs", "cut.svs"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(_PREDICT)(request(name), timeout=20)
            message = caught.value.details()
            assert name in message
            assert str(slides_root) not in message and "/proc" not in message


@pytest.mark.parametrize("method", _METHODS)
def test_malformed_bytes_are_an_invalid_argument(
    address: str, raw_call: RawCall, method: str
) -> None:
    code, reason, _ = raw_call(address, method, b"\xff\xff\xff")
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=64), method=st.sampled_from(_METHODS))
def test_no_bytes_bring_an_unknown_status(
    address: str, raw_call: RawCall, data: bytes, method: str
) -> None:
    found = raw_call(address, method, data)
    if not isinstance(found, bytes):
        assert found[0] is not grpc.StatusCode.UNKNOWN and found[1]


def test_malformed_bytes_on_a_stream(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(_STREAM)(b"\xff\xff\xff", timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_request_over_the_limit(address: str, raw_call: RawCall) -> None:
    padded = request() + b"\xfa\x7f" + b"\x80\x80\x80\x03" + bytes(3 * 2**21)
    code, reason, _ = raw_call(address, _PREDICT, padded)
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def test_models_are_listed_and_found(address: str, raw_call: RawCall) -> None:
    listed = model_pb2.ListModelsResponse.FromString(
        raw_call(address, "/cmamil.v1.ModelService/ListModels", b"")
    )
    assert [model.name for model in listed.models] == ["models/tiny/versions/1"]
    for name in ("models/tiny", "models/tiny/versions/1"):
        asked = model_pb2.GetModelRequest(name=name).SerializeToString()
        found = raw_call(address, "/cmamil.v1.ModelService/GetModel", asked)
        assert model_pb2.GetModelResponse.FromString(found).model == listed.models[0]


def test_request_id_is_echoed_or_made(address: str, raw_call: RawCall) -> None:
    identity = str(uuid.uuid4())
    for given_id in (identity, ""):
        data = raw_call(address, _PREDICT, request(request_id=given_id))
        answer = prediction_pb2.PredictSlideResponse.FromString(data)
        assert len(answer.request_id) == 36
        assert answer.request_id == (given_id or answer.request_id)
        assert answer.timings.total.ToNanoseconds() > 0


def test_a_slide_replaced_by_a_link_between_requests(
    address: str, raw_call: RawCall, slides_root: Path, tmp_path: Path
) -> None:
    slide = slides_root / "swapped.svs"
    shutil.copy(slides_root / "a.svs", slide)
    assert isinstance(raw_call(address, _PREDICT, request("swapped.svs")), bytes)
    slide.rename(tmp_path / "elsewhere.svs")
    slide.symlink_to(tmp_path / "elsewhere.svs")
    code, reason, _ = raw_call(address, _PREDICT, request("swapped.svs"))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "SLIDE_URI_FORBIDDEN")


@pytest.mark.parametrize("leaf", leaf_errors().values(), ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_a_status_with_its_reason(leaf: type[Any]) -> None:
    status = status_of(leaf("What, where, how to mend."))
    assert status.code is grpc.StatusCode[leaf.grpc_status]
    assert status.code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK)
    assert len(status.trailers[0][1]) < 8192


def test_a_long_message_is_cut_to_fit_the_trailers() -> None:
    for count, length in ((1, 100_000), (100_000, 1), (3, 10_000)):
        status = status_of(RequestInvalid([FieldProblem("slide.uri", "x" * length)] * count))
        assert len(status.message) == 1000 or count == 1
        assert len(status.trailers[0][1]) < 4500  # a third more in base64


@pytest.mark.parametrize("name", ["x.vms", "disguised.svs", "scan.dcm"])
def test_a_format_that_names_further_files_is_refused(
    client: Client, slides_root: Path, name: str
) -> None:
    """Such a file could name one outside the roots; neither name nor extension decides."""
    text = b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=../secret.jpg\n"
    data = bytes(128) + b"DICM" if name.endswith(".dcm") else text
    (slides_root / name).write_bytes(data)
    try:
        with pytest.raises(
            SlideFormatUnsupported, match=r"several files|no slide that a server reads"
        ):
            client.inspect(name)
    finally:
        (slides_root / name).unlink()


def test_a_call_that_fails_is_let_go_at_once(address: str, raw_call: Callable[..., Any]) -> None:
    """What gRPC keeps of a call counts as a stream of its connection until it is gone."""

    def kept() -> int:
        return sum(type(each).__name__ in ("RPCState", "AbortError") for each in gc.get_objects())

    def asked_for(uri: str) -> bytes:
        slide = slide_pb2.SlideSource(uri=uri)
        return prediction_pb2.PredictSlideRequest(
            slide=slide, bypass_cache=True
        ).SerializeToString()

    def fail() -> None:
        raw_call(address, _PREDICT, asked_for("absent.svs"))
        raw_call(address, _PREDICT, b"\xff")
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(_PREDICT).future(asked_for("a.svs"))
            time.sleep(0.05)
            call.cancel()

    fail()
    gc.collect()
    gc.disable()
    try:
        before = kept()
        for _ in range(10):
            fail()
        wait_until(lambda: kept() <= before + 2)  # other calls come and go
    finally:
        gc.enable()
