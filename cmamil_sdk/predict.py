"""A slide and a bundle make a prediction; the same code serves the command line and the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle import Aggregated, Bundle
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.features.extract import extract_bag
from cmamil_sdk.features.extracted import ExtractedSlide
from cmamil_sdk.features.isolated_encoder import memory_mb
from cmamil_sdk.machine import available_cores
from cmamil_sdk.slides import ReaderName, open_slide
from cmamil_sdk.slides.unchanged import unchanged
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.mask_file import mask_file
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe
from cmamil_sdk.wording import counted

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

STAGES = ("open", "tissue", "decode", "encode", "aggregate", "total")


@dataclass(frozen=True)
class ProgressEvent:
    """How far a prediction is: ``stage`` of :data:`STAGES`, units ``done`` of ``total``."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class TopTile:
    """One telling tile.

    ``x, y, size`` are level-0 pixels. ``score`` is the tile's share in the logit of the predicted
    class, less its mean share over all classes: positive speaks for the prediction.
    """

    scale: str
    x: int
    y: int
    size: int
    score: float


@dataclass(frozen=True)
class ScaleMap:
    """Every tile of one scale, for heatmaps.

    Attributes:
        scale: its name.
        size: edge of a tile, level-0 pixels.
        coords: ``[n, 2]`` int64 ``(x, y)`` of the top left corner, level-0 pixels.
        attention: ``[n]`` float32, sums to 1; of the predicted class, where each has its own; None
            of a model without attention.
        contribution: ``[n, C]`` float32, shares in the logits; None of a model without them.
    """

    scale: str
    size: float
    coords: Int64
    attention: Float32 | None
    contribution: Float32 | None


@dataclass(frozen=True)
class QualityReport:
    """How much of the slide an answer rests on; tiles are over all scales.

    Attributes:
        tiles_planned: of the grid, to be read: those read and those that failed.
        tiles_read: and encoded.
        tiles_failed: could not be decoded; the answer does without them.
        tiles_background: of the grid, left out as background or by the recipe's sample.
        reader, reader_reason: what decoded the tiles, and why it was chosen.
    """

    tiles_planned: int
    tiles_read: int
    tiles_failed: int
    tiles_background: int
    reader: str
    reader_reason: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of one slide, as ``cmamil predict --json`` prints it.

    ``probabilities`` and ``maps``' contributions are ordered as the bundle's labels, ``coarse`` as
    its coarse labels (None if it has none). ``seconds`` of decode and encode are per worker, so that
    the stages add up to about the total. ``feature_source`` says where a server had the features from:
    ``computed``, ``cached``, or ``coalesced`` (from another request that was at work on them).
    """

    slide: str
    label: str
    probabilities: dict[str, float]
    coarse: dict[str, float] | None
    tiles: dict[str, int]
    quality: QualityReport
    mpp: float
    mpp_source: str
    seconds: dict[str, float]
    engine: str
    bundle: str
    bundle_sha256: str
    top_tiles: tuple[TopTile, ...]
    warnings: tuple[str, ...]
    maps: tuple[ScaleMap, ...] = ()
    feature_source: str = field(default="computed", compare=False)

    @property
    def tiles_failed(self) -> int:
        """Tiles that could not be decoded."""
        return self.quality.tiles_failed

    def to_json(self) -> dict[str, Any]:
        """The document of this slide; maps are left out."""
        return {
            "slide": self.slide,
            "label": self.label,
            "probabilities": self.probabilities,
            "coarse": self.coarse,
            "tiles": self.tiles,
            "tiles_failed": self.tiles_failed,
            "quality": vars(self.quality),
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "engine": self.engine,
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "top_tiles": [vars(tile) for tile in self.top_tiles],
            "warnings": list(self.warnings),
        }


class LocalPredictor:
    """Predicts slides in this process."""

    def __init__(self, bundle: Bundle, *, workers: int | None = None) -> None:
        """Open the bundle's encoder; ``workers`` threads read and encode.

        By default that is one per core, and one where the encoder's GPU decodes.

        Raises:
            FieldInvalid: ``workers`` is below 1.
        """
        if workers is not None and workers < 1:
            raise FieldInvalid(f"workers is {workers}; give 1 or more.")
        self.bundle = bundle
        self._workers = workers
        self.workers = workers or available_cores()
        self._encoder = bundle.open_encoder(callers=self.workers)

    def predict(
        self,
        path: Path,
        *,
        mpp: float | None = None,
        reader: ReaderName = "auto",
        tissue_masks: Path | None = None,
        top_k: int = 16,
        cancel: threading.Event | None = None,
        on_progress: Callable[[ProgressEvent], None] | None = None,
    ) -> Prediction:
        """Predict one slide.

        Args:
            path: the slide file.
            mpp: microns per pixel of level 0, overriding the file.
            reader: as :func:`~cmamil_sdk.slides.open_slide`.
            tissue_masks: the slide's mask or a folder of masks, for a bundle that takes its tissue
                from such.
            top_k: how many telling tiles to name.
            cancel: checked between batches.
            on_progress: called in this thread.

        Raises:
            FieldInvalid: ``top_k`` is negative, ``mpp`` implausible, or masks are given and the
                bundle does not use them, or the other way round.
            InputError: the slide or its mask cannot be used, or changed meanwhile.
            Cancelled: ``cancel`` was set.
        """
        if top_k < 0:
            raise FieldInvalid(f"top_k is {top_k}; give 0 or more.")
        report = on_progress or (lambda _event: None)
        started = time.perf_counter()
        seconds: dict[str, float] = {}
        with unchanged(path), open_slide(path, mpp=mpp, reader=reader) as slide:
            report(ProgressEvent("open", 1, 1))
            seconds["open"] = time.perf_counter() - started
            mask = None if tissue_masks is None else mask_file(tissue_masks, slide.facts.slide_id)
            plan = make_plan(slide, self.bundle.manifest.recipe, mask=mask)
            self.bundle.check_size(plan.counts(), plan.facts.path)
            report(ProgressEvent("tissue", 1, 1))
            seconds["tissue"] = time.perf_counter() - started - seconds["open"]
            # While it is open, workers share what it has decoded, if it is a plain image.
            builder = extract_bag(
                plan,
                self._encoder,
                self.bundle.manifest.encoder.dim,
                workers=self._workers,
                cancel=cancel,
                on_progress=lambda done, total: report(ProgressEvent("encode", done, total)),
            )
            extracted = builder.extracted()
        seconds |= builder.stage_seconds()
        aggregated = self.bundle.aggregate(extracted.bag)
        report(ProgressEvent("aggregate", 1, 1))
        seconds["aggregate"] = aggregated.seconds
        seconds["total"] = time.perf_counter() - started
        return build_prediction(extracted, aggregated, self.bundle, seconds=seconds, top_k=top_k)

    def memory_mb(self, measure: Callable[[int | None], float]) -> float:
        """Memory of this process and the encoder's, MB; ``measure`` is :func:`rss_mb` or its peak."""
        return memory_mb(self._encoder, measure)

    def close(self) -> None:
        """Release the encoder."""
        self._encoder.close()


def build_prediction(
    extracted: ExtractedSlide,
    aggregated: Aggregated,
    bundle: Bundle,
    *,
    seconds: Mapping[str, float],
    top_k: int,
) -> Prediction:
    """Put the answer for one slide together."""
    labels, facts = bundle.manifest.labels, extracted.facts
    winner = int(np.argmax(aggregated.probabilities))
    attention, contribution = aggregated.attention, aggregated.contribution
    maps = tuple(
        ScaleMap(
            scale=name,
            size=size,
            coords=extracted.bag.coords[name],
            attention=None if attention is None else attention[name],
            contribution=None if contribution is None else contribution[name],
        )
        for name, size in extracted.tile_size_level0.items()
    )
    warnings = [*bundle.warnings, *facts.warnings]
    coarse = _coarse_answer(aggregated, bundle)
    warnings += _on_the_coarse_answer(coarse, winner, bundle)
    if top_k and contribution is None:
        warnings.append(
            f"Model {bundle.manifest.model_kind} does not say which tiles its answer comes from; "
            "none are named."
        )
    if extracted.tiles_failed:
        total = counted(extracted.total_planned, "tile")
        warnings.append(f"{extracted.tiles_failed} of {total} could not be decoded.")
    return Prediction(
        slide=facts.slide_id,
        label=labels[winner],
        probabilities={
            label: float(p) for label, p in zip(labels, aggregated.probabilities, strict=True)
        },
        coarse=coarse,
        tiles=extracted.bag.counts(),
        quality=_quality(extracted, bundle.manifest.recipe),
        mpp=facts.require_mpp(),
        mpp_source=facts.mpp_source,
        seconds=dict(seconds),
        engine=bundle.engine_label,
        bundle=bundle.label,
        bundle_sha256=bundle.sha256,
        top_tiles=top_tiles(maps, winner, top_k),
        warnings=tuple(warnings),
        maps=maps,
    )


def _quality(extracted: ExtractedSlide, recipe: TilingRecipe) -> QualityReport:
    facts, planned = extracted.facts, extracted.total_planned
    return QualityReport(
        tiles_planned=planned,
        tiles_read=planned - extracted.tiles_failed,
        tiles_failed=extracted.tiles_failed,
        tiles_background=read_geometry(facts, recipe).tiles_in_bounds() - planned,
        reader=facts.reader,
        reader_reason=facts.reader_reason,
    )


def _coarse_answer(aggregated: Aggregated, bundle: Bundle) -> dict[str, float] | None:
    hierarchy, values = bundle.manifest.hierarchy, aggregated.coarse_probabilities
    if hierarchy is None or values is None:
        return None
    return {name: float(p) for name, p in zip(hierarchy.coarse_labels, values, strict=True)}


def _on_the_coarse_answer(
    coarse: dict[str, float] | None, winner: int, bundle: Bundle
) -> list[str]:
    """Warnings if the coarse answer is not the model's own, and if it is not the fine one's parent."""
    hierarchy = bundle.manifest.hierarchy
    if coarse is None or hierarchy is None:
        return []
    warnings = []
    if not bundle.manifest.has_coarse_level:
        warnings.append(
            "The coarse probabilities are sums of the labels' own: no coarse loss trained this model."
        )
    answer, parent = max(coarse, key=coarse.__getitem__), hierarchy.parent_label(winner)
    if answer != parent:
        warnings.append(
            f"The two levels disagree: {bundle.manifest.labels[winner]} belongs to {parent}, the "
            f"coarse answer is {answer}."
        )
    return warnings


def evidence(scale_map: ScaleMap, class_index: int) -> Float32:
    """Evidence ``[n]`` of each tile for a class: its share in the logit, less its mean share.

    Adding the same amount to all logits changes no probability; evidence is free of such amounts.

    Raises:
        FieldInvalid: the model does not say what its tiles contribute.
    """
    contribution = scale_map.contribution
    if contribution is None:
        raise FieldInvalid(
            "This model does not say which tiles its answer comes from, so there is no evidence to "
            "show; leave out heatmaps, or use a model that has contributions."
        )
    found: Float32 = contribution[:, class_index] - contribution.mean(axis=1)
    return found


def top_tiles(maps: tuple[ScaleMap, ...], class_index: int, count: int) -> tuple[TopTile, ...]:
    """The ``count`` tiles of most evidence over all scales, most first; ties by scale and row.

    There are none of a model without contributions.
    """
    if any(scale_map.contribution is None for scale_map in maps):
        return ()
    scores = np.concatenate([evidence(scale_map, class_index) for scale_map in maps])
    coords = np.concatenate([scale_map.coords for scale_map in maps])
    owner = np.repeat(np.arange(len(maps)), [len(scale_map.coords) for scale_map in maps])
    return tuple(
        TopTile(
            scale=maps[owner[tile]].scale,
            x=int(coords[tile, 0]),
            y=int(coords[tile, 1]),
            size=round(maps[owner[tile]].size),
            score=float(scores[tile]),
        )
        for tile in np.argsort(-scores, kind="stable")[:count]
    )


__all__ = [
    "STAGES",
    "LocalPredictor",
    "Prediction",
    "ProgressEvent",
    "QualityReport",
    "ScaleMap",
    "TopTile",
    "build_prediction",
    "evidence",
    "top_tiles",
]
