"""Whether a tile of a huge slide costs more than one of a small slide, and what memory they take.

Everything is run but the network, which costs every tile the same and would hide what grows: opening,
tissue, the plan, decoding, batches, the bag and the feature file. In the network's place a few pixels of
a tile are its features.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import EngineInfo, Inputs
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.files import write_json
from cmamil_sdk.machine import peak_rss_mb, rss_mb
from cmamil_sdk.synthetic.large_slide import LargeSlide
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .environment import describe_machine, load_average
from .fresh_process import in_fresh_process
from .pairs import MIN_PAIRS, Pairs, spread
from .targets import GROWTH
from .workshop import Workshop

OnPair = Callable[[int, int], None]

FEW = LargeSlide(size_px=17_760, tissue_share=0.8)
"""About 5,000 tiles at 20x."""

MANY = LargeSlide(size_px=79_200, tissue_share=0.8)
"""About 100,000 tiles at 20x, 1.5 GB."""

_DIM = 1024
_TILE_PX = 224


@dataclass(frozen=True)
class GrowthBench:
    """What is measured.

    Attributes:
        folder: of the two generated slides.
        pairs: how often each slide is run, at least five.
    """

    folder: Path
    pairs: int = 9

    def __post_init__(self) -> None:
        """Refuse too few pairs for an interval (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")


class PixelEngine:
    """In place of a network: features are pixels of the tile, which cost next to nothing."""

    info = EngineInfo("pixels", "cpu", "fp32", "1", "measures all but the network")

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """``tiles [B, 224, 224, 3]`` uint8 -> ``features [B, 1024]``."""
        tiles = np.asarray(inputs["tiles"])
        spread_out = tiles[:, ::7, ::7, 0].reshape(len(tiles), -1)[:, :_DIM]
        return {"features": spread_out.astype(np.float32)}

    def warm_up(self, rows: int) -> None:
        """There is nothing to warm."""

    def memory_bytes(self) -> int:
        """None is held."""
        return 0

    def close(self) -> None:
        """Nothing is held."""


def measure_growth(bench: GrowthBench, *, on_pair: OnPair | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    The run on the small slide is the mean of one before and one after that on the large one, so both
    stand at the same moment on average.

    Args:
        bench: the settings.
        on_pair: called with the pairs done and the pairs in all.

    Raises:
        CmamilError: whatever reading the slides raises.
        MemoryTooSmall: a process that measures memory was ended.
    """
    report = on_pair or (lambda _done, _total: None)
    load_before = load_average()
    workshop = Workshop(bench.folder)
    few, many = workshop.generated(FEW), workshop.generated(MANY)
    run_once(few)
    small, large = [], []
    tiles = (0, 0)
    for number in range(bench.pairs):
        before, middle, after = run_once(few), run_once(many), run_once(few)
        tiles = (before[0], middle[0])
        small.append((before[1] + after[1]) / 2 / before[0])
        large.append(middle[1] / middle[0])
        report(number + 1, bench.pairs)
    pairs = Pairs(tuple(large), tuple(small))
    ratio, low, high = pairs.ratio()
    return {
        "benchmark": "growth",
        "settings": {"slides": [few.name, many.name], "pairs": bench.pairs, "feature_dim": _DIM},
        "tiles": list(tiles),
        "result": {
            "few_ms_per_tile": 1000 * statistics.median(small),
            "many_ms_per_tile": 1000 * statistics.median(large),
            "ratio": ratio,
            "low": low,
            "high": high,
            "few_spread": spread(small),
            "many_spread": spread(large),
        },
        "memory": [memory_of(slide) for slide in (few, many)],
        "environment": {
            **describe_machine(),
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The target this measurement speaks of, by the upper end of the interval."""
    return [GROWTH.judge(document["result"]["high"])]


def write_growth(folder: Path, document: dict[str, Any]) -> None:
    """Write ``growth.json``."""
    write_json(folder / "growth.json", {**document, "targets": judged(document)})


def run_once(slide: Path) -> tuple[int, float]:
    """Tiles of a slide, and the seconds from its file to its feature file."""
    encoder = EncoderInfo(
        id="pixels",
        weights_sha256="0" * 64,
        dim=_DIM,
        tile_px=_TILE_PX,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    with tempfile.TemporaryDirectory(dir=slide.parent) as folder:
        started = time.perf_counter()
        done = extract_slide(
            slide,
            Path(folder),
            recipe=TilingRecipe(scales=parse_scales("20x")),
            encoder=encoder,
            engine=PixelEngine(),
            resume=False,
        )
        seconds = time.perf_counter() - started
    return sum(done.tiles.values()), seconds


def memory_of(slide: Path) -> dict[str, Any]:
    """Memory of one run in a fresh process, MB: before it, at its peak, and the features alone.

    Raises:
        MemoryTooSmall: the process was ended.
    """
    return in_fresh_process(__name__, str(slide), what=f"The run on {slide}")


def _main(slide: Path) -> None:
    before_mb = rss_mb()
    tiles, _ = run_once(slide)
    row = {
        "tiles": tiles,
        "before_mb": before_mb,
        "peak_mb": peak_rss_mb(),
        "features_mb": tiles * _DIM * 4 / 1e6,
    }
    sys.stdout.write(json.dumps(row))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))


__all__ = ["GrowthBench", "PixelEngine", "judged", "measure_growth", "memory_of", "write_growth"]
