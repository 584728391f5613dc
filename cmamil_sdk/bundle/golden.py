"""The golden values of a bundle: inputs, and what the trained model answered to them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle.manifest import GOLDEN, Manifest
from cmamil_sdk.engines.parity import EncoderReference
from cmamil_sdk.errors import BundleCorrupt
from cmamil_sdk.files import read_listed

Arrays = dict[str, npt.NDArray[Any]]
Float32 = npt.NDArray[np.float32]

GOLDEN_MAX_DIFFERENCE: Mapping[str, float] = {"fp32": 2e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Per precision of the aggregator, what its outputs may differ in from the golden ones; an encoder must
pass the gate of its precision."""


@dataclass(frozen=True)
class Golden:
    """What ``golden.npz`` holds: the encoder's reference, the aggregator's inputs and outputs."""

    encoder: EncoderReference
    inputs: Arrays
    outputs: Arrays

    def aggregator_difference(self, found: Mapping[str, Float32]) -> float:
        """Over all outputs; infinite if one is missing or of another shape, NaN where one is NaN."""
        expected = self.outputs
        if any(n not in found or found[n].shape != value.shape for n, value in expected.items()):
            return float("inf")
        # np.max, unlike max(), keeps a NaN.
        return float(np.max([np.abs(value - found[n]).max() for n, value in expected.items()]))


def read_golden(root: Path, manifest: Manifest) -> Golden:
    """The golden values of the bundle at ``root``.

    Raises:
        BundleCorrupt: the file was exchanged, cannot be read, or lacks what the manifest promises.
    """
    path = root / GOLDEN
    data = read_listed(path, manifest.files[GOLDEN].sha256)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, TypeError, ValueError, AttributeError, BadZipFile) as problem:
        raise BundleCorrupt(
            f"{path} holds no golden values ({problem}); export the model again."
        ) from problem
    needed = {"encoder/in/tiles", "encoder/out/features", "aggregator/out/logits"}
    if not needed <= set(golden):
        raise BundleCorrupt(
            f"{path} lacks {', '.join(sorted(needed - set(golden)))}; export the model again."
        )
    found = Golden(
        EncoderReference(golden["encoder/in/tiles"], golden["encoder/out/features"]),
        _part(golden, "aggregator/in/"),
        _part(golden, "aggregator/out/"),
    )
    _check(found, root, manifest)
    return found


def _check(golden: Golden, root: Path, manifest: Manifest) -> None:
    n_labels, logits = len(manifest.labels), golden.outputs["logits"]
    if logits.shape != (1, n_labels):
        raise BundleCorrupt(
            f"{root}: the manifest names {n_labels} labels, the golden logits have shape "
            f"{logits.shape}; export the model again."
        )
    hierarchy = manifest.hierarchy
    n_coarse = len(hierarchy.coarse_labels) if hierarchy and manifest.has_coarse_level else 0
    coarse = golden.outputs.get("coarse_probabilities", np.zeros((1, 0)))
    if coarse.shape != (1, n_coarse):
        raise BundleCorrupt(
            f"{root}: the manifest promises {n_coarse} coarse labels, the golden coarse "
            f"probabilities have shape {coarse.shape}; export the model again."
        )
    lacking = [name for name in manifest.aggregator_outputs if name not in golden.outputs]
    if lacking:
        raise BundleCorrupt(
            f"{root}: the manifest promises {', '.join(lacking)}, which the golden values "
            "lack; export the model again."
        )


def _part(golden: Mapping[str, npt.NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): v for name, v in golden.items() if name.startswith(prefix)}


__all__ = ["GOLDEN_MAX_DIFFERENCE", "Golden", "read_golden"]
