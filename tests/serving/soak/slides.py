"""Slides that are asked for, and files that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideFormatUnsupported, SlideNotFound
from cmamil_sdk.synthetic.svs import write_svs

BAD: dict[str, type[CmamilError]] = {
    "missing.svs": SlideNotFound,
    "text.svs": SlideFormatUnsupported,
    "cut.svs": SlideCorrupt,
}


def write_slides(root: Path, count: int) -> list[str]:
    """Slides of one block, about 14 tiles over three scales, each another; and two that are none."""
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.array([205, 130, 175]) + rng.normal(0, 18, (700, 700, 1))
        shown = np.clip(pixels, 0, 255).astype(np.uint8)
        write_svs(shown, root / f"{number}.svs", mpp=0.5, objective_power=20.0)
    shutil.copy(root / "0.svs", root / "cut.svs")
    with (root / "cut.svs").open("r+b") as file:
        file.truncate((root / "0.svs").stat().st_size // 2)
    (root / "text.svs").write_text("this is no slide")
    return [f"{number}.svs" for number in range(count)]


def write_copies(root: Path, slides: list[str], folder: Path, count: int) -> list[dict[str, Path]]:
    """For each of ``count`` clients copies of its own to upload: the same pixels in other bytes."""
    found = []
    for number in range(count):
        mine = {slide: folder / f"{number}-{slide}" for slide in slides}
        for slide, path in mine.items():
            path.write_bytes((root / slide).read_bytes() + bytes([number]) * 16)
        found.append(mine)
    return found
