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
_MOST_OF_A_BATCH = 8
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
        are_held_out: whether the judged slides are test slides of the fold.
    """

    calibration: tuple[Slide, ...]
    judged: tuple[Slide, ...]
    labels: Mapping[str, str]
    are_held_out: bool


def deal_slides(slides: Sequence[Slide], run: Path, fold: int, *, calibrate: bool) -> DealtSlides:
    """Judge on the fold's test slides, and calibrate on others.

    Where none of the slides, or all, were tested in the fold, half of them are judged, drawn by a seed.

    Raises:
        FieldInvalid: one slide alone is to calibrate and be judged.
        RunInvalid: the run's ``splits.csv`` is damaged.
    """
    if calibrate and len(slides) < 2:
        raise FieldInvalid(
            "int8 is calibrated on some slides and judged on others, and --calibration names "
            f"{counted(len(slides), 'slide')}; name two or more."
        )
    known = _rows_of_fold(run, fold)
    judged = [slide for slide in slides if known.get(slide.path.stem, ("", ""))[0] == "test"]
    are_held_out = bool(judged)
    if not calibrate:
        judged = judged or list(slides)
    elif not judged or len(judged) == len(slides):
        drawn = random.Random(_SEED).sample(list(slides), len(slides) // 2)
        judged = [slide for slide in slides if slide in drawn]
    labels = {
        slide.path.stem: label
        for slide in judged
        if (label := slide.label or known.get(slide.path.stem, ("", ""))[1])
    }
    others = [slide for slide in slides if slide not in judged] if calibrate else []
    return DealtSlides(tuple(others), tuple(judged), labels, are_held_out)


def sample_tiles(slides: Sequence[Slide], recipe: TilingRecipe, count: int) -> UInt8:
    """About ``count`` tiles ``[N, px, px, 3]`` of slides, as many of each, of all scales as they occur.

    Raises:
        InputError: a slide cannot be used, or has no tissue.
    """
    wanted = -(-count // len(slides))
    return np.concatenate([_tiles_of(slide, recipe, wanted) for slide in slides])


def _tiles_of(slide: Slide, recipe: TilingRecipe, wanted: int) -> UInt8:
    rng = np.random.default_rng(_SEED)
    found: list[UInt8] = []
    with open_slide(slide.path, mpp=slide.mpp) as reader:
        batches = make_plan(reader, recipe, mask=slide.mask).batches()
        for number in rng.permutation(len(batches)).tolist():
            read = read_tiles(reader, batches[number])
            rows = rng.permutation(np.flatnonzero(read.ok))
            # A few of each batch, whose tiles lie side by side.
            found.append(read.pixels[rows[:_MOST_OF_A_BATCH]])
            if sum(map(len, found)) >= wanted:
                break
    return np.concatenate(found)[:wanted]


def _rows_of_fold(run: Path, fold: int) -> dict[str, tuple[str, str]]:
    """Part and label of each slide of a fold; none of a run without ``splits.csv``."""
    path = run / "splits.csv"
    if not path.is_file():
        return {}
    rows, columns = read_csv(path, error=RunInvalid)
    if not {"slide", "fold", "split", "label"} <= {*columns}:
        raise RunInvalid(f"{path} lacks a column; train again.")
    return {row["slide"]: (row["split"], row["label"]) for row in rows if row["fold"] == str(fold)}


__all__ = ["CALIBRATION_TILES", "JUDGED_TILES", "DealtSlides", "Slide", "deal_slides", "sample_tiles"]
