"""Preprocessing of tiles as ONNX nodes, put before a graph that takes images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.encoders.resize import resize_matrix

_OWN = "user_"
"""Put before every name in the graph, so that none is like one of ours."""


def with_preprocessing(
    model: ModelProto, info: EncoderInfo, *, image_input: str, output: str, takes_uint8: bool
) -> ModelProto:
    """``model`` between ``tiles [batch, px, px, 3]`` uint8 and ``features [batch, D]`` float32.

    Args:
        model: takes images at ``image_input``, gives features at ``output``; is left as it is.
        info: size of the tiles, resizing and normalisation.
        image_input: tiles as they are if ``takes_uint8``, else normalised images [N, 3, H, W].
        output: features [N, D].
        takes_uint8: whether the graph normalises by itself.
    """
    whole = onnx.compose.add_prefix(model, _OWN)
    graph = whole.graph
    images = f"{_OWN}{image_input}"
    if takes_uint8:
        nodes = [helper.make_node("Identity", ["tiles"], [images])]
    else:
        nodes = _normalising_nodes(info, images)
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in _constants(info).items()
        )
    nodes += [*graph.node, helper.make_node("Identity", [f"{_OWN}{output}"], ["features"])]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    shape: list[str | int | None] = ["batch", info.tile_px, info.tile_px, 3]
    graph.input.append(helper.make_tensor_value_info("tiles", TensorProto.UINT8, shape))
    graph.output.append(
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", info.dim])
    )
    return whole


def _constants(info: EncoderInfo) -> dict[str, npt.NDArray[np.float32]]:
    constants: dict[str, npt.NDArray[np.float32]] = {
        "mean": np.array(info.mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(info.std, np.float32).reshape(1, 3, 1, 1),
    }
    if info.resize is not None:
        matrix = resize_matrix(info.tile_px, info.resize.network_px, info.resize.interpolation)
        rows = matrix.numpy()
        constants |= {"resize_rows": rows, "resize_columns": np.ascontiguousarray(rows.T)}
        constants |= {"black": np.float32(0).reshape(1), "white": np.float32(255).reshape(1)}
    return constants


def _normalising_nodes(info: EncoderInfo, images: str) -> list[NodeProto]:
    nodes = [
        # Cast first: TensorRT can do nothing else with uint8.
        helper.make_node("Cast", ["tiles"], ["grey_levels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["grey_levels"], ["channels_first"], perm=[0, 3, 1, 2]),
    ]
    last = "channels_first"
    if info.resize is not None:
        nodes += [
            helper.make_node("MatMul", ["resize_rows", last], ["resized_rows"]),
            helper.make_node("MatMul", ["resized_rows", "resize_columns"], ["resized"]),
            helper.make_node("Max", ["resized", "black"], ["not_below_black"]),
            helper.make_node("Min", ["not_below_black", "white"], ["in_range"]),
        ]
        last = "in_range"
    return [
        *nodes,
        helper.make_node("Sub", [last, "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], [images]),
    ]


__all__ = ["with_preprocessing"]
