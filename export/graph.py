"""torch.onnx with the settings that every graph of this package shares."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor, nn

from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.graphs import PRECISION_KEY
from cmamil_sdk.errors import ParityFailed

from .graph_form import OPSET


def export_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Mapping[str, Mapping[int, Any]],
    outputs: Sequence[str],
    argument: str,
) -> None:
    """Write ``module`` as one ONNX file whose named dimensions stay dynamic.

    Args:
        module: takes the example's tensors as ``*argument``, returns a tuple.
        example: one tensor per input; no dynamic dimension is 0 or 1 long.
        path: where the file goes; it appears when it is complete.
        inputs: name -> {axis: torch.export.Dim}, in the order of the example.
        outputs: names in the order of the returned tuple.
        argument: name of the module's variadic parameter.

    Raises:
        ParityFailed: a dimension that must be dynamic was baked in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # without gradients, which would go through scans as well
        with quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                example,
                str(temporary),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes={argument: tuple(dict(axes) for axes in inputs.values())},
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        _check_dynamic(temporary, inputs)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_dynamic(path: Path, inputs: Mapping[str, Mapping[int, Any]]) -> None:
    graph = onnx.load(path).graph
    shapes = {i.name: i.type.tensor_type.shape.dim for i in graph.input}
    for name, axes in inputs.items():
        if name not in shapes:
            raise ParityFailed(f"The exported graph lost its input {name}; report this model.")
        baked = [axis for axis in axes if not shapes[name][axis].dim_param]
        if baked:
            raise ParityFailed(
                f"The exported graph fixed axis {baked[0]} of input {name}, which must stay "
                "dynamic; report this model."
            )


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph, and of the bodies of its loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def inputs_of(node: NodeProto) -> Iterator[str]:
    """Names that a node takes, and those that its subgraphs take, from outside or within."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from inputs_of(inner)


def preprocessing_of(graph: GraphProto) -> list[NodeProto]:
    """The nodes from an encoder's ``tiles`` to its normalised images; none of another graph."""
    found: list[NodeProto] = []
    name = "tiles"
    while True:
        users = [node for node in graph.node if name in node.input]
        if len(users) != 1 or users[0].op_type == "Conv":
            return []
        found.append(users[0])
        if users[0].op_type == "Div":
            return found
        name = users[0].output[0]


def with_precision(model: ModelProto, precision: Precision) -> None:
    """Note in a graph that it is one in ``precision``."""
    model.metadata_props.add(key=PRECISION_KEY, value=precision)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; neither helps a user."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = [
    "all_nodes",
    "export_graph",
    "inputs_of",
    "preprocessing_of",
    "quiet",
    "with_precision",
]
