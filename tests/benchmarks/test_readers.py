"""The readers' benchmark: the same work in turns, in processor time, and a check of the pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.benchmarks import readers
from cmamil_sdk.benchmarks.readers import ReadersBench, measure_readers
from cmamil_sdk.errors import FieldInvalid, SlideFormatUnsupported
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.direct_reader import DirectReader
from cmamil_sdk.slides.openslide_reader import OpenSlideReader

OTHERS = ["direct", "cucim"] if cucim_installed() else ["direct"]


def test_each_reader_reads_every_tile_in_each_pair(
    synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = readers.read_tiles, []

    def counted(reader: Any, batch: Any) -> Any:
        read.append((type(reader), len(batch)))
        return real(reader, batch)

    monkeypatch.setattr(readers, "read_tiles", counted)
    document = measure_readers(ReadersBench(slide=synthetic_slide, pairs=5))
    tiles = {kind: sum(count for reader, count in read if reader is kind) for kind, _ in read}
    once = (4 + 12 + 36) * (1 + 1 + 5)  # compared, warmed up, five pairs
    expected = {DirectReader: once, CucimReader: once, OpenSlideReader: once * len(OTHERS)}
    assert tiles == {kind: expected[kind] for kind in tiles}
    assert len(tiles) == 1 + len(OTHERS)
    assert document["slide"]["tiles"] == {"5x": 4, "10x": 12, "20x": 36}
    assert list(document["readers"]) == OTHERS
    assert [row["reader"] for row in document["rows"]] == OTHERS
    for row in document["rows"]:
        assert document["readers"][row["reader"]]["largest_difference"] == 0
        assert (row["what"], row["pairs"]) == ("read", 5)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        ratios = np.divide(row["openslide_cpu_s"], row["cpu_s"])
        assert row["ratio"] == pytest.approx(float(np.median(ratios)))
        assert row["cpu_ms_per_tile"] == pytest.approx(1000 * np.median(row["cpu_s"]) / 52)


@pytest.fixture
def direct_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure one reader beside OpenSlide: two would take twice as long and show no more."""
    monkeypatch.setattr(readers, "_OTHERS", ("direct",))


@pytest.mark.usefixtures("direct_alone")
def test_other_pixels_are_told_and_sleeping_is_no_processor_time(
    synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_other(*arguments: Any, **options: Any) -> Any:
        reader = open_slide(*arguments, **options)
        if options["reader"] == "openslide":
            monkeypatch.setattr(reader, "read_region", partial(slow_and_wrong, reader.read_region))
        return reader

    def slow_and_wrong(real: Callable[..., Any], *box: int) -> Any:
        time.sleep(0.2)
        return real(*box) ^ 1

    monkeypatch.setattr(readers, "open_slide", open_other)
    document = measure_readers(ReadersBench(slide=synthetic_slide, pairs=5))
    assert document["readers"]["direct"]["largest_difference"] == 1
    blocks = 4
    assert min(document["rows"][0]["openslide_cpu_s"]) < blocks * 0.2


@pytest.mark.usefixtures("direct_alone")
def test_predictions_are_timed_with_a_bundle(tiny_bundle: Path, synthetic_slide: Path) -> None:
    bench = ReadersBench(slide=synthetic_slide, bundle=tiny_bundle, pairs=5, workers=1)
    rows = measure_readers(bench)["rows"]
    assert [(row["what"], row["reader"]) for row in rows] == [
        ("read", "direct"),
        ("predict", "direct"),
    ]
    assert rows[1]["cpu_ms_per_tile"] > rows[0]["cpu_ms_per_tile"]


def test_what_cannot_be_compared_is_refused(synthetic_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="--pairs 4"):
        ReadersBench(slide=synthetic_slide, pairs=4)
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(SlideFormatUnsupported):
        measure_readers(ReadersBench(slide=tmp_path / "text.svs"))
