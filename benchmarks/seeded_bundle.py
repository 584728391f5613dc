"""A bundle of the benchmarks' encoder and an untrained model: it predicts nothing, at the usual speed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmamil_sdk.export.bundle import export_bundle
from cmamil_sdk.export.encoder import load_encoder
from cmamil_sdk.files import write_json
from cmamil_sdk.models.build import build_model
from cmamil_sdk.runs import CheckpointMeta, fold_directory, save_checkpoint
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .seeded_encoder import ENCODER

_LABELS = ("a", "b")
_MODELS = {1: "abmil", 3: "cma-mil"}


@dataclass(frozen=True)
class _Slide:
    """A generated slide, which says of itself all there is to say."""

    path: Path
    mpp: float | None = None
    mask: Path | None = None
    label: str | None = None


def write_seeded_bundle(
    path: Path,
    scales: str,
    weights: Path,
    *,
    precisions: Sequence[str] = (),
    slides: Sequence[Path] = (),
) -> Path:
    """Write the bundle ``path`` (``.../<name>/<version>``) of a seeded model over ``scales``.

    ``slides`` calibrate int8 and judge ``precisions``, as ``cmamil export --calibration`` does.

    Raises:
        ParityFailed: a precision misses its gates.
    """
    encoder = load_encoder(ENCODER, weights).info
    names = scales.split(",")
    kind = _MODELS[len(names)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(
            kind, {"scales": names, "feature_dim": encoder.dim, "n_classes": len(_LABELS)}
        )
    meta = CheckpointMeta(
        model_kind=kind,
        hyperparameters=model.hyperparameters,
        labels=_LABELS,
        recipe=TilingRecipe(scales=parse_scales(scales)),
        encoder=encoder,
        fold=0,
        seed=0,
        temperature=1.0,
        metrics={"val_auc": 0.5},
    )
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        save_checkpoint(fold_directory(run, 0), meta, state)
        write_json(run / "metrics.json", {"folds": [{"fold": 0}]})
        return export_bundle(
            run,
            path.parent.parent,
            name=path.parent.name,
            version=path.name,
            fold=0,
            encoder_weights=weights,
            precisions=precisions,
            check_slides=[_Slide(slide) for slide in slides],
        )


__all__ = ["write_seeded_bundle"]
