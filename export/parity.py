"""Whether an exported aggregator reproduces its model; the gates are those of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import ParityFailed

Float32 = npt.NDArray[np.float32]


def aggregator_parity(
    reference: Mapping[str, Float32], exported: Mapping[str, Float32]
) -> dict[str, float]:
    """Largest absolute differences between two sets of aggregator outputs of one bag.

    Only what the model has is reported: ``aggregator_logits`` (with bias and probabilities),
    ``aggregator_attention``, ``aggregator_contribution``; what is NaN counts as infinite.

    Raises:
        ParityFailed: an output has another shape.
    """
    report: dict[str, float] = {}
    for name, expected in reference.items():
        kind = name.removeprefix("coarse_").partition("_")[0]
        measure = f"aggregator_{kind if kind in ('attention', 'contribution') else 'logits'}"
        if exported[name].shape != expected.shape:
            raise ParityFailed(
                f"The exported graph's output {name} has shape {exported[name].shape}, the model's "
                f"{expected.shape}; report this with the model's configuration."
            )
        difference = float(np.abs(expected - exported[name]).max())
        report[measure] = max(report.get(measure, 0.0), inf if isnan(difference) else difference)
    return report


__all__ = ["aggregator_parity"]
