"""The forms in which OpenVINO runs an encoder fastest: of so many tiles, large maps one tile at a time.

They compute what the graph says, in the same order, so features have the same bits; what changes is how
numbers lie and move. The graph itself is for every engine, and others are slower with such forms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

_MOST_TILES = 16
"""Of a form; as many as a call has on a CPU."""

_FEWER_TILES = 4
"""Of the form for what is left of a call, before the one of a single tile, which takes 1.4 times as long
for it as this one."""

_FORM_BYTES = 6 << 20
"""Most that the maps of one layer take in a form, so that they stay in the cache of all cores."""

_LARGE_MAP = 1 << 17
"""Numbers of a tile's map; two such maps in bf16 fill half of a core's cache."""

_CHANNELS_FIRST = [0, 3, 1, 2]
_BY_VALUE = {
    "Add": ops.add,
    "Divide": ops.divide,
    "Multiply": ops.multiply,
    "Subtract": ops.subtract,
}
_ATTENTION = ("ScaledDotProductAttention", "Softmax")
_LAYERS = ("AvgPool", "Convolution", "GroupConvolution", "MaxPool")
_BEHIND_LAYERS = ("Clamp", "Maximum", "Minimum", "Relu", *_BY_VALUE)


def has_form(model: ov.Model) -> bool:
    """Whether a model takes any number of tiles ``[n, px, px, 3]`` uint8, and gains from forms.

    One with attention does not: most of it gains nothing, and the runtime rounds at other places. Nor
    does one whose shapes depend on what is in the tiles.
    """
    if len(model.inputs) != 1 or model.input().element_type != ov.Type.u8:
        return False
    ranks = [port.partial_shape.rank for port in (*model.inputs, *model.outputs)]
    if any(rank.is_dynamic or rank.get_length() < 1 for rank in ranks):
        return False  # no encoder, as its gate is going to say
    batch, *tile = model.input().partial_shape
    rows = [output.partial_shape[0].is_dynamic for output in model.outputs]
    has_attention = any(node.get_type_name() in _ATTENTION for node in model.get_ops())
    is_tiles = batch.is_dynamic and len(tile) == 3 and all(axis.is_static for axis in tile)
    return is_tiles and all(rows) and not has_attention and _shapes_follow(model)


def _shapes_follow(model: ov.Model) -> bool:
    """Whether all shapes are known once the number of tiles is."""
    one = model.clone()
    _, *tile = one.input().partial_shape
    one.reshape([1, *tile])
    return all(
        output.get_partial_shape().is_static for node in one.get_ops() for output in node.outputs()
    )


def forms_of(model: ov.Model, bytes_per_number: int) -> list[ov.Model]:
    """``model``, which :func:`has_form`, for as many tiles at a time as suit it, and for fewer.

    Args:
        model: of any number of tiles.
        bytes_per_number: of a map, as it is going to be computed.
    """
    one = model.clone()
    largest = _largest_map(one, _prepare(one, 1))
    one.validate_nodes_and_infer_types()
    tiles = _MOST_TILES
    while tiles > 1 and tiles * bytes_per_number * largest > _FORM_BYTES:
        tiles //= 2
    counts = dict.fromkeys(count for count in (tiles, _FEWER_TILES) if 1 < count <= tiles)
    return [*(_form(model.clone(), count) for count in counts), one]


def _form(model: ov.Model, tiles: int) -> ov.Model:
    """``model`` for a number of tiles; changed in place."""
    front = _prepare(model, tiles)
    if front is not None:
        _tile_by_tile(model, front)
    model.validate_nodes_and_infer_types()
    return model


def _prepare(model: ov.Model, tiles: int) -> ov.Model | None:
    """Fix the number of tiles and normalise first; returns the layers of large maps, if there are any."""
    _, *tile = model.input().partial_shape
    model.reshape([tiles, *tile])
    images = _normalise_first(model)
    if any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        return None  # folding would make float32 of weights in int8
    manager = Manager()
    manager.register_pass(ConstantFolding())  # shapes are known now, and what follows from them
    manager.run_passes(model)
    last = _last_large(images)
    return None if last is None else ov.Model([last], model.get_parameters())


def _largest_map(model: ov.Model, front: ov.Model | None) -> int:
    """Numbers of the largest map of a tile behind ``front``."""
    before = set() if front is None else {node.get_name() for node in front.get_ops()}
    sizes: list[int] = [
        math.prod(output.get_shape()[1:])
        for node in model.get_ops()
        if node.get_type_name() != "Constant" and node.get_name() not in before
        for output in node.outputs()
    ]
    return max(sizes)


def _normalise_first(model: ov.Model) -> ov.Output:
    """Normalise tiles as they lie, and only then say that channels come first; returns what does.

    So nothing is moved, for layers work on channels last. Rows of pixels times channels are long, where
    three channels by themselves would fill a fifth of a vector.
    """
    tiles = model.input().get_node().output(0)
    transpose = _transposed(tiles)
    if transpose is None:
        return tiles
    _, _, width, channels = tiles.get_shape()
    rows = ops.reshape(tiles, [0, 0, width * channels], special_zero=True)
    value = ops.convert(rows, transpose.get_output_element_type(0).to_string())
    last = transpose.output(0)
    for node in _chain(last):
        factors = _per_channel(node, channels)
        if factors is None:
            break
        value = _BY_VALUE[node.get_type_name()](value, np.tile(factors, width)[None, None])
        last = node.output(0)
    pixels = ops.reshape(value, [0, 0, width, channels], special_zero=True)
    images = ops.transpose(pixels, _CHANNELS_FIRST).output(0)
    _replace(last, images)
    return images


def _transposed(tiles: ov.Output) -> ov.Node | None:
    """Where tiles, cast or not, change to channels first."""
    for node in _chain(tiles):
        if node.get_type_name() == "Transpose":
            order = node.input_value(1).get_node().data.tolist()
            return node if order == _CHANNELS_FIRST else None
        if node.get_type_name() != "Convert":
            return None
    return None


def _per_channel(node: ov.Node, channels: int) -> npt.NDArray[np.float32] | None:
    """The constant on the right of an operator, a number for each channel; None if it is no such."""
    constant = node.input_value(node.get_input_size() - 1).get_node()
    is_constant = node.get_type_name() in _BY_VALUE and constant.get_type_name() == "Constant"
    if not is_constant or constant.data.shape != (1, channels, 1, 1):
        return None
    factors: npt.NDArray[np.float32] = constant.data.reshape(channels)
    return factors


def _tile_by_tile(model: ov.Model, front: ov.Model) -> None:
    """Do ``front`` for one tile after the other.

    A map that a layer has just written is then still in the core's cache when the next reads it.
    """
    tiles, last = model.input().get_node().output(0), front.get_results()[0].input_value(0)
    count, *tile = tiles.get_shape()
    done = []
    for part in ops.split(tiles, 0, count).outputs():
        copy = front.clone()
        copy.reshape([1, *tile])
        _replace(copy.input().get_node().output(0), part)
        done.append(copy.get_results()[0].input_value(0))
    _replace(last, ops.concat(done, 0).output(0))


def _last_large(images: ov.Output) -> ov.Output | None:
    """What the last of the first layers gives whose maps are large; None if there is none.

    It goes into another layer: so none is cut from the activation that it does on the way.
    """
    taken, last = images, None
    for node in _chain(images):
        is_layer = node.get_type_name() in _LAYERS
        if is_layer and math.prod(taken.get_shape()[1:]) < _LARGE_MAP:
            break
        if not is_layer and node.get_type_name() not in _BEHIND_LAYERS:
            break
        taken = node.output(0)
        takers = [target.get_node().get_type_name() for target in taken.get_target_inputs()]
        if any(name in _LAYERS for name in takers):
            last = taken
    return last


def _chain(output: ov.Output) -> Iterator[ov.Node]:
    """The nodes behind ``output``, each of which takes the one before it and constants alone."""
    while True:
        targets = list(output.get_target_inputs())
        if len(targets) != 1:
            return
        node = targets[0].get_node()
        others = [value.get_node() for value in node.input_values() if value != output]
        is_branch = any(value.get_target_inputs() for value in node.outputs()[1:])
        if is_branch or any(other.get_type_name() != "Constant" for other in others):
            return
        yield node
        output = node.output(0)


def _replace(old: ov.Output, new: ov.Output) -> None:
    """Let everything that takes ``old`` take ``new``."""
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


__all__ = ["forms_of", "has_form"]
