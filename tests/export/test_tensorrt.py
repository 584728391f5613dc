"""Plans built for real by tensorrt-rtx, which needs no GPU for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

rtx = pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")

from cmamil_sdk.engines.plans import TensorSpec  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid  # noqa: E402
from cmamil_sdk.export.tensorrt import (  # noqa: E402
    AGGREGATOR_FINEST_TILES,
    ENCODER_BATCHES,
    aggregator_profiles,
    build_plan,
    encoder_profiles,
)
from cmamil_sdk.files import sha256_of_file  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402

build_rtx = partial(build_plan, runtime="tensorrt-rtx")


def save_encoder(path: Path, *nodes: tuple[str, list[str], list[str], dict[str, Any]]) -> Path:
    """``tiles [batch, 8, 8, 3]`` uint8 -> ``features [batch, 3]`` through ``nodes``."""
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node(op, i, o, name=f"node_{op}", **a) for op, i, o, a in nodes],
        "encoder",
        [make.make_tensor_value_info("tiles", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])],
        [make.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 3])],
        [make.make_tensor("axes", onnx.TensorProto.INT64, [2], [1, 2])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save_encoder(
        tmp_path / "encoder.onnx",
        ("Cast", ["tiles"], ["grey"], {"to": 1}),
        ("ReduceMean", ["grey", "axes"], ["features"], {"keepdims": 0}),
    )


def test_a_plan_is_built_and_its_key_says_from_what(encoder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    plan = build_rtx(
        encoder,
        encoder_profiles,
        compute_capabilities=["86", "89"],
        on_progress=lambda *event: seen.append(event),
    )
    key = plan.document.key
    assert key.graph_sha256 == sha256_of_file(encoder)
    assert (key.runtime, key.runtime_version) == ("tensorrt-rtx", rtx.__version__)
    assert key.compute_capabilities == ("86", "89")
    assert [profile["tiles"] for profile in key.profiles] == [
        ((n, 8, 8, 3),) * 3 for n in ENCODER_BATCHES
    ]
    assert plan.document.inputs == {"tiles": TensorSpec(dtype="uint8", shape=("batch", 8, 8, 3))}
    # Without a device the plan cannot be read back, its header can: it is a plan, not a failure.
    _, problems = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR)).get_engine_validity(plan.data)
    _, of_noise = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR)).get_engine_validity(b"x" * 999)
    assert problems != of_noise
    assert all(0 <= done <= steps for _, done, steps in seen)
    assert {phase for phase, done, steps in seen if done == steps} >= {"Building engine"}


def test_the_same_graph_gives_the_same_plan_and_another_target_another(encoder: Path) -> None:
    first, again, other = (
        build_rtx(encoder, encoder_profiles, compute_capabilities=[name])
        for name in ("89", "89", "120")
    )
    assert first == again
    assert first.data != other.data
    assert first.document.key.digest != other.document.key.digest


@pytest.mark.parametrize("names", [["90"], ["89", "tiny"]])
def test_gpus_that_it_does_not_build_for(encoder: Path, names: list[str]) -> None:
    with pytest.raises(FieldInvalid, match=rf"--compute-capability {names[-1]}: .* 89, 120"):
        build_rtx(encoder, encoder_profiles, compute_capabilities=names)


def test_a_graph_that_the_parser_refuses_names_its_node(tmp_path: Path) -> None:
    graph = save_encoder(
        tmp_path / "encoder.onnx",
        ("Transpose", ["tiles"], ["moved"], {"perm": [0, 1, 2, 3]}),
        ("Cast", ["moved"], ["grey"], {"to": 1}),
        ("ReduceMean", ["grey", "axes"], ["features"], {"keepdims": 0}),
    )
    with pytest.raises(
        BundleUnsupported, match=r"encoder\.onnx: Transpose node_Transpose: .*UInt8"
    ):
        build_rtx(graph, encoder_profiles, compute_capabilities=["89"])


def test_a_graph_that_the_builder_refuses_says_why(encoder: Path) -> None:
    def crossed(inputs: Any) -> Any:
        return ({"tiles": ((8, 8, 8, 3), (9, 8, 8, 4), (9, 8, 8, 4))},)

    with pytest.raises(BundleUnsupported, match=r"builds no plan of encoder\.onnx: \S+"):
        build_rtx(encoder, crossed, compute_capabilities=["89"])


def test_profiles_of_bags_have_room_for_sparse_slides() -> None:
    scales = parse_scales("5x,20x")
    inputs = {
        "features_5x": TensorSpec(dtype="float32", shape=("n_5x", 7)),
        "features_20x": TensorSpec(dtype="float32", shape=("n_20x", 7)),
        "children_5x": TensorSpec(dtype="int64", shape=("n_5x", 16)),
        "ancestor_20x": TensorSpec(dtype="int64", shape=("n_20x", 1)),
    }
    profiles = aggregator_profiles(inputs, scales)
    assert len(profiles) == len(AGGREGATOR_FINEST_TILES)
    for profile, limit in zip(profiles, AGGREGATOR_FINEST_TILES, strict=True):
        assert profile == {
            "features_5x": ((1, 7), (limit // 32, 7), (limit // 4, 7)),
            "features_20x": ((1, 7), (limit // 2, 7), (limit, 7)),
            "children_5x": ((1, 16), (limit // 32, 16), (limit // 4, 16)),
            "ancestor_20x": ((1, 1), (limit // 2, 1), (limit, 1)),
        }


def test_a_plan_of_a_graph_in_half(tmp_path: Path) -> None:
    from cmamil_sdk.engines.graphs import graph_in
    from cmamil_sdk.export.half import write_half

    from .small_encoder import write_small_graph

    graph = write_small_graph(tmp_path)
    half = graph_in(graph, "fp16")
    write_half(graph, half)
    plan = build_rtx(half, encoder_profiles, compute_capabilities=["89"], precision="fp16")
    assert plan.document.key.precision == "fp16"
    assert plan.document.key.graph_sha256 == sha256_of_file(half) != sha256_of_file(graph)
    assert plan.document.inputs["tiles"].dtype == "uint8"
