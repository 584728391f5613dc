"""How well marks of pens are told from tissue, on pictures whose marks somebody painted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.slides.resample import reduce_by
from cmamil_sdk.tiling.pens import pen_marks
from cmamil_sdk.tiling.recipe import TissueRecipe

BoolMask = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]

_MASK = "_mask"


@dataclass(frozen=True)
class MarksFound:
    """Pen marks in one part of a picture; areas in cells.

    Attributes:
        picture: file name without suffix.
        part: ``upper`` or ``lower`` half.
        cells: of that part.
        found: taken for ink.
        marked: ink, says the mask; None without a mask.
        both: found and marked; None without a mask.
    """

    picture: str
    part: str
    cells: int
    found: int
    marked: int | None
    both: int | None

    @property
    def precision(self) -> float | None:
        """Share of what was found that is marked."""
        return self.both / self.found if self.both is not None and self.found else None

    @property
    def recall(self) -> float | None:
        """Share of what is marked that was found."""
        return self.both / self.marked if self.both is not None and self.marked else None


def measure_marks(folder: Path, *, um_per_px: float, min_um2: float) -> list[MarksFound]:
    """Find pen marks in each half of every PNG of a folder and below, and compare with its mask.

    The mask of ``x.png`` is ``x_mask.png``, not black where there is ink. Pictures are averaged over
    cells as slides are; each half is looked at by itself, so that one can be kept for reporting.

    Args:
        folder: holds the pictures.
        um_per_px: of the pictures.
        min_um2: the smallest mark, as ``pen_min_um2`` of a recipe.

    Raises:
        FieldInvalid: there are no PNG files, or ``um_per_px`` is not above 0.
    """
    if not um_per_px > 0:
        raise FieldInvalid(f"um_per_px is {um_per_px}; give micrometres per pixel.")
    pictures = [p for p in sorted(folder.rglob("*.png")) if not p.stem.endswith(_MASK)]
    if not pictures:
        raise FieldInvalid(f"There are no PNG files in {folder}; name a folder of pictures.")
    factor = max(1, round(TissueRecipe().cell_um / um_per_px))
    rows = []
    for path in pictures:
        rgb, marked = _cells(path, factor)
        half = len(rgb) // 2
        for part, place in (("upper", slice(0, half)), ("lower", slice(half, None))):
            found = pen_marks(rgb[place], cell_um=um_per_px * factor, min_um2=min_um2)
            there = None if marked is None else marked[place]
            rows.append(
                MarksFound(
                    picture=path.stem,
                    part=part,
                    cells=found.size,
                    found=int(found.sum()),
                    marked=None if there is None else int(there.sum()),
                    both=None if there is None else int((found & there).sum()),
                )
            )
    return rows


def _cells(path: Path, factor: int) -> tuple[UInt8, BoolMask | None]:
    """Mean colours of a picture's whole cells, and which are marked by more than half."""
    mask_path = path.with_name(f"{path.stem}{_MASK}.png")
    rgb = _averaged(path, factor)
    if not mask_path.is_file():
        return rgb, None
    return rgb, _averaged(mask_path, factor)[..., 0] > 127


def _averaged(path: Path, factor: int) -> UInt8:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = (edge // factor * factor for edge in pixels.shape[:2])
    return reduce_by(np.ascontiguousarray(pixels[:rows, :columns]), factor)


__all__ = ["MarksFound", "measure_marks"]
