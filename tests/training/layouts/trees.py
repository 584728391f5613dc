"""A small tree in CMA-MIL's layout, two scales, two folds, every slide's features its own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CLASSES = ("calm", "wild")
FOLDS: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    1: {"train": (1, 2), "val": (3,), "test": (0,)},
    2: {"train": (0, 1), "val": (3,), "test": (2,)},
}
TILES = {"5x": 2, "20x": 6}


def features_of(slide: str, scale: str) -> np.ndarray:
    """Tiles ``[n, 4]`` that no other slide and scale has."""
    rng = np.random.default_rng(zlib.crc32(f"{slide} {scale}".encode()))
    return rng.standard_normal((TILES[scale], 4)).astype(np.float32)


def write_tree(folder: Path) -> dict[str, Path]:
    """Roots by scale."""
    roots = {scale: folder / scale for scale in TILES}
    for scale, root in roots.items():
        for fold, parts in FOLDS.items():
            for part, numbers in parts.items():
                for label in CLASSES:
                    place = root / str(fold) / part / label
                    place.mkdir(parents=True)
                    for n in numbers:
                        slide = f"{label}_{n}"
                        np.save(place / f"{slide}.npy", features_of(slide, scale))
    return roots
