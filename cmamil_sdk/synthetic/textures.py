"""Smooth noise, and the periodic textures from which stroma, secretion and cytoplasm are cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TEXTURE_PX = 1024
"""Edge of the periodic textures; a power of two, so that wrapping round is a bit mask."""

ORIENTATIONS = 64
"""Number of steps in which a fibre's direction, 0 to pi radians, is stored."""

_EOSIN_MEAN = 58.0
_EOSIN_SD = 13.0
_HAEMATOXYLIN_MEAN = 8.0
_BEND_PX = 60.0


@dataclass(frozen=True)
class TextureBank:
    """Periodic textures ``[1024, 1024]``; packed ones hold ``256 * haematoxylin + eosin``.

    ``secretion`` holds exactly the pixel values of ``stroma`` in another order, so that a patch of
    the one has the colours of a patch of the other and no colour count tells them apart.
    ``grain`` is a signed change of eosin amounts; ``orientation`` the fibre direction in steps.
    """

    stroma: NDArray[np.uint16]
    secretion: NDArray[np.uint16]
    grain: NDArray[np.int16]
    orientation: NDArray[np.uint8]


@lru_cache(maxsize=4)
def texture_bank(seed: int) -> TextureBank:
    """Draw the textures of ``seed``; kept for the life of the process."""
    rng = np.random.default_rng([seed, 100])
    fibres, direction = _fibres(rng)
    fine, coarse = _periodic_noise(rng, 1.3), _periodic_noise(rng, 5.0)
    relief = _standardised(0.8 * fibres + 0.5 * fine + 0.6 * coarse)
    eosin = np.clip(_EOSIN_MEAN + _EOSIN_SD * relief, 30, 110)
    haematoxylin = np.clip(_HAEMATOXYLIN_MEAN + 1.5 * relief + 1.5 * fine, 0, 20)
    stroma = (np.round(haematoxylin).astype(np.uint16) << 8) | np.round(eosin).astype(np.uint16)
    clouds = _periodic_noise(rng, 9.0) + 0.5 * _periodic_noise(rng, 2.0)
    secretion = np.empty(stroma.size, np.uint16)
    from_pale_to_dense = stroma.ravel()[np.argsort(stroma.ravel() & 0xFF, kind="stable")]
    secretion[np.argsort(clouds.ravel(), kind="stable")] = from_pale_to_dense
    grain = np.round(2.5 * _periodic_noise(rng, 1.5) + 2.5 * _periodic_noise(rng, 4.0))
    return TextureBank(
        stroma=stroma.astype(np.uint16),
        secretion=secretion.reshape(stroma.shape),
        grain=grain.astype(np.int16),
        orientation=direction,
    )


def smooth_noise(
    rng: np.random.Generator, height_px: int, width_px: int, cell_px: int
) -> NDArray[np.float32]:
    """Noise ``[height_px, width_px]`` of about unit variance that changes over ``cell_px``."""
    rows, columns = height_px // cell_px + 4, width_px // cell_px + 4
    coarse = rng.normal(size=(rows, columns)).astype(np.float32)
    box = (1.0, 1.0, 1.0 + width_px / cell_px, 1.0 + height_px / cell_px)
    image = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image) * np.float32(1.4)


def texture_index(rng: np.random.Generator, height_px: int, width_px: int) -> NDArray[np.int32]:
    """For each pixel ``[H, W]`` the flat texture index to take: a random offset, gently bent.

    Bending keeps a texture that repeats every 1,024 px from being seen to repeat.
    """
    down, across = (
        np.round(_BEND_PX * smooth_noise(rng, height_px, width_px, 400)).astype(np.int32)
        for _ in range(2)
    )
    offset_y, offset_x = rng.integers(0, TEXTURE_PX, 2)
    down += np.arange(offset_y, offset_y + height_px, dtype=np.int32)[:, None]
    across += np.arange(offset_x, offset_x + width_px, dtype=np.int32)
    wrap = TEXTURE_PX - 1
    down &= wrap
    down *= TEXTURE_PX
    across &= wrap
    down += across
    return down


def _fibres(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Two bundles of wavy fibres, and the direction of the one that shows at each pixel."""
    share = 1 / (1 + np.exp(-4 * _periodic_noise(rng, 60.0)))
    trains, directions = [], []
    along = np.arange(TEXTURE_PX) / TEXTURE_PX
    for steps in ((18, 52), (-46, 24)):
        turns = steps[0] * along + steps[1] * along[:, None]
        turns = turns + 1.6 * _periodic_noise(rng, 70.0) + 0.35 * _periodic_noise(rng, 14.0)
        strands = np.sin(2 * np.pi * turns) + 0.6 * np.sin(4 * np.pi * turns + 1.0)
        strength = np.clip(0.75 + 0.45 * _periodic_noise(rng, 24.0), 0.0, 1.6)
        trains.append(strength * strands)
        slope_y, slope_x = _periodic_slopes(turns, steps)
        directions.append(np.mod(np.arctan2(slope_y, slope_x) + np.pi / 2, np.pi))
    fibres = _standardised(share * trains[0] + (1 - share) * trains[1])
    direction = np.where(share > 0.5, directions[0], directions[1])
    return fibres, (direction * ORIENTATIONS / np.pi).astype(np.uint8) % ORIENTATIONS


def _periodic_slopes(
    turns: NDArray[np.float64], steps: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Change of ``turns`` over eight pixels down and across, continued round the edges."""
    reach = 4
    slope_y = np.roll(turns, -reach, 0) - np.roll(turns, reach, 0)
    slope_x = np.roll(turns, -reach, 1) - np.roll(turns, reach, 1)
    slope_y[:reach] += steps[1]
    slope_y[-reach:] += steps[1]
    slope_x[:, :reach] += steps[0]
    slope_x[:, -reach:] += steps[0]
    return slope_y, slope_x


def _periodic_noise(rng: np.random.Generator, sigma_px: float) -> NDArray[np.float64]:
    """Periodic Gaussian noise ``[1024, 1024]`` of unit variance, smoothed by ``sigma_px``."""
    spectrum = np.fft.rfft2(rng.normal(size=(TEXTURE_PX, TEXTURE_PX)))
    rows = np.exp(-2 * (np.pi * sigma_px * np.fft.fftfreq(TEXTURE_PX)) ** 2)
    columns = np.exp(-2 * (np.pi * sigma_px * np.fft.rfftfreq(TEXTURE_PX)) ** 2)
    spectrum *= rows[:, None] * columns
    return _standardised(np.fft.irfft2(spectrum, s=(TEXTURE_PX, TEXTURE_PX)))


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / values.std())
