"""What the outputs of an aggregator's graph say of one bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle.manifest import Manifest

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Aggregated:
    """The aggregator's answer for one bag; C classes, n tiles at a scale.

    Attributes:
        logits: ``[C]`` before the temperature; ``bias`` plus all contributions add up to it.
        bias: ``[C]``; None of a model without contributions.
        probabilities: ``[C]``, calibrated.
        attention: per scale ``[n]``, sums to 1; of the answered class, where each has its own; None
            of a model without attention.
        contribution: per scale ``[n, C]``; None of a model without contributions.
        seconds: time taken.
        coarse_probabilities: ``[Cc]``, calibrated, of a model with coarse labels: its own answer, or
            the sums of ``probabilities`` where it was not trained to give one.
    """

    logits: Float32
    bias: Float32 | None
    probabilities: Float32
    attention: Mapping[str, Float32] | None
    contribution: Mapping[str, Float32] | None
    seconds: float
    coarse_probabilities: Float32 | None = None


def is_finite(outputs: Mapping[str, Float32]) -> bool:
    """Whether a graph's logits, of both levels where there are two, are numbers."""
    answers = [outputs[name] for name in ("logits", "coarse_logits") if name in outputs]
    return all(np.isfinite(values).all() for values in answers)


def answer_of(outputs: Mapping[str, Float32], manifest: Manifest, *, seconds: float) -> Aggregated:
    """The answer in a graph's outputs, which took so many ``seconds``."""
    names = manifest.recipe.names
    additive = "contribution" in manifest.explanations
    return Aggregated(
        logits=outputs["logits"][0],
        bias=outputs["bias"][0] if additive else None,
        probabilities=outputs["probabilities"][0],
        attention=_attention(outputs, manifest),
        contribution={n: outputs[f"contribution_{n}"] for n in names} if additive else None,
        seconds=seconds,
        coarse_probabilities=_coarse_probabilities(outputs, manifest),
    )


def _coarse_probabilities(outputs: Mapping[str, Float32], manifest: Manifest) -> Float32 | None:
    hierarchy = manifest.hierarchy
    if hierarchy is None:
        return None
    if manifest.has_coarse_level:
        found: Float32 = outputs["coarse_probabilities"][0]
        return found
    return hierarchy.summed(outputs["probabilities"][0])


def _attention(outputs: Mapping[str, Float32], manifest: Manifest) -> dict[str, Float32] | None:
    """Per scale the row of the answered class, or the only one."""
    if "attention" not in manifest.explanations:
        return None
    maps = {n: outputs[f"attention_{n}"] for n in manifest.recipe.names}
    answered = int(outputs["probabilities"][0].argmax())
    return {n: rows[answered if len(rows) > 1 else 0] for n, rows in maps.items()}


__all__ = ["Aggregated", "answer_of", "is_finite"]
