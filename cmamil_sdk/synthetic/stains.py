"""Stain colours of a generated slide, and the step from stain amounts to RGB.

Stain amounts are uint8 maps in which 100 is an optical amount of 1; light passes both stains by the
Beer-Lambert law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HAEMATOXYLIN_OD = (0.563, 0.720, 0.406)
"""Mean optical density of haematoxylin per unit amount in red, green and blue (unit length)."""

EOSIN_OD = (0.216, 0.801, 0.558)
"""Mean optical density of eosin per unit amount in red, green and blue (unit length)."""

_VECTOR_SD = 0.05
_LOG_STRENGTH_SD = 0.15
_WHITE_RANGE = (238.0, 248.0)
_HAEMATOXYLIN_GAIN = 1.15
_EOSIN_GAIN = 0.9


@dataclass(frozen=True)
class SlideStain:
    """The staining of one slide; the law behind it knows nothing of the slide's class.

    ``white`` is the background's RGB (0 to 255); the two vectors are optical densities per unit
    amount, already multiplied by the slide's stain strength.
    """

    white: NDArray[np.float64]
    haematoxylin: NDArray[np.float64]
    eosin: NDArray[np.float64]


def draw_stain(rng: np.random.Generator) -> SlideStain:
    """Draw the staining of one slide."""
    white = rng.uniform(*_WHITE_RANGE, 3)
    vectors = []
    for mean_od, gain in ((HAEMATOXYLIN_OD, _HAEMATOXYLIN_GAIN), (EOSIN_OD, _EOSIN_GAIN)):
        vector = np.clip(np.asarray(mean_od) + rng.normal(0.0, _VECTOR_SD, 3), 0.02, None)
        strength = np.exp(rng.normal(0.0, _LOG_STRENGTH_SD))
        vectors.append(gain * strength * vector / np.linalg.norm(vector))
    return SlideStain(white, vectors[0], vectors[1])


def colour_table(stain: SlideStain) -> NDArray[np.uint32]:
    """Colour of every pair of stain amounts, ``[65536]``: index ``256 * h + e``, value packed RGBX.

    Packing four bytes in one number makes staining a slide a single look-up per pixel.
    """
    amount = np.arange(256) / 100.0
    density = (
        amount[:, None, None] * stain.haematoxylin + amount[None, :, None] * stain.eosin
    )  # [256, 256, 3]
    rgbx = np.zeros((256, 256, 4), np.uint8)
    rgbx[..., :3] = np.round(stain.white * np.exp(-density))
    return rgbx.reshape(-1).view(np.uint32)


def stain_pixels(
    haematoxylin: NDArray[np.uint8], eosin: NDArray[np.uint8], stain: SlideStain
) -> NDArray[np.uint8]:
    """RGB ``[H, W, 3]`` of the two stain maps ``[H, W]``."""
    index = haematoxylin.astype(np.uint16)
    index <<= 8
    index |= eosin
    packed = np.take(colour_table(stain), index)
    return np.ascontiguousarray(packed.view(np.uint8).reshape(*index.shape, 4)[..., :3])
