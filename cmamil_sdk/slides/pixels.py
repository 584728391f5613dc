"""From the channels that a file stores to red, green and blue on white."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

_STRIP_ROWS = 1024


def on_white(rgba: UInt8) -> UInt8:
    """Drop alpha from ``[H, W, 4]``; what is transparent becomes white."""
    alpha = rgba[..., 3:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint16)
    blended = (rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return blended.astype(np.uint8)


def rgb_of(pixels: UInt8) -> UInt8:
    """RGB ``[H, W, 3]`` of grey, grey and alpha, RGB, or RGB and alpha.

    Args:
        pixels: ``[H, W]`` or ``[H, W, 1 to 4]``.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    height, width, channels = pixels.shape
    if channels == 3:
        return pixels
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    # In strips: blending takes eight times the memory of what it blends.
    for first in range(0, height, _STRIP_ROWS):
        strip = pixels[first : first + _STRIP_ROWS]
        if channels == 2:
            strip = strip[..., [0, 0, 0, 1]]
        rgb[first : first + _STRIP_ROWS] = strip if channels == 1 else on_white(strip)
    return rgb


def turned(pixels: UInt8, orientation: int) -> UInt8:
    """The picture as a viewer shows it, given EXIF's ``orientation`` of the stored one, 1 to 8.

    Source: TIFF 6.0, tag Orientation: where the stored row 0 and column 0 lie in the picture.
    """
    if orientation >= 5:  # row 0 is a side of the picture
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


__all__ = ["on_white", "rgb_of", "turned"]
