"""One slide file to one feature file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import Engine
from cmamil_sdk.errors import FeatureFileInvalid, FieldInvalid
from cmamil_sdk.features.extract import extract_bag
from cmamil_sdk.features.file import (
    UNREADABLE,
    FeatureProvenance,
    read_provenance,
    recipe_key,
    write_feature_file,
)
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.slides import ReaderName, open_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe


@dataclass(frozen=True)
class SlideFeatures:
    """What became of one slide: tiles per scale, tiles lost, seconds; ``resumed`` if it was there."""

    path: Path
    tiles: dict[str, int]
    tiles_failed: int
    seconds: float
    resumed: bool


def feature_path(folder: Path, slide: Path) -> Path:
    """Where the features of ``slide`` go: ``<folder>/<slide id>.h5``."""
    return folder / f"{slide.stem}.h5"


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
        reader: as :func:`~cmamil_sdk.slides.open_slide`; it changes no feature.
        workers: threads, one per core by default.
        resume: keep a complete file of the same slide, microns per pixel, recipe and encoder.
        on_progress: called with tiles done and tiles in all.

    Raises:
        FieldInvalid: the encoder takes tiles of another size.
        InputError: the slide cannot be used; nothing is written.
    """
    if recipe.tile_px != encoder.tile_px:
        raise FieldInvalid(
            f"--tile-px {recipe.tile_px} does not fit encoder {encoder.id}, which takes "
            f"{encoder.tile_px}; use that tile size."
        )
    started = time.perf_counter()
    target = feature_path(folder, slide)
    with open_slide(slide, mpp=mpp, reader=reader) as opened:
        digest = sha256_of_file(slide)
        done = _already_done(target, digest, recipe, encoder, opened.facts.mpp) if resume else None
        if done is not None:
            return done
        plan = make_plan(opened, recipe)
        facts = opened.facts
    builder = extract_bag(plan, engine, encoder.dim, workers=workers, on_progress=on_progress)
    bag = builder.finish()
    provenance = FeatureProvenance(
        slide_id=facts.slide_id,
        slide_sha256=digest,
        width=facts.width,
        height=facts.height,
        mpp=facts.require_mpp(),
        mpp_source=facts.mpp_source,
        reader=f"{facts.reader}: {facts.reader_reason}",
        recipe=recipe,
        encoder=encoder,
        engine=engine.info.label,
        tiles_failed=builder.tiles_failed,
    )
    write_feature_file(target, bag, provenance)
    return SlideFeatures(
        target, bag.counts(), builder.tiles_failed, time.perf_counter() - started, resumed=False
    )


def _already_done(
    target: Path, digest: str, recipe: TilingRecipe, encoder: EncoderInfo, mpp: float | None
) -> SlideFeatures | None:
    if not target.is_file():
        return None
    try:
        stored = read_provenance(target)
        with h5py.File(target, "r") as file:
            counts = {n: len(file[f"scales/{n}/features"]) for n in stored.recipe.names}
    except (FeatureFileInvalid, *UNREADABLE):
        return None
    same = (stored.slide_sha256, stored.recipe_key()) == (digest, recipe_key(recipe, encoder))
    if not same or stored.mpp != mpp:
        return None
    return SlideFeatures(target, counts, stored.tiles_failed, 0.0, resumed=True)


__all__ = ["SlideFeatures", "extract_slide", "feature_path"]
