"""Pen marks measured: known pictures exactly, real ones within what the page says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.benchmarks.pens import MarksFound, measure_marks
from cmamil_sdk.errors import FieldInvalid


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ink over two thirds of its mask, and half as much ink again beside it; no ink below."""
    rgb = np.full((100, 60, 3), 243, dtype=np.uint8)
    rgb[10:30, 10:40] = (34, 136, 118)
    mask = np.zeros((100, 60), dtype=np.uint8)
    mask[10:30, 20:50] = 255
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    return tmp_path


def test_precision_and_recall_by_hand(pictures: Path) -> None:
    upper, lower = measure_marks(pictures, um_per_px=10, min_um2=50_000)
    assert upper == MarksFound("a", "upper", 3000, found=600, marked=600, both=400)
    assert upper.precision == upper.recall == pytest.approx(2 / 3)
    assert (lower.found, lower.marked, lower.precision, lower.recall) == (0, 0, None, None)


def test_fine_pictures_are_averaged_over_cells(pictures: Path) -> None:
    upper, _ = measure_marks(
        pictures, um_per_px=0.8, min_um2=50_000
    )  # cells of 10 px: too small to be a mark
    assert (upper.cells, upper.found, upper.marked) == (5 * 6, 0, 6)


def test_nonsense_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, um_per_px in ((pictures, 0.0), (pictures, float("nan")), (tmp_path / "empty", 10)):
        with pytest.raises(FieldInvalid):
            measure_marks(folder, um_per_px=um_per_px, min_um2=0)


@pytest.mark.realdata
def test_real_marks_and_real_tissue(real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "tiles").glob("pen_*.png"):
        (tmp_path / path.name).symlink_to(path)
    for row in measure_marks(tmp_path, um_per_px=20, min_um2=50_000):
        assert row.precision is not None and row.recall is not None
        assert row.precision > 0.90
        assert row.recall > 0.84
    breakhis = real_data / "tiles" / "breakhis-400x"
    tissue = measure_marks(breakhis, um_per_px=0.25, min_um2=0)
    assert len(tissue) == 16
    assert sum(row.found for row in tissue) == 0
