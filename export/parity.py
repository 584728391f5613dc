"""How far an exported graph may be from the eager model, and the check.

The eager model in float32 is the one reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import ParityFailed

Float32 = npt.NDArray[np.float32]

GATES = {
    "encoder_cosine_worst": 0.99999,
    "encoder_centred_cosine_worst": 0.9999,
    "aggregator_logits": 1e-3,
    "aggregator_attention": 1e-4,
    "aggregator_contribution": 1e-3,
}
"""Cosines must reach their gate; absolute differences must not exceed theirs."""


def encoder_parity(reference: Float32, exported: Float32) -> dict[str, float]:
    """Cosine per tile of features ``[B, D]``, plain and after subtracting the mean feature.

    Plain cosine flatters, because all features share a large common part.

    Raises:
        ParityFailed: below the gates.
    """
    mean = reference.mean(axis=0)
    plain = _cosine(reference, exported)
    centred = _cosine(reference - mean, exported - mean)
    report = {
        "encoder_cosine_mean": float(plain.mean()),
        "encoder_cosine_worst": float(plain.min()),
        "encoder_centred_cosine_mean": float(centred.mean()),
        "encoder_centred_cosine_worst": float(centred.min()),
    }
    # Written so that NaN fails too.
    failed = [n for n, value in report.items() if n in GATES and not value >= GATES[n]]
    _refuse(failed, report)
    return report


def aggregator_parity(
    reference: Mapping[str, Float32], exported: Mapping[str, Float32]
) -> dict[str, float]:
    """Largest absolute differences between two sets of aggregator outputs of one bag.

    Only what the model has is reported.

    Raises:
        ParityFailed: above the gates.
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
        # np.fmax and max() would drop a NaN.
        report[measure] = float(np.maximum(report.get(measure, 0.0), difference))
    _refuse([name for name, value in report.items() if not value <= GATES[name]], report)
    return report


def _cosine(a: Float32, b: Float32) -> npt.NDArray[np.float64]:
    left, right = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: npt.NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-12)
    return cosines


def _refuse(failed: list[str], report: Mapping[str, float]) -> None:
    if failed:
        figures = ", ".join(f"{name} {report[name]:.6g} (gate {GATES[name]:g})" for name in failed)
        raise ParityFailed(
            f"The exported graph does not reproduce its model: {figures}; "
            "report this with the model's configuration."
        )


__all__ = ["GATES", "aggregator_parity", "encoder_parity"]
