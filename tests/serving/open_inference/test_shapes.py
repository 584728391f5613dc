"""Requests of any shape: they are read whole, or refused with a typed error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest
from cmamil_sdk.errors import CmamilError, RequestTooLarge
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.messages import RunGraph
from cmamil_sdk.serving.models import LoadedModel, ModelTable
from cmamil_sdk.serving.open_inference.calls import read_call
from cmamil_sdk.serving.open_inference.signatures import Signature, Tensor, aggregator_signature
from cmamil_sdk.serving.status import RequestInvalid

from .asking import DATATYPES, request, tiles

SCALES = ("5x", "10x")
INPUTS = (
    Tensor("features_5x", "FP32", (-1, 2)),
    Tensor("features_10x", "FP32", (-1, 2)),
    Tensor("children_5x", "INT64", (-1, 4)),
    Tensor("ancestor_10x", "INT64", (-1, 1)),
)
OUTPUTS = (Tensor("logits", "FP32", (1, 2)), Tensor("attention_5x", "FP32", (1, -1)))


def table(**changes: Any) -> ModelTable:
    """A bundle with tiles of 4 x 4 pixels, and features of 2 numbers."""
    manifest = {
        "name": "m",
        "version": "1",
        "labels": ("a", "b"),
        "model_kind": "cma-mil",
        "hyperparameters": {"cross_attention": "nested"},
        "encoder": SimpleNamespace(tile_px=4, dim=2),
        "recipe": SimpleNamespace(names=SCALES),
        "index_inputs": ("children_5x", "ancestor_10x"),
        "attention_rows": None,
    }
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(**manifest | changes))
    models = ModelTable()
    models.fill([LoadedModel(0, bundle, Signature(INPUTS, OUTPUTS))])
    return models


@pytest.fixture(scope="module")
def small(config: ServerConfig) -> ServerConfig:
    return config.model_copy(update={"max_tiles": 20, "max_call_tiles": 40})


def bag(n_coarse: int = 3, n_fine: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "features_5x": rng.normal(size=(n_coarse, 2)).astype(np.float32),
        "features_10x": rng.normal(size=(n_fine, 2)).astype(np.float32),
        "children_5x": rng.integers(-1, n_fine, (n_coarse, 4)),
        "ancestor_10x": rng.integers(-1, n_coarse, (n_fine, 1)),
    }


def tasks(message: ModelInferRequest, models: ModelTable, config: ServerConfig) -> Any:
    return read_call(message.SerializeToString(), models, config).work


def test_the_axis_of_the_tiles_is_open_and_all_others_are_as_exported() -> None:
    """A model of two levels, whose every class has its own attention."""
    outputs = {
        "logits": (1, 3),
        "attention_5x": (3, 7),
        "contribution_5x": (7, 3),
        "coarse_attention_5x": (2, 7),
        "coarse_contribution_5x": (7, 2),
    }
    manifest: Any = SimpleNamespace(
        recipe=SimpleNamespace(names=("5x",)), index_inputs=(), aggregator_outputs=list(outputs)
    )
    golden: Any = SimpleNamespace(
        inputs={"features_5x": np.zeros((7, 4), np.float32)},
        outputs={name: np.zeros(shape, np.float32) for name, shape in outputs.items()},
    )
    found = aggregator_signature(manifest, golden)
    assert found.inputs == (Tensor("features_5x", "FP32", (-1, 4)),)
    assert {tensor.name: tensor.shape for tensor in found.outputs} == {
        "logits": (1, 3),
        "attention_5x": (3, -1),
        "contribution_5x": (-1, 3),
        "coarse_attention_5x": (2, -1),
        "coarse_contribution_5x": (-1, 2),
    }


def test_tiles_become_tasks_of_a_few_each(small: ServerConfig) -> None:
    given_tiles = tiles(40, px=4)
    work = tasks(request("m-encoder", given_tiles), table(), small)
    assert [task.part for task in work] == [0, 1, 2]
    assert [len(task.inputs["tiles"]) for task in work] == [16, 16, 8]
    together = np.concatenate([task.inputs["tiles"] for task in work])
    np.testing.assert_array_equal(together, given_tiles["tiles"])


def test_a_bag_is_one_task_with_all_arrays(small: ServerConfig) -> None:
    (task,) = tasks(request("m-aggregator", bag()), table(), small)
    assert isinstance(task, RunGraph)
    assert list(task.inputs) == list(bag())
    for name, array in bag().items():
        assert task.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(task.inputs[name], array)


def test_limits_hold_before_any_work(small: ServerConfig) -> None:
    with pytest.raises(RequestTooLarge, match="41 tiles, the limit is 40"):
        tasks(request("m-encoder", tiles(41, px=4)), table(), small)
    with pytest.raises(RequestTooLarge, match="21 tiles, the limit is 20"):
        tasks(request("m-aggregator", bag(10, 11)), table(), small)
    wide = table(hyperparameters={"cross_attention": "global"})
    roomy = small.model_copy(update={"max_tiles": 10_000, "max_attention_mib": 1})
    assert tasks(request("m-aggregator", bag(100, 100)), wide, roomy)
    with pytest.raises(RequestTooLarge, match="global attention between them needs 10 MiB"):
        tasks(request("m-aggregator", bag(1000, 1000)), wide, roomy)


SIZES = st.one_of(
    st.integers(-2, 6),
    st.sampled_from([-(2**63), 2**31, 2**32 + 1, 2**62, 2**63 - 1]),
)
NAMES = st.sampled_from(["tiles", "slide_uri", "options", *(t.name for t in INPUTS), "", "x"])
TYPES = st.sampled_from([*DATATYPES.values(), "BYTES", "FP16", "BF16", "BOOL", "", "fp32"])
MODELS = st.sampled_from(["m-encoder", "m-aggregator", "m-slide", "m-", "-slide", "m"])
PARAMETERS = st.sampled_from(["timeout", "priority", "sequence_id", "classification", "x"])
BYTES = st.binary(max_size=64)


@st.composite
def requests(draw: st.DrawFn) -> ModelInferRequest:
    """Right in many ways and wrong in some."""
    if draw(st.booleans()):
        message = request("m-aggregator", bag())
    else:
        message = request(draw(MODELS), tiles(2, px=4))
    for _ in range(draw(st.integers(0, 2))):
        tensor = message.inputs.add(name=draw(NAMES), datatype=draw(TYPES))
        message.raw_input_contents.append(draw(BYTES))
        tensor.shape.extend(draw(st.lists(SIZES, max_size=5)))
    if message.inputs and draw(st.booleans()):
        tensor = message.inputs[draw(st.integers(0, len(message.inputs) - 1))]
        tensor.shape[:] = draw(st.lists(SIZES, max_size=5))
    if draw(st.booleans()):
        del message.raw_input_contents[draw(st.integers(0, 4)) :]
    if draw(st.booleans()):
        contents = message.inputs[0].contents
        contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=6)))
        contents.uint_contents.extend(draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)))
        contents.bytes_contents.extend(draw(st.lists(BYTES, max_size=2)))
    if draw(st.booleans()):
        parameter = message.parameters[draw(PARAMETERS)]
        setattr(parameter, *draw(st.sampled_from([("int64_param", 5), ("string_param", "5")])))
    return message


def check_any_request(data: bytes, config: ServerConfig) -> None:
    try:
        call = read_call(data, table(), config)
    except (CmamilError, RequestInvalid):
        return
    for task in call.work if isinstance(call.work, tuple) else ():
        assert isinstance(task, RunGraph)
        for array in task.inputs.values():
            assert array.dtype in (np.uint8, np.int64, np.float32) and array.size


@settings(max_examples=250, deadline=None)
@given(message=requests(), cut=st.integers(0, 40))
def test_any_request_is_read_or_refused(
    small: ServerConfig, message: ModelInferRequest, cut: int
) -> None:
    data = message.SerializeToString()
    check_any_request(data, small)
    check_any_request(data[: len(data) - cut], small)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=5000, deadline=None)
@given(message=requests(), cut=st.integers(0, 400))
def test_very_many_requests_are_read_or_refused(
    small: ServerConfig, message: ModelInferRequest, cut: int
) -> None:
    data = message.SerializeToString()
    check_any_request(data, small)
    check_any_request(data[: len(data) - cut], small)
