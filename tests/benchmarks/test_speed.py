"""Floor, scales and growth: what the documents hold on small slides, with targets and charts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.benchmarks import growth
from cmamil_sdk.benchmarks.figures import redraw
from cmamil_sdk.benchmarks.floor import FloorBench, measure_floor, write_floor
from cmamil_sdk.benchmarks.growth import GrowthBench, PixelEngine, measure_growth
from cmamil_sdk.benchmarks.scales import ScalesBench, measure_scales
from cmamil_sdk.benchmarks.targets import GROWTH, SHARE_OF_FLOOR, verdict_rows
from cmamil_sdk.benchmarks.workshop import Workshop
from cmamil_sdk.errors import ConfigInvalid, FieldInvalid
from cmamil_sdk.synthetic.large_slide import LargeSlide


def test_a_target_is_reached_missed_or_aimed_at() -> None:
    assert [SHARE_OF_FLOOR.judge(v)["verdict"] for v in (0.95, 0.92, 0.8, 0.79)] == [
        *("aim", "aim", "must", "missed")
    ]
    assert [GROWTH.judge(v)["verdict"] for v in (0.99, 1.1, 1.11)] == ["aim", "must", "missed"]
    assert verdict_rows([GROWTH.judge(1.2)])[0][1:] == ["1.2", "1.1", "1", "MISSED"]


def test_the_floor_and_what_lies_above_it(
    tmp_path: Path, synthetic_slide: Path, tiny_bundle: Path
) -> None:
    bench = FloorBench(folder=tmp_path, slide=synthetic_slide, bundle=tiny_bundle, rounds=5)
    document = measure_floor(bench)
    result = document["result"]
    assert sum(document["tiles"].values()) == 4 + 12 + 36
    assert result["decode_cpu_ms_per_tile"] > 0
    assert result["infer_cpu_ms_per_tile"] > 0
    cores = document["settings"]["cores"]
    per_tile = result["decode_cpu_ms_per_tile"] + result["infer_cpu_ms_per_tile"]
    assert result["floor_s"] == pytest.approx(52 * per_tile / 1000 / cores, rel=0.5)
    ratios = [round_["floor_s"] / round_["total_s"] for round_ in result["rounds"]]
    assert result["share_of_floor"] == pytest.approx(float(np.median(ratios)))
    assert list(result["stages_s"]) == ["open", "tissue", "decode", "encode", "aggregate", "rest"]
    write_floor(tmp_path, document)
    assert json.loads((tmp_path / "floor.json").read_text())["targets"][0]["must"] == 0.8
    assert redraw(tmp_path) == [tmp_path / "floor.png"]


def test_three_scales_in_one_pass_and_apart(
    tmp_path: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmamil_sdk.benchmarks import scales

    class Exported:
        graph = parity = tmp_path
        info = type("Info", (), {"dim": 1024})

    monkeypatch.setattr(Workshop, "weights", lambda _self: tmp_path)
    monkeypatch.setattr(scales, "exported_encoder", lambda *_: Exported)
    opened = type("Opened", (), {"engine": PixelEngine()})
    monkeypatch.setattr(scales, "open_encoder", lambda *_args, **_options: opened)
    read: list[int] = []
    real = scales.read_tiles
    monkeypatch.setattr(
        scales, "read_tiles", lambda reader, batch: read.append(len(batch)) or real(reader, batch)
    )
    document = measure_scales(ScalesBench(folder=tmp_path, slide=synthetic_slide, pairs=5))
    together, apart = document["tiles_together"], document["tiles_apart"]
    assert together == {"5x": 4, "10x": 12, "20x": 36}
    assert apart["20x"] == 36
    one_pass, three_passes = sum(together.values()), sum(apart.values())
    assert sum(read) == 6 * (2 * one_pass + 2 * (one_pass + three_passes))
    assert [row["what"] for row in document["rows"]] == [
        scales.SAME_PIXELS,
        scales.ALONE,
        "read",
        "read and encode",
    ]
    assert scales.judged(document)[0]["value"] == document["rows"][0]["ratio"]
    for row in document["rows"]:
        ratios = [first / second for first, second in row["pairs_s"]]
        assert row["ratio"] == pytest.approx(float(np.median(ratios)))
        assert row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.slow
def test_growth_tells_cost_and_memory_of_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = LargeSlide(size_px=1440, tissue_share=0.5, downsamples=(1, 4))
    many = LargeSlide(size_px=2880, tissue_share=0.5, downsamples=(1, 4))
    monkeypatch.setattr(growth, "FEW", few)
    monkeypatch.setattr(growth, "MANY", many)
    document = measure_growth(GrowthBench(folder=tmp_path, pairs=5))
    small, large = document["tiles"]
    assert 10 < small < large
    assert [row["tiles"] for row in document["memory"]] == [small, large]
    for row in document["memory"]:
        assert row["features_mb"] == pytest.approx(row["tiles"] * 1024 * 4 / 1e6)
        assert row["peak_mb"] >= row["before_mb"] > 10
    assert document["result"]["low"] <= document["result"]["ratio"] <= document["result"]["high"]


def test_too_few_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="at least 5"):
        FloorBench(folder=tmp_path, rounds=4)
    with pytest.raises(FieldInvalid, match="at least 5"):
        ScalesBench(folder=tmp_path, pairs=4)
    with pytest.raises(FieldInvalid, match="at least 5"):
        GrowthBench(folder=tmp_path, pairs=4)


def test_a_picture_that_nothing_draws_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "peers.png").write_bytes(b"")
    with pytest.raises(ConfigInvalid, match=r"no peers\.csv"):
        redraw(tmp_path)
    (tmp_path / "peers.png").rename(tmp_path / "other.png")
    (tmp_path / "other.csv").write_text("a\n1\n")
    with pytest.raises(ConfigInvalid, match="nothing draws other"):
        redraw(tmp_path)


@pytest.mark.long
def test_the_seeded_bundle_predicts(
    tmp_path: Path, synthetic_slide: Path, shufflenet_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmamil_sdk.bundle import Bundle
    from cmamil_sdk.predict import LocalPredictor

    monkeypatch.setenv("CMAMIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Workshop, "weights", lambda _self: shufflenet_weights)
    workshop = Workshop(tmp_path)
    path = workshop.bundle("20x")
    assert workshop.bundle("20x") == path == tmp_path / "bundles" / "bench-20x" / "1"
    predictor = LocalPredictor(Bundle.load(path, device="cpu"), workers=1)
    assert predictor.predict(synthetic_slide).tiles == {"20x": 36}
    predictor.close()
