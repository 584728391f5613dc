"""Stand-ins shared by the tests of this folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import EngineInfo
from cmamil_sdk.synthetic.svs import write_svs

from ..device_double import CUPY, DeviceArray


class MeanEngine:
    """An encoder without weights: mean colour of each sixteenth of a tile, 48 features."""

    info = EngineInfo("mean", "cpu", "fp32", "1", "test")
    dim = 48

    def __init__(self) -> None:
        self.tiles = 0
        self.threads: set[int] = set()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tiles = inputs["tiles"]
        assert tiles.dtype == np.uint8
        self.tiles += len(tiles)
        self.threads.add(threading.get_ident())
        px = tiles.shape[1] // 4
        cells = tiles.reshape(len(tiles), 4, px, 4, px, 3).mean(axis=(2, 4), dtype=np.float64)
        return {"features": cells.reshape(len(tiles), self.dim).astype(np.float32)}

    def warm_up(self, rows: int) -> None:
        self.warm_rows = rows

    def memory_bytes(self) -> int:
        return 48 * getattr(self, "warm_rows", 0)

    def close(self) -> None:
        pass


class DeviceEngine(MeanEngine):
    """An encoder on the device: it takes nothing from the host."""

    info = EngineInfo("mean", "cuda:0", "fp32", "1", "test", takes_device_arrays=True)

    def infer(self, inputs):
        assert isinstance(inputs["tiles"], DeviceArray), "the tiles left the device"
        assert inputs["tiles"].__cuda_array_interface__["strides"] is None
        return super().infer({"tiles": CUPY.asnumpy(inputs["tiles"])})


@pytest.fixture
def engine() -> MeanEngine:
    return MeanEngine()


@pytest.fixture(scope="session")
def textured_slide(tmp_path_factory) -> Path:
    """2,688 x 2,688 px at 20x, all texture: 3 x 3 blocks; stored tiles are exactly the 20x tiles."""
    rng = np.random.default_rng(11)
    blocks = rng.integers(70, 210, (48, 48, 3)).repeat(56, 0).repeat(56, 1)
    pixels = np.clip(blocks + rng.normal(0, 6, (2688, 2688, 1)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("textured") / "textured.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0, tile_px=224)
    return path
