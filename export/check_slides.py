"""Slides beside a run: those that calibrate int8, and those that a lower precision is judged on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import FieldInvalid, RunInvalid
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import read_csv
from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe
from cmamil_sdk.wording import counted

UInt8 = npt.NDArray[np.uint8]

CALIBRATION_TILES = 256
JUDGED_TILES = 128
_FEW_OF_A_BATCH = 8
_SEED = 0


class Slide(Protocol):
    """A slide file, and what was listed of it: as ``cmamil predict`` takes them."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of level 0, overriding the file."""
        ...

    @property
    def mask(self) -> Path | None:
        """Its tissue mask."""
        ...

    @property
    def label(self) -> str | None:
        """Its class, where the run does not know it."""
        ...


@dataclass(frozen=True)
class DealtSlides:
    """Which slide does what.

    Attributes:
        calibration: slides whose tiles set the scales of int8; none if it is not wanted.
        judged: other slides, whose answers are compared.
        labels: of those judged slides whose class is known, by slide id.
        are_held_out: whether the judged slides are test slides of all the folds.
    """

    calibration: tuple[Slide, ...]
    judged: tuple[Slide, ...]
    labels: Mapping[str, str]
    are_held_out: bool


def deal_slides(
    slides: Sequence[Slide],
    run: Path,
    folds: Sequence[int],
    *,
    labels: Sequence[str],
    calibrate: bool,
) -> DealtSlides:
    """Judge on slides that were tested in all the folds, and calibrate on others.

    Where there is none such among the slides, or no other, half of them are judged, drawn by a seed.

    Args:
        slides: those there are.
        run: whose ``splits.csv`` says which slide was tested where, and its label.
        folds: of the bundle's model.
        labels: that it knows.
        calibrate: whether int8 is wanted; else none calibrates.

    Raises:
        FieldInvalid: one slide alone is to calibrate and be judged, or the model knows no such class.
        RunInvalid: the run's ``splits.csv`` is damaged.
    """
    if calibrate and len(slides) < 2:
        raise FieldInvalid(
            "int8 is calibrated on some slides and judged on others, and --calibration names "
            f"{counted(len(slides), 'slide')}; name two or more."
        )
    tested, known = _read_splits(run, folds)
    judged = [slide for slide in slides if slide.path.stem in tested]
    are_held_out = bool(judged)
    if not calibrate:
        judged = judged or list(slides)
    elif not judged or len(judged) == len(slides):
        drawn = random.Random(_SEED).sample(range(len(slides)), len(slides) // 2)
        judged = [slides[number] for number in sorted(drawn)]
    classes = {slide.path.stem: slide.label or known.get(slide.path.stem) for slide in judged}
    for name, label in classes.items():
        if label is not None and label not in labels:
            raise FieldInvalid(
                f"--calibration gives slide {name} the class {label!r}, which the model does not know "
                f"(it knows {', '.join(labels)}); correct the list."
            )
    others = [slide for slide in slides if slide not in judged] if calibrate else []
    return DealtSlides(
        tuple(others),
        tuple(judged),
        {name: label for name, label in classes.items() if label is not None},
        are_held_out,
    )


def sample_tiles(slides: Sequence[Slide], recipe: TilingRecipe, count: int) -> UInt8:
    """About ``count`` tiles ``[N, px, px, 3]`` of slides, as many of each, of all scales as they occur.

    Raises:
        FieldInvalid: the recipe needs masks, and a slide has none.
        InputError: a slide cannot be used, or has no tissue.
    """
    for slide in slides:
        if recipe.tissue.method == "mask" and slide.mask is None:
            raise FieldInvalid(
                f"--calibration names {slide.path} without the mask that the run's recipe needs; list "
                "the slides in a CSV with the columns slide and mask."
            )
    wanted = -(-count // len(slides))
    return np.concatenate([_tiles_of(slide, recipe, wanted) for slide in slides])


def _tiles_of(slide: Slide, recipe: TilingRecipe, wanted: int) -> UInt8:
    rng = np.random.default_rng(_SEED)
    found: list[UInt8] = []
    with open_slide(slide.path, mpp=slide.mpp) as reader:
        batches = make_plan(reader, recipe, mask=slide.mask).batches()
        # A few of each batch, whose tiles lie side by side; of a small slide more.
        most = max(_FEW_OF_A_BATCH, -(-wanted // len(batches)))
        for number in rng.permutation(len(batches)).tolist():
            read = read_tiles(reader, batches[number])
            rows = rng.permutation(np.flatnonzero(read.ok))
            found.append(read.pixels[rows[:most]])
            if sum(map(len, found)) >= wanted:
                break
    return np.concatenate(found)[:wanted]


def _read_splits(run: Path, folds: Sequence[int]) -> tuple[set[str], dict[str, str]]:
    """Slides that were tested in all the folds, and every slide's label; none without ``splits.csv``."""
    path = run / "splits.csv"
    if not path.is_file():
        return set(), {}
    rows, columns = read_csv(path, error=RunInvalid)
    if not {"slide", "fold", "split", "label"} <= {*columns}:
        raise RunInvalid(f"{path} lacks a column; train again.")
    tested = [
        {r["slide"] for r in rows if (r["fold"], r["split"]) == (str(fold), "test")}
        for fold in folds
    ]
    return set.intersection(*tested), {row["slide"]: row["label"] for row in rows}


__all__ = [
    "CALIBRATION_TILES",
    "JUDGED_TILES",
    "DealtSlides",
    "Slide",
    "deal_slides",
    "sample_tiles",
]
