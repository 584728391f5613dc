"""The way of CLAM and TRIDENT: OpenSlide in DataLoader workers, torch eager.

Tissue is found on the overview first, and only its tiles are read. So that all that differs is how tiles
are read and encoded, the tiles are those of this package's plan, found by its code within the run.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import openslide
import torch
from torchvision.transforms import v2

from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

PACKAGES = ["torch", "torchvision", "openslide-python", "openslide-bin", "numpy"]
_TILE_PX = 224


class _Tiles(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Tiles of a slide; every worker opens the slide for itself."""

    def __init__(self, path: str, coords: Any, transform: Any) -> None:
        self._path, self._coords, self._transform = path, coords, transform
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._coords)

    def __getitem__(self, row: int) -> Any:
        if self._slide is None:
            self._slide = openslide.OpenSlide(self._path)
        x, y = self._coords[row]
        region = self._slide.read_region((int(x), int(y)), 0, (_TILE_PX, _TILE_PX))
        return self._transform(region.convert("RGB"))


def prepare(task: Any, network: Any) -> Any:
    """See ``worker.py``."""
    recipe = TilingRecipe(scales=parse_scales("20x"))
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(task.mean, task.std)]
    )

    def run(slide: Any, batch: int) -> tuple[int, Any]:
        with open_slide(slide, reader="openslide") as opened:
            coords = make_plan(opened, recipe).scales[0].coords
        loader = torch.utils.data.DataLoader(
            _Tiles(str(slide), coords, transform), batch_size=batch, num_workers=task.cores
        )
        with torch.inference_mode():
            features = np.concatenate([network(images).numpy() for images in loader])
        with h5py.File(task.scratch / "features.h5", "w") as file:
            file["coords"], file["features"] = coords, features
        return len(coords), lambda: (coords, features)

    return run
