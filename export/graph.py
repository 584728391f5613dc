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
from torch import Tensor, nn

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
        with _quiet():
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; neither helps a user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
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


__all__ = ["export_graph"]
