"""Marks of felt pens on the glass: blue, green, black and red ink, told from stained tissue.

The rules look at optical density, ``-log10(intensity / 255)`` per channel, of colours averaged over
mask cells. Haematoxylin and eosin both absorb green light most. So what absorbs red light most is blue
or green ink; what absorbs all light about alike, and much of it, is black ink; and what absorbs blue
light about as much as green, but hardly any red, is red ink. They were made for H&E: other stains, for
example trichrome, may look like ink.

Ink is found where it is plain and followed from there to where it is faint. The numbers are what
``pens: exclude`` means in a recipe; other numbers would have to go by another name.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cmamil_sdk.tiling.channels import greatest_channel, least_channel
from cmamil_sdk.tiling.regions import drop_small, grow

UInt8 = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]

_BROWN_BLUE_OVER_GREEN = 1.2  # pigment, DAB and the ink of surgical margins absorb more blue


def pen_marks(rgb: UInt8, *, cell_um: float, min_um2: float) -> BoolMask:
    """Where there is ink, ``[rows, columns]``.

    Args:
        rgb: ``[rows, columns, 3]`` uint8, mean colour of each cell.
        cell_um: edge of a cell, micrometres.
        min_um2: what covers less is no mark of a pen, square micrometres.
    """
    density = -np.log10(np.maximum(rgb, 1).astype(np.float32) / 255)
    plain = (
        _black(density, least=0.40, evenness=0.75)
        | _blue_or_green(density, least=0.20, over_green=1.4)
        | _red(density, least=0.30, blue_over_green=0.68, red_over_blue=0.25)
    )
    faint = _blue_or_green(density, least=0.15, over_green=1.2) | _red(
        density, least=0.25, blue_over_green=0.65, red_over_blue=0.5
    )
    return drop_small(grow(plain, plain | faint), min_um2 / cell_um**2)


def _black(density: Float32, *, least: float, evenness: float) -> BoolMask:
    lowest = least_channel(density)
    black: BoolMask = (lowest >= least) & (lowest >= evenness * greatest_channel(density))
    return black


def _blue_or_green(density: Float32, *, least: float, over_green: float) -> BoolMask:
    red, green = density[..., 0], density[..., 1]
    cold: BoolMask = (red >= least) & (red >= over_green * green)
    return cold


def _red(
    density: Float32, *, least: float, blue_over_green: float, red_over_blue: float
) -> BoolMask:
    red, green, blue = np.moveaxis(density, -1, 0)
    pink_or_brown = (blue < blue_over_green * green) | (blue > _BROWN_BLUE_OVER_GREEN * green)
    warm: BoolMask = (green >= least) & (red <= red_over_blue * blue) & ~pink_or_brown
    return warm


__all__ = ["pen_marks"]
