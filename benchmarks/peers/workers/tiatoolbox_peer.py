"""TIAToolbox: DeepFeatureExtractor with its own tissue mask."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch
import zarr
from tiatoolbox.models import DeepFeatureExtractor, IOPatchPredictorConfig
from tiatoolbox.models.models_abc import ModelABC

PACKAGES = ["tiatoolbox", "torch", "openslide-bin", "zarr", "dask", "numpy"]


class _Network(ModelABC):  # type: ignore[misc]
    """The network as TIAToolbox wants it: uint8 in, normalised in the batch."""

    def __init__(self, network: Any, mean: Any, std: Any) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Any) -> Any:
        """Features ``[B, 1024]`` of images ``[B, H, W, 3]``."""
        return self.network((images.permute(0, 3, 1, 2).float() - self.mean) / self.std)

    @staticmethod
    def infer_batch(model: Any, batch_data: Any, *, device: str) -> list[Any]:
        """One batch, as the engine asks for it."""
        with torch.inference_mode():
            return [model(batch_data.to(device)).numpy()]


def prepare(task: Any, network: Any) -> Any:
    """See ``worker.py``."""
    network = _Network(network, task.mean, task.std)
    config = IOPatchPredictorConfig(
        input_resolutions=[{"units": "baseline", "resolution": 1.0}],
        patch_input_shape=[task.tile_px, task.tile_px],
        stride_shape=[task.tile_px, task.tile_px],
    )
    folder = task.scratch / "tiatoolbox"

    def run(slide: Any, batch: int) -> tuple[int, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        extractor = DeepFeatureExtractor(
            model=network, batch_size=batch, num_workers=task.cores, device="cpu", verbose=False
        )
        written = extractor.run(
            images=[slide],
            patch_mode=False,
            ioconfig=config,
            save_dir=folder,
            output_type="zarr",
            auto_get_mask=True,
        )
        store = zarr.open(str(next(iter(written.values()))), mode="r")

        def collect() -> tuple[Any, Any]:
            return np.asarray(store["coordinates"])[:, :2], np.asarray(store["features"])

        return store["features"].shape[0], collect

    return run
