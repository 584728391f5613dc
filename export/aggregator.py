"""A trained MIL model as one ONNX graph: bag in, calibrated probabilities and explanation out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cmamil_sdk.bundle.bags import MAX_TILES
from cmamil_sdk.bundle.manifest import Explanation, aggregator_outputs
from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.parity import missed_gates
from cmamil_sdk.errors import ParityFailed
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import CoarseOutput, MILOutput
from cmamil_sdk.tiling.recipe import Scale

from .graph import export_graph
from .parity import aggregator_parity
from .probe_bags import Arrays, probe_bag
from .split import write_split

EXAMPLE_FINEST_TILES = 37
PARITY_FINEST_TILES = (1, 2, 7, 513, 4_096, 16_384)
"""Bags on which a graph is compared with its model."""
CHECKED_FINEST_TILES = (1, 7, 513)
"""Bags on which the model itself is compared with float64."""


class AggregatorGraph(nn.Module):
    """Models with positional tensors: features per scale, then the index arrays they read.

    Args:
        models: one, or several of one form that answer together: the outputs are the means of theirs,
            and the probabilities those of the mean logits.
        temperature: of the logits.
        coarse_temperature: of the coarse logits; without it they are left out.
    """

    def __init__(
        self,
        models: MILModel | Sequence[MILModel],
        temperature: float,
        coarse_temperature: float | None = None,
    ) -> None:
        super().__init__()
        members = [models] if isinstance(models, MILModel) else list(models)
        self.models = nn.ModuleList(members)
        self.scales = members[0].scales
        self.feature_dim = members[0].feature_dim
        self.index_names = members[0].index_names
        self.explanations = explanations_of(members[0])
        self.temperature = temperature
        self.coarse_temperature = coarse_temperature

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [*(f"features_{scale}" for scale in self.scales), *self.index_names]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return aggregator_outputs(
            self.scales, self.explanations, coarse=self.coarse_temperature is not None
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of :attr:`output_names`."""
        features = dict(zip(self.scales, tensors, strict=False))
        index = dict(zip(self.index_names, tensors[len(self.scales) :], strict=False))
        answers: list[MILOutput] = [model(features, index) for model in self.models]
        outputs = _mean_level(answers, self.temperature)
        coarse = [answer.coarse for answer in answers if answer.coarse is not None]
        if coarse and self.coarse_temperature is not None:
            level = _mean_level(coarse, self.coarse_temperature)
            outputs |= {f"coarse_{name}": tensor for name, tensor in level.items()}
        return tuple(outputs[name] for name in self.output_names)


def explanations_of(model: MILModel) -> tuple[Explanation, ...]:
    """What a model says of each tile."""
    has: dict[Explanation, bool] = {
        "attention": model.has_attention,
        "contribution": model.is_additive,
    }
    return tuple(name for name, present in has.items() if present)


def export_aggregator(
    models: MILModel | Sequence[MILModel],
    scales: Sequence[Scale],
    temperature: float,
    path: Path,
    *,
    coarse_temperature: float | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Write the graph and compare it with the model; returns the worst differences.

    Its two parts for bf16 are written beside it, if it multiplies wide features
    (:func:`~cmamil_sdk.export.split.write_split`), whatever this machine computes in.

    Bags of :data:`PARITY_FINEST_TILES` are compared, on onnxruntime in float32, which is what runs
    aggregators. Several models become one graph, as :class:`AggregatorGraph` says.

    Raises:
        ParityFailed: the graph does not reproduce the model (``force``: in shape, or with NaN), or a bag
            size was baked in; or the model's float32 outputs are not those of float64.
    """
    module = AggregatorGraph(models, temperature, coarse_temperature).eval()
    check_in_double(module, scales)
    example = probe_inputs(module, scales, finest_tiles=EXAMPLE_FINEST_TILES, seed=1)
    dims = {
        s.name: torch.export.Dim(f"n_{s.name.replace('.', '_')}", min=1, max=MAX_TILES)
        for s in scales
    }
    export_graph(
        module,
        tuple(torch.from_numpy(array) for array in example.values()),
        path,
        inputs={name: {0: dims[name.partition("_")[2]]} for name in example},
        outputs=module.output_names,
        argument="tensors",
    )
    report = compare_aggregator(path, module, scales)
    missed = missed_gates(report)
    if missed and not (force and all(map(isfinite, report.values()))):
        raise ParityFailed(
            f"The exported aggregator does not reproduce its model: {missed}; use another model, or mark "
            "the bundle as failed with --force."
        )
    write_split(path)
    return report


def check_in_double(module: AggregatorGraph, scales: Sequence[Scale]) -> None:
    """Refuse a model that is no reference.

    Its outputs must be as near to those of float64 as those of a graph in fp32 must be to its own.

    Raises:
        ParityFailed: they are not; says how far they are.
    """
    exact, report = copy.deepcopy(module).double(), dict[str, float]()
    for finest_tiles in CHECKED_FINEST_TILES:
        inputs = probe_inputs(module, scales, finest_tiles=finest_tiles, seed=finest_tiles)
        doubled = {
            n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in inputs.items()
        }
        found = aggregator_parity(eager_outputs(exact, doubled), eager_outputs(module, inputs))
        report = {name: max(value, report.get(name, 0.0)) for name, value in found.items()}
    missed = missed_gates(report)
    if missed:
        raise ParityFailed(
            f"The model's float32 answers are no reference: they differ from those of float64 by {missed}"
            "; check its weights and the standardisation of its features for extreme values."
        )


def compare_aggregator(
    path: Path, module: AggregatorGraph, scales: Sequence[Scale], precision: Precision = "fp32"
) -> dict[str, float]:
    """The worst differences of a graph, or of the one beside it in ``precision``, over all bag sizes.

    On onnxruntime, in bf16 on OpenVINO as well.

    Raises:
        EngineMissing: this machine does not compute in ``precision``.
    """
    name = "openvino" if precision == "bf16" else "onnxruntime"
    engine = load_engine(path, engine=name, device="cpu", precision=precision)
    report: dict[str, float] = {}
    for finest_tiles in PARITY_FINEST_TILES:
        inputs = probe_inputs(module, scales, finest_tiles=finest_tiles, seed=finest_tiles)
        found = aggregator_parity(eager_outputs(module, inputs), engine.infer(inputs))
        report = {name: max(value, report.get(name, 0.0)) for name, value in found.items()}
    return report


def eager_outputs(module: AggregatorGraph, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Named outputs of the eager module, the reference."""
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(array) for array in inputs.values()))
    named = zip(module.output_names, outputs, strict=True)
    return {name: tensor.detach().numpy() for name, tensor in named}


def _mean_level(
    answers: Sequence[MILOutput | CoarseOutput], temperature: float
) -> dict[str, Tensor]:
    """The named outputs of one level of labels, averaged over the models' answers."""
    members = [_additive_outputs(answer) for answer in answers]
    outputs = {name: _mean([member[name] for member in members]) for name in members[0]}
    return outputs | {"probabilities": torch.softmax(outputs["logits"] / temperature, dim=-1)}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors) if len(tensors) > 1 else total


def _additive_outputs(answer: MILOutput | CoarseOutput) -> dict[str, Tensor]:
    outputs = {"logits": answer.logits}
    if answer.bias is not None:
        outputs["bias"] = answer.bias
    outputs |= {f"attention_{s}": rows for s, rows in (answer.attention or {}).items()}
    return outputs | {f"contribution_{s}": rows for s, rows in (answer.contribution or {}).items()}


def probe_inputs(
    module: AggregatorGraph, scales: Sequence[Scale], *, finest_tiles: int, seed: int
) -> Arrays:
    """Those arrays of :func:`probe_bag` that ``module`` reads, in the order of its inputs."""
    bag = probe_bag(scales, module.feature_dim, finest_tiles=finest_tiles, seed=seed)
    return {name: bag[name] for name in module.input_names}


__all__ = [
    "AggregatorGraph",
    "check_in_double",
    "compare_aggregator",
    "eager_outputs",
    "explanations_of",
    "export_aggregator",
    "probe_inputs",
]
