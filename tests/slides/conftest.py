"""Slides shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.synthetic.svs import write_svs


@pytest.fixture(scope="session")
def noisy_slide(tmp_path_factory) -> Path:
    """700 x 500 px of noise with blocks, levels 1, 4, 16, stored tiles of 112 px."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(60, 220, (10, 14, 3)).repeat(50, 0).repeat(50, 1)
    pixels = np.clip(blocks + rng.normal(0, 10, blocks.shape), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("noisy") / "noisy.svs"
    write_svs(pixels, path, mpp=0.25, objective_power=40.0, tile_px=112)
    return path
