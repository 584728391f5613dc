"""The recipe that CMA-MIL describes, in its evident intent; written anew.

Every tile of the DeepZoom grid is read and judged by its edge density, those above the threshold are
written as JPEG files (2 processes), and these are then read by a DataLoader and encoded by torch eager.
"""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image, ImageFilter, ImageStat
from torchvision.transforms import v2

PACKAGES = ["torch", "torchvision", "openslide-python", "openslide-bin", "pillow", "numpy"]
_TILE_PX = 224
_TILERS = 2
_JPEG_QUALITY = 70
_CHUNK = 64


class _Tiler:
    """Judges and writes tiles, in a process of its own."""

    def __init__(self, slide: Path, folder: Path, threshold: float) -> None:
        self._slide, self._folder, self._threshold = slide, folder, threshold
        self._pyramid: DeepZoomGenerator | None = None

    def __call__(self, address: tuple[int, int]) -> None:
        if self._pyramid is None:
            opened = openslide.OpenSlide(self._slide)
            self._pyramid = DeepZoomGenerator(opened, _TILE_PX, overlap=0, limit_bounds=False)
        tile = self._pyramid.get_tile(self._pyramid.level_count - 1, address)
        edges = ImageStat.Stat(tile.filter(ImageFilter.FIND_EDGES)).sum
        if np.mean(edges) / _TILE_PX**2 > self._threshold:
            name = f"{address[0]}_{address[1]}.jpeg"
            tile.save(self._folder / name, quality=_JPEG_QUALITY)


_tiler: _Tiler | None = None


def _start_tiler(slide: Path, folder: Path, threshold: float) -> None:
    global _tiler  # noqa: PLW0603
    _tiler = _Tiler(slide, folder, threshold)


def _tile(address: tuple[int, int]) -> None:
    assert _tiler is not None
    _tiler(address)


class _Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """JPEG files as normalised images; a tile at the slide's edge is stretched to a whole one."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Any:
        with Image.open(self._paths[row]) as image:
            return self._transform(image.convert("RGB"))


def prepare(task: Any, network: Any) -> Any:
    """``task.options``: ``threshold``, the edge density above which a tile is kept."""
    transform = v2.Compose(
        [
            v2.Resize((_TILE_PX, _TILE_PX)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(task.mean, task.std),
        ]
    )
    folder = task.scratch / "tiles"

    def run(slide: Any, batch: int) -> tuple[int, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write_tiles(slide, folder, task.options["threshold"])
        paths = sorted(folder.glob("*.jpeg"))
        loader = torch.utils.data.DataLoader(
            _Files(paths, transform), batch_size=batch, num_workers=task.cores
        )
        with torch.inference_mode():
            features = np.concatenate([network(images).numpy() for images in loader])
        np.save(task.scratch / "features.npy", features)
        grid = np.array([[int(part) for part in path.stem.split("_")] for path in paths])
        return len(paths), lambda: (grid * _TILE_PX, features)

    return run


def _write_tiles(slide: Path, folder: Path, threshold: float) -> None:
    with openslide.OpenSlide(slide) as opened:
        pyramid = DeepZoomGenerator(opened, _TILE_PX, overlap=0, limit_bounds=False)
        columns, rows = pyramid.level_tiles[-1]
    addresses = [(column, row) for row in range(rows) for column in range(columns)]
    with multiprocessing.Pool(_TILERS, _start_tiler, (slide, folder, threshold)) as pool:
        for _ in pool.imap_unordered(_tile, addresses, chunksize=_CHUNK):
            pass
