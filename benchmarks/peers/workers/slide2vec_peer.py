"""slide2vec with hs2p: its tissue step, its tiles, its DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hs2p import PreviewConfig
from slide2vec import ExecutionOptions, Model, PreprocessingConfig
from slide2vec.encoders import TileEncoder, register_encoder
from torchvision.transforms import v2

PACKAGES = ["slide2vec", "hs2p", "torch", "openslide-bin", "numpy"]
_NAME = "shufflenet_v2_x1_0"


def prepare(task: Any, network: Any) -> Any:
    """See ``worker.py``."""
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(task.mean, task.std)]
    )

    @register_encoder(
        _NAME,
        encode_dim=1024,
        input_size=task.tile_px,
        supports_variable_input_size=True,
        supported_spacing_um=0.5,
        precision="fp32",
    )
    class _Network(TileEncoder):  # type: ignore[misc]
        """The network as slide2vec wants it."""

        def __init__(self, **_options: Any) -> None:
            super().__init__()
            self._network = network

        def get_transform(self) -> Any:
            return transform

        def get_normalization_transform(self) -> Any:
            return transform

        def encode_tiles(self, batch: Any) -> Any:
            return self._network(batch)

        @property
        def encode_dim(self) -> int:
            return 1024

        @property
        def device(self) -> Any:
            return torch.device("cpu")

        def to(self, _device: Any) -> Any:
            return self

    model = Model.from_preset(_NAME, device="cpu")
    preprocessing = PreprocessingConfig(preview=PreviewConfig())  # no pictures

    def run(slide: Any, batch: int) -> tuple[int, Any]:
        execution = ExecutionOptions(
            batch_size=batch, num_gpus=1, precision="fp32", output_dir=task.scratch / "slide2vec"
        )
        embedded = model.embed_slide(
            slide, preprocessing=preprocessing, execution=execution, annotation="tissue"
        )
        coords = np.stack([np.asarray(embedded.x), np.asarray(embedded.y)], axis=1)
        return len(coords), lambda: (coords, np.asarray(embedded.tile_embeddings))

    return run
