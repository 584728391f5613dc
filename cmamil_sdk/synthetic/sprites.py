"""Nuclei drawn once and stamped many times: one bank of sprites per kind of nucleus.

A sprite is a small uint8 map of haematoxylin amounts (100 = 1). Development and held-out slides
take their sprites from different banks, so no claim rests on having seen the same nucleus before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Sprite = NDArray[np.uint8]

_SPRITES_PER_KIND = 240


@dataclass(frozen=True)
class NucleusKind:
    """Law of one kind of nucleus: ranges are uniform, lengths in pixels at 20x."""

    radius_px: tuple[float, float]
    aspect: tuple[float, float]
    amount: tuple[float, float]
    outline_sd: float
    chromatin_sd: float
    nucleoli: int


NUCLEUS_KINDS: dict[str, NucleusKind] = {
    "normal": NucleusKind((6.0, 7.5), (1.0, 1.25), (70, 95), 0.03, 0.10, 0),
    "stromal": NucleusKind((4.5, 6.0), (1.8, 3.0), (70, 100), 0.03, 0.10, 0),
    "lymphocyte": NucleusKind((4.8, 5.8), (1.0, 1.15), (115, 140), 0.02, 0.10, 0),
    "abnormal": NucleusKind((10.0, 15.0), (1.0, 1.5), (95, 150), 0.11, 0.22, 2),
}


@dataclass(frozen=True)
class SpriteBank:
    """Sprites by kind; those of ``stromal`` lie in order of their long axis, 0 to pi radians."""

    normal: tuple[Sprite, ...]
    stromal: tuple[Sprite, ...]
    lymphocyte: tuple[Sprite, ...]
    abnormal: tuple[Sprite, ...]


@lru_cache(maxsize=4)
def sprite_bank(seed: int) -> SpriteBank:
    """Draw the bank of ``seed``; kept for the life of the process."""
    drawn = {
        name: _draw_kind(kind, np.random.default_rng([seed, index]))
        for index, (name, kind) in enumerate(NUCLEUS_KINDS.items())
    }
    return SpriteBank(**drawn)


def stamp(amounts: NDArray[np.uint8], sprite: Sprite, x: float, y: float) -> None:
    """Stamp ``sprite`` on the haematoxylin map ``[H, W]``, its middle at ``(x, y)``, in place.

    What lies outside the map is cut off; where nuclei overlap the darker one shows.
    """
    height, width = sprite.shape
    left, top = round(x) - width // 2, round(y) - height // 2
    right, bottom = left + width, top + height
    if left >= 0 and top >= 0 and right <= amounts.shape[1] and bottom <= amounts.shape[0]:
        target = amounts[top:bottom, left:right]
        np.maximum(target, sprite, out=target)
        return
    target = amounts[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    part = sprite[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    np.maximum(target, part, out=target)


def _draw_kind(kind: NucleusKind, rng: np.random.Generator) -> tuple[Sprite, ...]:
    """Draw all sprites of one kind at once, ``[n, size, size]``, then trim each to its nucleus."""
    count = _SPRITES_PER_KIND
    half_px = int(np.ceil(kind.radius_px[1] * np.sqrt(kind.aspect[1]) * (1 + 3 * kind.outline_sd)))
    half_px += 2
    axis = np.arange(-half_px, half_px + 1, dtype=np.float64)
    radius = rng.uniform(*kind.radius_px, (count, 1, 1))
    stretch = np.sqrt(rng.uniform(*kind.aspect, (count, 1, 1)))
    tilt = np.pi * (np.arange(count) + rng.uniform(0, 1, count))[:, None, None] / count
    along = (axis * np.cos(tilt) + axis[:, None] * np.sin(tilt)) / stretch
    across = (axis[:, None] * np.cos(tilt) - axis * np.sin(tilt)) * stretch
    distance = np.hypot(along, across)
    angle = np.arctan2(across, along)
    edge = radius * (1 + _outline_noise(angle, kind.outline_sd, rng))
    cover = np.clip((edge - distance) / 1.2 + 0.5, 0.0, 1.0)
    depth = np.clip(distance / edge, 0.0, 1.0)
    membrane = 0.82 + 0.26 * depth**3
    chromatin = 1 + kind.chromatin_sd * np.clip(_grain(rng, count, axis.size), -2.0, 2.0)
    body = rng.uniform(*kind.amount, (count, 1, 1)) * membrane * chromatin
    body = np.maximum(body, _nucleoli(kind, axis, radius, rng))
    sprites = np.clip(np.round(cover * body), 0, 200).astype(np.uint8)
    return tuple(_trimmed(sprite) for sprite in sprites)


def _outline_noise(
    angle: NDArray[np.float64], sd: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Relative change of the radius along the outline: four harmonics of falling weight."""
    noise = np.zeros_like(angle)
    for order in range(2, 6):
        weight = rng.normal(0.0, sd / np.sqrt(order - 1), (angle.shape[0], 1, 1))
        phase = rng.uniform(0, 2 * np.pi, (angle.shape[0], 1, 1))
        noise += weight * np.cos(order * angle + phase)
    return np.clip(noise, -3 * sd, 3 * sd)


def _grain(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """Chromatin clumps: noise of unit variance, correlated over about three pixels."""
    noise = rng.normal(size=(count, size + 2, size + 2))
    rows = noise[:, :-2] + noise[:, 1:-1] + noise[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 3.0


def _nucleoli(
    kind: NucleusKind,
    axis: NDArray[np.float64],
    radius: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Amounts of zero to ``kind.nucleoli`` dark round spots in each nucleus."""
    count = radius.shape[0]
    spots = np.zeros((count, axis.size, axis.size))
    for index in range(kind.nucleoli):
        centre = rng.uniform(-0.4, 0.4, (count, 2, 1, 1)) * radius[:, None]
        spot_px = rng.uniform(1.8, 3.0, (count, 1, 1))
        distance = np.hypot(axis - centre[:, 0], axis[:, None] - centre[:, 1])
        present = rng.uniform(size=(count, 1, 1)) < 0.7 / (index + 1)
        spots = np.maximum(spots, present * 170.0 * np.clip(spot_px - distance + 0.5, 0.0, 1.0))
    return spots


def _trimmed(sprite: Sprite) -> Sprite:
    """The sprite without its empty margin, keeping the middle in the middle."""
    rows, columns = np.nonzero(sprite)
    middle = sprite.shape[0] // 2
    down = int(np.abs(rows - middle).max())
    across = int(np.abs(columns - middle).max())
    inner = sprite[middle - down : middle + down + 1, middle - across : middle + across + 1]
    return np.ascontiguousarray(inner)
