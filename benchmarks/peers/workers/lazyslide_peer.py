"""lazyslide: its tissue step, its tiles, its feature extraction."""

from __future__ import annotations

from typing import Any

import lazyslide as zs
import torch
from torchvision.transforms import v2
from wsidata import open_wsi

PACKAGES = ["lazyslide", "wsidata", "lazyslide-models", "torch", "openslide-bin", "numpy"]


def prepare(task: Any, network: Any) -> Any:
    """See ``worker.py``."""
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(task.mean, task.std)]
    )

    def run(slide: Any, batch: int) -> tuple[int, Any]:
        wsi = open_wsi(slide, store=None)
        zs.pp.find_tissues(wsi)
        zs.pp.tile_tissues(wsi, task.tile_px)
        features = zs.tl.feature_extraction(
            wsi,
            network,
            model_name="shufflenet",
            transform=transform,
            device="cpu",
            amp=False,
            batch_size=batch,
            num_workers=task.cores,
            pbar=False,
            return_features=True,
        )
        corners = wsi["tiles"].bounds[["minx", "miny"]].to_numpy()
        return len(features), lambda: (corners, features)

    return run
