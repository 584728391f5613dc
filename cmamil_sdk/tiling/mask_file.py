"""Tissue masks from files: a PNG or TIFF that shows the whole slide, small; not black is tissue."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmamil_sdk.errors import TissueMaskInvalid
from cmamil_sdk.slides.base import SlideFacts
from cmamil_sdk.tiling.geometry import ReadGeometry
from cmamil_sdk.tiling.low_power import CellGrid

BoolMask = npt.NDArray[np.bool_]

SUFFIXES = (".png", ".tif", ".tiff")
_ASPECT_TOLERANCE = 0.01
_FORMATS = ("PNG", "TIFF")  # JPEG would turn black into almost black
_MAX_MASK_PX = 2**27
# Black is 0 in each of them, alpha apart; of a palette, CMYK or YCbCr it is not.
_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "RGB", "RGBA")
# What Pillow raises on a file that is no picture, or a damaged one.
_UNREADABLE = (OSError, SyntaxError, ValueError)


def mask_file(place: Path, slide_id: str) -> Path:
    """The mask of a slide: ``place`` itself, or in a folder the one file with the slide's name.

    Raises:
        TissueMaskInvalid: there is none, or several.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise TissueMaskInvalid(
            f"There is no mask file or folder {place} for slide {slide_id}; check the path."
        )
    found = sorted(
        path
        for path in place.iterdir()
        if path.stem == slide_id and path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no mask"
        raise TissueMaskInvalid(
            f"{place} holds {names} for slide {slide_id}; put one file there, "
            f"{slide_id}{SUFFIXES[0]} or {SUFFIXES[1]}."
        )
    return found[0]


def read_mask(path: Path, facts: SlideFacts, geometry: ReadGeometry, grid: CellGrid) -> BoolMask:
    """Which cells are tissue, ``[rows, columns]``: where the mask is not 0 under a cell's centre.

    The mask covers the whole slide, not only its bounds. Transparency is ignored.

    Raises:
        TissueMaskInvalid: the file is missing or no picture, or its aspect ratio is not the slide's.
    """
    mask = _picture(path)
    height, width = mask.shape
    difference = abs(width * facts.height / (height * facts.width) - 1)
    # A thumbnail's edges are whole pixels, so a small one may miss the ratio by one of them.
    if difference > _ASPECT_TOLERANCE + 1 / min(width, height):
        raise TissueMaskInvalid(
            f"The mask {path} is {width} x {height}, its slide {facts.width} x {facts.height}: the "
            "aspect ratios differ; give a mask that covers the whole slide."
        )
    x = grid.centres(geometry, 0) * width / facts.width
    y = grid.centres(geometry, 1) * height / facts.height
    columns = np.minimum(x.astype(np.int64), width - 1)
    rows = np.minimum(y.astype(np.int64), height - 1)
    found: BoolMask = mask[rows[:, None], columns[None, :]]
    return found


def _picture(path: Path) -> BoolMask:
    """Where a picture is not black, ``[height, width]``."""
    try:
        with warnings.catch_warnings():
            # Masks of whole slides are large; the limit on them is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
        with image:
            _check_size(path, *image.size)
            flat = image if image.mode in _MODES else image.convert("RGB")
            bands = np.asarray(flat)
            coloured = bands[..., :-1] if flat.mode in ("LA", "RGBA") else bands
    except Image.DecompressionBombError as problem:
        raise _too_large(path) from problem
    except _UNREADABLE as problem:
        raise TissueMaskInvalid(
            f"The mask {path} cannot be read ({problem}); give a PNG or TIFF."
        ) from problem
    tissue: BoolMask = np.asarray(np.atleast_3d(coloured).any(axis=-1))
    return tissue


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > _MAX_MASK_PX:
        raise _too_large(path)


def _too_large(path: Path) -> TissueMaskInvalid:
    return TissueMaskInvalid(
        f"The mask {path} has more than {_MAX_MASK_PX / 1e6:.0f} million pixels; make it smaller: a "
        "pixel for each few micrometres is enough."
    )


__all__ = ["SUFFIXES", "mask_file", "read_mask"]
