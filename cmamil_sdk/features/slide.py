"""One slide file to one feature file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import Engine
from cmamil_sdk.errors import FeatureFileInvalid, FieldInvalid
from cmamil_sdk.features.extract import extract_bag
from cmamil_sdk.features.file import (
    FeatureProvenance,
    read_feature_file,
    read_provenance,
    recipe_key,
    write_feature_file,
)
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.slides import ReaderName, open_slide
from cmamil_sdk.slides.unchanged import unchanged
from cmamil_sdk.tiling.mask_file import mask_file
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe

STAGES = ("open", "tissue", "decode", "encode", "write", "total")
"""Of a slide: opening and hashing it, planning its tiles, reading and encoding them, writing."""


_MAX_NAME_BYTES = 235
"""Most systems allow 255; while it is written, a file has a longer name."""


@dataclass(frozen=True)
class SlideFeatures:
    """What became of one slide.

    Attributes:
        path: its feature file.
        tiles: per scale, those that are in it.
        tiles_failed: tiles that could not be decoded.
        seconds: per stage of :data:`STAGES`; decode and encode are a worker's mean, so that the stages
            add up to about the total.
        resumed: the file was there, complete.
        replaced: a feature file of another recipe, slide or encoder, or a damaged one, was in its place.
        warnings: those of the slide's facts, of its scale for example.
    """

    path: Path
    tiles: dict[str, int]
    tiles_failed: int
    seconds: dict[str, float]
    resumed: bool
    replaced: bool = False
    warnings: tuple[str, ...] = ()


def feature_path(folder: Path, slide: Path) -> Path:
    """Where the features of ``slide`` go: ``<folder>/<slide id>.h5``."""
    return folder / f"{slide.stem}.h5"


def feature_file_name(slide_id: str) -> str:
    """``<slide id>.h5``.

    Raises:
        FieldInvalid: that is no name of a file, or too long for one.
    """
    name = f"{slide_id}.h5"
    if Path(name).name != name or "\0" in name or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise FieldInvalid(
            f"{slide_id!r} cannot name a feature file: it is too long, or has characters that no file "
            "name has; rename the slide."
        )
    return name


def extract_slide(
    slide: Path,
    folder: Path,
    *,
    recipe: TilingRecipe,
    encoder: EncoderInfo,
    engine: Engine,
    mpp: float | None = None,
    reader: ReaderName = "auto",
    workers: int | None = None,
    resume: bool = True,
    tissue_masks: Path | None = None,
    allow_empty: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SlideFeatures:
    """Write the feature file of one slide.

    Args:
        slide: the slide file.
        folder: where feature files are kept.
        recipe: scales, tile size and tissue.
        encoder: identity of the encoder in ``engine``.
        engine: the encoder.
        mpp: microns per pixel of level 0, overriding the file.
        reader: as :func:`~cmamil_sdk.slides.open_slide`; it changes no feature, but for cuCIM's
            rounding of JPEG 2000, and of JPEG where it decodes on a GPU (docs/reading.md).
        workers: threads, as :func:`~cmamil_sdk.features.extract.extract_bag`.
        resume: keep a complete file of the same slide, microns per pixel, mask, recipe and encoder.
        tissue_masks: for the tissue method ``mask``, the slide's mask or a folder of masks.
        allow_empty: a slide without tissue gets a file without tiles.
        on_progress: called with tiles done and tiles in all.

    Raises:
        FieldInvalid: the encoder takes tiles of another size, or masks are given and the recipe does not
            use them, or the other way round.
        InputError: the slide or its mask cannot be used, or changed meanwhile; nothing is written.
        OutputUnwritable: the feature file cannot be written.
    """
    if recipe.tile_px != encoder.tile_px:
        raise FieldInvalid(
            f"--tile-px {recipe.tile_px} does not fit encoder {encoder.id}, which takes "
            f"{encoder.tile_px}; use that tile size."
        )
    clock = _StageClock()
    target = folder / feature_file_name(slide.stem)
    with unchanged(slide), open_slide(slide, mpp=mpp, reader=reader) as opened:
        facts = opened.facts
        mask = None if tissue_masks is None else mask_file(tissue_masks, facts.slide_id)
        same = _Sameness(
            slide_sha256=sha256_of_file(slide),
            mask_sha256=None if mask is None else sha256_of_file(mask),
            recipe_key=recipe_key(recipe, encoder),
            mpp=facts.mpp,
        )
        done = _already_done(target, same, allow_empty=allow_empty) if resume else None
        clock.passed("open")
        if done is not None:
            return replace(done, seconds=clock.seconds(), warnings=facts.warnings)
        replaced = target.exists()
        plan = make_plan(opened, recipe, mask=mask, allow_empty=allow_empty)
        clock.passed("tissue")
        # While it is open, workers share what it has decoded, if it is a plain image.
        builder = extract_bag(plan, engine, encoder.dim, workers=workers, on_progress=on_progress)
        clock.note(builder.stage_seconds())
        bag = builder.finish()
    provenance = FeatureProvenance(
        slide_id=facts.slide_id,
        slide_sha256=same.slide_sha256,
        width=facts.width,
        height=facts.height,
        mpp=facts.require_mpp(),
        mpp_source=facts.mpp_source,
        reader=f"{facts.reader}: {builder.reader_reason}",
        recipe=recipe,
        encoder=encoder,
        engine=engine.info.label,
        engine_reason=engine.info.reason,
        tiles_failed=builder.tiles_failed,
        tissue_mask_sha256=same.mask_sha256,
    )
    clock.restart()
    write_feature_file(target, bag, provenance)
    clock.passed("write")
    return SlideFeatures(
        target,
        bag.counts(),
        builder.tiles_failed,
        clock.seconds(),
        resumed=False,
        replaced=replaced,
        warnings=facts.warnings,
    )


class _StageClock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def passed(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage], self._last = now - self._last, now

    def note(self, seconds: Mapping[str, float]) -> None:
        self._seconds |= seconds

    def restart(self) -> None:
        self._last = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._started}


@dataclass(frozen=True)
class _Sameness:
    """What must be equal for an old file to stand for a new one; ``mpp`` is None when unknown."""

    slide_sha256: str
    mask_sha256: str | None
    recipe_key: str
    mpp: float | None


def _already_done(target: Path, wanted: _Sameness, *, allow_empty: bool) -> SlideFeatures | None:
    if not target.is_file():
        return None
    try:
        stored = read_provenance(target)
        found = _Sameness(
            stored.slide_sha256, stored.tissue_mask_sha256, stored.recipe_key(), stored.mpp
        )
        if found != wanted:
            return None
        bag, _ = read_feature_file(target)
    except FeatureFileInvalid:
        return None  # it is made anew
    if bag.is_empty and not allow_empty:
        return None
    return SlideFeatures(target, bag.counts(), stored.tiles_failed, {}, resumed=True)


__all__ = ["STAGES", "SlideFeatures", "extract_slide", "feature_file_name", "feature_path"]
