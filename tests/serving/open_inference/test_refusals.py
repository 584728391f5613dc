"""Each rule of the protocol, broken through the wire: which status, which reason, which field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from cmamil_sdk.serving.open_inference.length import MAX_FIELDS, check_length, lengths_beside_raw

from .asking import INFER, Change, request, slide, tiles

RawCall = Callable[..., Any]
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
UNSUPPORTED = (grpc.StatusCode.UNIMPLEMENTED, "REQUEST_UNSUPPORTED")
TOO_LARGE = (grpc.StatusCode.OUT_OF_RANGE, "REQUEST_TOO_LARGE")


def fields(details: list[Any]) -> list[str]:
    return [violation.field for violation in details[1].field_violations]


def shaped(*shape: int) -> Change:
    def change(message: ModelInferRequest) -> None:
        message.inputs[0].shape[:] = shape

    return change


def typed(**contents: list[Any]) -> Change:
    """Contents in the fields of their types, for the first tensor; nothing raw."""

    def change(message: ModelInferRequest) -> None:
        del message.raw_input_contents[:]
        for field, values in contents.items():
            getattr(message.inputs[0].contents, field).extend(values)

    return change


def parameter(name: str, where: str = "", **value: Any) -> Change:
    def change(message: ModelInferRequest) -> None:
        owner: Any = {"": message, "inputs": message.inputs, "outputs": message.outputs}[where]
        if where == "outputs":
            message.outputs.add(name="features")
        kind, given = next(iter(value.items()))
        setattr((owner[0] if where else owner).parameters[name], kind, given)

    return change


def renamed(field: str, value: Any) -> Change:
    return lambda message: setattr(message.inputs[0], field, value)


WRONG_TENSORS: dict[str, tuple[Change, str]] = {
    "more raw contents than inputs": (
        lambda m: m.raw_input_contents.append(b""),
        "raw_input_contents",
    ),
    "both raw and typed": (
        lambda m: m.inputs[0].contents.uint_contents.append(1),
        "inputs[0].contents",
    ),
    "contents of another type": (typed(fp32_contents=[1.0]), "inputs[0].contents"),
    "contents of two types": (
        typed(uint_contents=[1], int_contents=[1]),
        "inputs[0].contents",
    ),
    "too few typed elements": (typed(uint_contents=[1, 2, 3]), "inputs[0].contents"),
    "no contents at all": (typed(), "inputs[0].contents"),
    "a typed element above 255": (
        typed(uint_contents=[256] * (224 * 224 * 3)),
        "inputs[0].contents",
    ),
    "another datatype": (renamed("datatype", "FP32"), "inputs[0].datatype"),
    "a datatype for raw contents alone": (renamed("datatype", "FP16"), "inputs[0].datatype"),
    "no datatype of the protocol": (renamed("datatype", "uint8"), "inputs[0].datatype"),
    "one byte too few": (
        lambda m: m.raw_input_contents.__setitem__(0, bytes(224 * 224 * 3 - 1)),
        "raw_input_contents[0]",
    ),
    "more rows than bytes": (shaped(2, 224, 224, 3), "raw_input_contents[0]"),
    "a product above 64 bits": (shaped(2**62, 224, 224, 3), "raw_input_contents[0]"),
    "a negative axis": (shaped(-1, 224, 224, 3), "inputs[0].shape"),
    "two negative axes": (shaped(-1, -224, 224, 3), "inputs[0].shape"),
    "no rows": (shaped(0, 224, 224, 3), "inputs[0].shape"),
    "a tile of another size": (shaped(1, 512, 98, 3), "inputs[0].shape"),
    "an axis too few": (shaped(224, 224, 3), "inputs[0].shape"),
    "an unknown input": (renamed("name", "images"), "inputs[0].name"),
    "an input twice": (
        lambda m: (m.inputs.append(m.inputs[0]), m.raw_input_contents.append(b"")),
        "inputs[1].name",
    ),
    "an unknown output": (lambda m: m.outputs.add(name="logits"), "outputs[0].name"),
    "an output twice": (
        lambda m: (m.outputs.add(name="features"), m.outputs.add(name="features")),
        "outputs[1].name",
    ),
    "no model": (lambda m: setattr(m, "model_name", ""), "model_name"),
    "an unknown parameter": (parameter("colour", string_param="red"), "parameters['colour']"),
    "an unknown parameter of a tensor": (
        parameter("scale", "inputs", double_param=0.5),
        "inputs[0].parameters['scale']",
    ),
    "a timeout that is no number": (
        parameter("timeout", string_param="1s"),
        "parameters['timeout']",
    ),
    "a negative timeout": (parameter("timeout", int64_param=-1), "parameters['timeout']"),
    "a negative priority": (parameter("priority", int64_param=-1), "parameters['priority']"),
}


@pytest.mark.parametrize(("change", "field"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_what_is_wrong_is_named(
    address: str, raw_call: RawCall, change: Change, field: str
) -> None:
    message = request("tiny-encoder", tiles(), change)
    code, reason, details = raw_call(address, INFER, message.SerializeToString())
    assert (code, reason) == INVALID
    assert field in fields(details)


def test_all_that_is_wrong_is_named_at_once(address: str, raw_call: RawCall) -> None:
    message = request("tiny-aggregator", tiles(), renamed("name", "features_5x"))
    _, _, details = raw_call(address, INFER, message.SerializeToString())
    assert fields(details) == ["inputs[0].datatype", "inputs"]
    missing = details[1].field_violations[1].description
    assert "features_10x, features_20x, children_5x" in missing and "ancestor_20x" in missing


UNKNOWN_HERE: dict[str, Change] = {
    "a sequence": parameter("sequence_id", int64_param=7),
    "a sequence by name": parameter("sequence_id", string_param="seven"),
    "the start of a sequence": parameter("sequence_start", bool_param=True),
    "binary data": parameter("binary_data_output", bool_param=True),
    "a classification": parameter("classification", "outputs", int64_param=2),
    "an input in shared memory": parameter("shared_memory_region", "inputs", string_param="region"),
    "an output in shared memory": parameter(
        "shared_memory_region", "outputs", string_param="region"
    ),
    "a priority": parameter("priority", uint64_param=1),
}


@pytest.mark.parametrize("change", UNKNOWN_HERE.values(), ids=UNKNOWN_HERE)
def test_what_triton_does_and_this_server_does_not(
    address: str, raw_call: RawCall, change: Change
) -> None:
    message = request("tiny-encoder", tiles(), change)
    assert raw_call(address, INFER, message.SerializeToString())[:2] == UNSUPPORTED


def test_parameters_that_change_nothing_are_taken(address: str, raw_call: RawCall) -> None:
    message = request(
        "tiny-encoder",
        tiles(),
        parameter("timeout", int64_param=0),
        parameter("priority", uint64_param=0),
    )
    assert isinstance(raw_call(address, INFER, message.SerializeToString()), bytes)


@pytest.mark.parametrize(
    ("model", "version", "code", "reason"),
    [
        ("tiny", "", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("tiny-decoder", "", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("other-encoder", "", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("models/tiny", "", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("tiny-encoder", "2", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("", "", "INVALID_ARGUMENT", "FIELD_INVALID"),
    ],
)
@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer"])
def test_models_that_are_not_there(
    address: str, raw_call: RawCall, method: str, model: str, version: str, code: str, reason: str
) -> None:
    """The requests of all these methods begin with the same two fields."""
    data = ModelInferRequest(model_name=model, model_version=version).SerializeToString()
    found = raw_call(address, INFER.replace("ModelInfer", method), data)
    assert found[:2] == (grpc.StatusCode[code], reason)


def test_more_tiles_than_a_call_may_hold(address: str, raw_call: RawCall) -> None:
    message = request("tiny-encoder", tiles(65)).SerializeToString()
    assert raw_call(address, INFER, message)[:2] == TOO_LARGE


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (b"{", "options"),
        (b"[]", "options"),
        (b"\xff", "options"),
        (b'{"tiles": 7}', "options"),
        (b'{"mpp": "0.5"}', "options"),
        (b'{"mpp": true}', "options"),
        (b'{"mpp": NaN}', "tiling.mpp_override"),
        (b'{"mpp": 1' + b"0" * 400 + b"}", "tiling.mpp_override"),
        (b'{"expected_sha256": 7}', "options"),
        (b'{"expected_sha256": "\\ud800"}', "options"),
        (b'{"expected_sha256": "abc"}', "slide.expected_sha256"),
        (b"[" * 4_000, "options"),
        (b" " * 4_097, "options"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_a_slide(address: str, raw_call: RawCall, options: bytes, field: str) -> None:
    message = slide(b"a.svs", options=options).SerializeToString()
    code, reason, details = raw_call(address, INFER, message)
    assert (code, reason) == INVALID
    assert fields(details) == [field]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "must hold 1 element, it holds 0"),
        (b"\x05", "ends within element 0"),
        (b"\x05\0\0\0a.sv", "ends within element 0"),
        (b"\xff\xff\xff\xffa.svs", "ends within element 0"),
        (b"\x05\0\0\0a.svs\x01", "ends within element 1"),
        (b"\x05\0\0\0a.svs\0\0\0\0", "it holds more"),
        (b"\0\0\0\0" * 1_000_000, "it holds more"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bytes_have_their_lengths_before_them(
    address: str, raw_call: RawCall, raw: bytes, problem: str
) -> None:
    message = slide(b"", lambda m: m.raw_input_contents.__setitem__(0, raw))
    code, reason, details = raw_call(address, INFER, message.SerializeToString())
    assert (code, reason) == INVALID
    (violation,) = details[1].field_violations
    assert violation.field == "raw_input_contents[0]" and problem in violation.description


@pytest.mark.parametrize(
    ("uri", "code", "reason"),
    [
        (b"", "INVALID_ARGUMENT", "FIELD_INVALID"),
        (b"\xff", "INVALID_ARGUMENT", "FIELD_INVALID"),
        (b"a.svs\0", "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (b"../a.svs", "PERMISSION_DENIED", "SLIDE_URI_FORBIDDEN"),
        (b"absent.svs", "NOT_FOUND", "SLIDE_NOT_FOUND"),
        (b"text.svs", "INVALID_ARGUMENT", "SLIDE_FORMAT_UNSUPPORTED"),
    ],
)
def test_slides_are_refused_as_by_our_own_api(
    address: str, raw_call: RawCall, uri: bytes, code: str, reason: str
) -> None:
    found = raw_call(address, INFER, slide(uri).SerializeToString())
    assert found[:2] == (grpc.StatusCode[code], reason)


@pytest.fixture(scope="module")
def bag(tiny_bundle: Path) -> dict[str, Any]:
    """The golden inputs of the aggregator."""
    with np.load(tiny_bundle / "golden.npz") as golden:
        prefix = "aggregator/in/"
        return {n.removeprefix(prefix): golden[n] for n in golden if n.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("features_5x", (0, 0), np.nan),
        ("features_20x", (-1, -1), np.inf),
        ("children_5x", (0, 0), -2),
        ("children_5x", (0, 0), 1_000_000),
        ("children_10x", (-1, 0), -(2**63)),
        ("ancestor_20x", (0, 0), 2**63 - 1),
    ],
)
def test_a_bag_that_does_not_hold_together(
    address: str, raw_call: RawCall, bag: dict[str, Any], name: str, place: Any, value: Any
) -> None:
    wrong = bag[name].copy()
    wrong[place] = value
    message = request("tiny-aggregator", bag | {name: wrong}).SerializeToString()
    code, reason, details = raw_call(address, INFER, message)
    assert (code, reason) == INVALID
    assert fields(details) == [name]


@pytest.mark.parametrize("name", ["features_10x", "children_5x", "ancestor_20x"])
def test_arrays_of_different_bags(
    address: str, raw_call: RawCall, bag: dict[str, Any], name: str
) -> None:
    message = request("tiny-aggregator", bag | {name: bag[name][:-1]}).SerializeToString()
    code, reason, _ = raw_call(address, INFER, message)
    assert (code, reason) == INVALID


def test_of_very_many_wrong_fields_the_first_are_named(address: str, raw_call: RawCall) -> None:
    """All of them would not go into the trailers of an answer, and gRPC would make its own error."""

    def ask(outputs: int) -> Any:
        message = request("tiny-encoder", tiles())
        for _ in range(outputs):
            message.outputs.add(name="features")
        return raw_call(address, INFER, message.SerializeToString())

    code, reason, details = ask(MAX_FIELDS - 4)
    assert (code, reason) == INVALID
    named = fields(details)
    assert named == [f"outputs[{number}].name" for number in range(1, len(named) + 1)]
    assert 10 < len(named) < 100
    assert ask(MAX_FIELDS)[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


@given(st.binary(max_size=40))
def test_the_length_of_anything_can_be_told(data: bytes) -> None:
    beside = sum(lengths_beside_raw(data))
    assert 0 <= beside <= len(data) + 8
    check_length(data)


def test_typed_contents_give_the_same_answer(address: str, raw_call: RawCall) -> None:
    arrays = tiles()
    plain = request("tiny-encoder", arrays)
    spelled = request("tiny-encoder", arrays, typed(uint_contents=arrays["tiles"].ravel().tolist()))
    answers = [
        ModelInferResponse.FromString(raw_call(address, INFER, message.SerializeToString()))
        for message in (plain, spelled)
    ]
    assert answers[0] == answers[1]
    raw = plain.SerializeToString()
    plain.raw_input_contents[0] = b""  # whose length takes two bytes less
    whole = spelled.SerializeToString()
    assert sum(lengths_beside_raw(whole)) == len(whole)
    assert sum(lengths_beside_raw(raw)) == len(plain.SerializeToString()) + 2
    long = request("tiny-encoder", arrays, typed(uint_contents=[200] * 2**20)).SerializeToString()
    assert raw_call(address, INFER, long)[:2] == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "MESSAGE_TOO_LARGE",
    )
    uri = slide(b"")
    del uri.raw_input_contents[:]
    uri.inputs[0].contents.bytes_contents.append(b"absent.svs")
    assert raw_call(address, INFER, uri.SerializeToString())[1] == "SLIDE_NOT_FOUND"
