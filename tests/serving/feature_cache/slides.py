"""Slides with features that are easily told apart."""

from __future__ import annotations

import numpy as np

from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.extracted import ExtractedSlide
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.recipe import Scale
from cmamil_sdk.units import MicronsPerPixel

SCALES = (Scale(name="10x", mpp=1.0), Scale(name="20x", mpp=0.5))


def extracted(seed: int = 0, tiles: int = 7, dim: int = 3) -> ExtractedSlide:
    rng = np.random.default_rng(seed)
    counts = {"10x": tiles, "20x": 4 * tiles}
    return ExtractedSlide(
        facts=SlideFacts(
            path="a.svs",
            slide_id="a",
            width=2000,
            height=1500,
            bounds=(1, 2, 300, 400),
            levels=(Level(2000, 1500, 1.0), Level(500, 375, 4.0)),
            mpp=MicronsPerPixel(0.1 + 0.2),
            mpp_source="metadata",
            mpp_problem=None,
            objective_power=20.0,
            vendor="aperio",
            compression="jpeg",
            reader="direct",
            reader_reason="JPEG tiles",
            warnings=("something",),
        ),
        tile_size_level0={"10x": 448.0, "20x": 1 / 3},
        planned={"10x": tiles, "20x": 4 * tiles + 1},
        tiles_failed=1,
        bag=Bag(
            slide_id="a",
            scales=SCALES,
            features={k: rng.normal(size=(n, dim)).astype(np.float32) for k, n in counts.items()},
            coords={k: rng.integers(0, 2**40, (n, 2)) for k, n in counts.items()},
            parent={"10x": np.full(tiles, -1), "20x": rng.integers(-1, tiles, 4 * tiles)},
            tissue={k: rng.random(n, dtype=np.float32) for k, n in counts.items()},
        ),
    )


def assert_same(one: ExtractedSlide, other: ExtractedSlide) -> None:
    """Equal to the last bit."""
    for field in ("facts", "tile_size_level0", "planned", "tiles_failed"):
        assert getattr(one, field) == getattr(other, field), field
    assert (one.bag.slide_id, one.bag.scales) == (other.bag.slide_id, other.bag.scales)
    for kind in ("features", "coords", "parent", "tissue"):
        ours, theirs = getattr(one.bag, kind), getattr(other.bag, kind)
        assert ours.keys() == theirs.keys()
        for scale, array in ours.items():
            assert array.dtype == theirs[scale].dtype, (kind, scale)
            np.testing.assert_array_equal(array, theirs[scale])
