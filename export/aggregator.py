"""A trained MIL model as one ONNX graph: bag in, calibrated probabilities and explanation out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cmamil_sdk.bundle.manifest import Explanation, aggregator_outputs
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import ParityFailed
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import CoarseOutput, MILOutput
from cmamil_sdk.tiling.recipe import Scale

from .graph import export_graph
from .parity import aggregator_parity, missed_gates
from .probe_bags import Arrays, probe_bag

MAX_TILES = 2**20
PARITY_FINEST_TILES = (1, 7, 513, 4096)


class AggregatorGraph(nn.Module):
    """A model with positional tensors: features per scale, then the index arrays it reads.

    ``coarse_temperature`` is that of the coarse logits; without it they are left out.
    """

    def __init__(
        self, model: MILModel, temperature: float, coarse_temperature: float | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.coarse_temperature = coarse_temperature

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return aggregator_outputs(
            self.model.scales,
            explanations_of(self.model),
            coarse=self.coarse_temperature is not None,
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of :attr:`output_names`."""
        scales, names = self.model.scales, self.model.index_names
        features = dict(zip(scales, tensors, strict=False))
        index = dict(zip(names, tensors[len(scales) :], strict=False))
        answer = self.model(features, index)
        outputs = _level(answer, self.temperature)
        if answer.coarse is not None and self.coarse_temperature is not None:
            coarse = _level(answer.coarse, self.coarse_temperature)
            outputs |= {f"coarse_{name}": tensor for name, tensor in coarse.items()}
        return tuple(outputs[name] for name in self.output_names)


def explanations_of(model: MILModel) -> tuple[Explanation, ...]:
    """What a model says of each tile."""
    has: dict[Explanation, bool] = {
        "attention": model.has_attention,
        "contribution": model.is_additive,
    }
    return tuple(name for name, present in has.items() if present)


def export_aggregator(
    model: MILModel,
    scales: Sequence[Scale],
    temperature: float,
    path: Path,
    *,
    coarse_temperature: float | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Write the graph and compare it with the model; returns the worst differences.

    Bags of 1, 7, 513 and 4,096 finest tiles are compared, on onnxruntime in float32, which is what runs
    aggregators.

    Raises:
        ParityFailed: the graph does not reproduce the model (``force``: in shape, or with NaN), or a bag
            size was baked in.
    """
    module = AggregatorGraph(model, temperature, coarse_temperature).eval()
    example = probe_bag(scales, model.feature_dim, finest_tiles=37, seed=1)
    names = [*(f"features_{s}" for s in model.scales), *model.index_names]
    dims = {
        s.name: torch.export.Dim(f"n_{s.name.replace('.', '_')}", min=1, max=MAX_TILES)
        for s in scales
    }
    export_graph(
        module,
        tuple(torch.from_numpy(example[name]) for name in names),
        path,
        inputs={name: {0: dims[name.partition("_")[2]]} for name in names},
        outputs=module.output_names,
        argument="tensors",
    )
    engine = load_engine(path, engine="onnxruntime", device="cpu")
    report: dict[str, float] = {}
    for finest_tiles in PARITY_FINEST_TILES:
        bag = probe_bag(scales, model.feature_dim, finest_tiles=finest_tiles, seed=finest_tiles)
        inputs = {name: bag[name] for name in names}
        found = aggregator_parity(eager_outputs(module, inputs), engine.infer(inputs))
        report = {name: max(value, report.get(name, 0.0)) for name, value in found.items()}
    missed = missed_gates(report)
    if missed and not (force and all(map(isfinite, report.values()))):
        raise ParityFailed(
            f"The exported aggregator does not reproduce its model: {missed}; use another model, or mark "
            "the bundle as failed with --force."
        )
    return report


def eager_outputs(module: AggregatorGraph, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Named outputs of the eager module, the reference."""
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(array) for array in inputs.values()))
    named = zip(module.output_names, outputs, strict=True)
    return {name: tensor.detach().numpy() for name, tensor in named}


def _level(answer: MILOutput | CoarseOutput, temperature: float) -> dict[str, Tensor]:
    outputs = {
        "logits": answer.logits,
        "probabilities": torch.softmax(answer.logits / temperature, dim=-1),
    }
    if answer.bias is not None:
        outputs["bias"] = answer.bias
    outputs |= {f"attention_{s}": rows for s, rows in (answer.attention or {}).items()}
    return outputs | {f"contribution_{s}": rows for s, rows in (answer.contribution or {}).items()}


__all__ = [
    "AggregatorGraph",
    "eager_outputs",
    "explanations_of",
    "export_aggregator",
]
