"""A slide and a bundle make a prediction: the same every time, and every figure accounted for."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import FieldInvalid, MppUnknown, NoTissue, SlideCorrupt, SlideNotFound
from cmamil_sdk.features.extract import Cancelled
from cmamil_sdk.predict import (
    STAGES,
    LocalPredictor,
    Prediction,
    ProgressEvent,
    ScaleMap,
    evidence,
    top_tiles,
)
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.recipe import TissueRecipe

JSON_KEYS = [
    *("slide", "label", "probabilities", "coarse", "tiles", "tiles_failed", "quality"),
    *("mpp", "mpp_source", "seconds", "engine", "bundle", "bundle_sha256", "top_tiles", "warnings"),
]
SECONDS_KEYS = ["open", "tissue", "decode", "encode", "aggregate", "total"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Bundle:
    return Bundle.load(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture(scope="module")
def prediction(bundle, synthetic_slide, events) -> Prediction:
    predictor = LocalPredictor(bundle, workers=2)
    found = predictor.predict(synthetic_slide, top_k=10, on_progress=events.append)
    predictor.close()
    return found


def test_the_document_is_the_one_described(prediction, bundle, tiny_bundle):
    document = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
    assert list(document) == JSON_KEYS
    assert list(document["seconds"]) == SECONDS_KEYS == list(STAGES)
    assert all(set(t) == {"scale", "x", "y", "size", "score"} for t in document["top_tiles"])
    assert document["slide"] == "synthetic"
    assert document["tiles"] == {"5x": 4, "10x": 12, "20x": 36}
    assert document["tiles_failed"] == 0
    assert document["quality"] == {
        **{"tiles_planned": 52, "tiles_read": 52, "tiles_failed": 0, "tiles_background": 37},
        **{"reader": "direct", "reader_reason": prediction.quality.reader_reason},
    }
    assert (document["mpp"], document["mpp_source"]) == (0.5, "metadata")
    assert list(document["probabilities"]) == ["benign", "in_situ", "invasive"]
    assert sum(document["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert document["label"] == max(document["probabilities"], key=document["probabilities"].get)
    assert document["coarse"] is None
    assert document["engine"] == bundle.encoder_info.label
    assert document["bundle"] == "tiny/1"
    assert document["bundle_sha256"] == bundle.sha256
    assert document["warnings"] == []


def test_the_seconds_add_up(prediction):
    parts = [prediction.seconds[stage] for stage in SECONDS_KEYS[:-1]]
    assert all(part > 0 for part in parts)
    # decode and encode are mean times of the workers, which may wait for a core.
    assert sum(parts) <= prediction.seconds["total"] * 1.1


def test_progress_names_stages_and_only_grows(prediction, events):
    assert [e.stage for e in events if e.stage != "encode"] == ["open", "tissue", "aggregate"]
    encode = [e for e in events if e.stage == "encode"]
    assert [e.done for e in encode] == sorted({e.done for e in encode})
    assert (encode[-1].done, encode[-1].total) == (52, 52)
    assert events[-1].stage == "aggregate"


def test_one_worker_says_the_same_to_the_bit(prediction, bundle, synthetic_slide):
    again = LocalPredictor(bundle, workers=1).predict(synthetic_slide, top_k=10)
    first = prediction.to_json() | {"seconds": None}
    assert again.to_json() | {"seconds": None} == first
    for one, other in zip(prediction.maps, again.maps, strict=True):
        assert one.attention.tobytes() == other.attention.tobytes()
        assert one.contribution.tobytes() == other.contribution.tobytes()


def test_maps_hold_every_tile_and_its_share(prediction, bundle):
    with np.load(bundle.root / "golden.npz") as golden:
        logits = golden["aggregator/out/bias"][0].astype(np.float64)
    for scale_map in prediction.maps:
        n = prediction.tiles[scale_map.scale]
        assert scale_map.coords.shape == (n, 2)
        assert scale_map.contribution.shape == (n, 3)
        assert scale_map.attention.sum() == pytest.approx(1.0, abs=1e-5)
        assert np.isfinite(scale_map.contribution).all()
        logits += scale_map.contribution.sum(axis=0, dtype=np.float64)
    assert [m.size for m in prediction.maps] == [896, 448, 224]
    scaled = np.exp(logits / bundle.manifest.temperature)
    expected = list(prediction.probabilities.values())
    np.testing.assert_allclose(scaled / scaled.sum(), expected, atol=1e-5)


def test_evidence_sums_to_the_logit_over_the_mean_of_all(prediction):
    logits = sum(m.contribution.sum(axis=0, dtype=np.float64) for m in prediction.maps)
    for class_index in range(3):
        total = sum(float(evidence(m, class_index).sum()) for m in prediction.maps)
        assert total == pytest.approx(logits[class_index] - logits.mean(), abs=1e-5)
    for scale_map in prediction.maps:
        over_classes = sum(evidence(scale_map, c) for c in range(3))
        np.testing.assert_allclose(over_classes, 0, atol=1e-6)


def test_top_tiles_are_the_most_telling_of_all(prediction):
    winner = list(prediction.probabilities).index(prediction.label)
    every = sorted((float(s) for m in prediction.maps for s in evidence(m, winner)), reverse=True)
    assert [tile.score for tile in prediction.top_tiles] == every[:10]
    for tile in prediction.top_tiles:
        (scale_map,) = (m for m in prediction.maps if m.scale == tile.scale)
        (row,) = np.flatnonzero((scale_map.coords == (tile.x, tile.y)).all(axis=1))
        assert evidence(scale_map, winner)[row] == np.float32(tile.score)
        assert tile.size == scale_map.size


def make_map(scale: str, contribution: list[list[float]]) -> ScaleMap:
    n = len(contribution)
    return ScaleMap(
        scale=scale,
        size=100.4,
        coords=np.arange(2 * n).reshape(n, 2),
        attention=np.full(n, 1 / n, np.float32),
        contribution=np.array(contribution, np.float32),
    )


def test_top_tiles_by_hand():
    coarse = make_map("5x", [[3, 1], [0, 0]])
    fine = make_map("20x", [[5, 7], [9, 1], [2, 0]])
    found = top_tiles((coarse, fine), 0, 3)
    # Evidence for class 0: coarse 1, 0; fine -1, 4, 1. Equal scores: coarse first.
    assert [(t.scale, t.x, t.y, t.size, t.score) for t in found] == [
        ("20x", 2, 3, 100, 4.0),
        ("5x", 0, 1, 100, 1.0),
        ("20x", 4, 5, 100, 1.0),
    ]
    assert len(top_tiles((coarse, fine), 1, 99)) == 5
    assert top_tiles((coarse, fine), 1, 0) == ()


@pytest.fixture(scope="module")
def predictor(bundle) -> LocalPredictor:
    return LocalPredictor(bundle, workers=1)


def test_a_model_that_says_nothing_of_its_tiles_says_so(silent_bundle, synthetic_slide):
    predictor = LocalPredictor(Bundle.load(silent_bundle, device="cpu"), workers=1)
    found = predictor.predict(synthetic_slide)
    assert found.top_tiles == ()
    assert found.warnings == (
        "Model torchmil:TransMIL does not say which tiles its answer comes from; none are named.",
    )
    (tiles,) = found.maps
    assert (tiles.attention, tiles.contribution, len(tiles.coords)) == (None, None, 36)
    with pytest.raises(FieldInvalid, match="does not say which tiles"):
        evidence(tiles, 0)
    assert predictor.predict(synthetic_slide, top_k=0).warnings == ()
    json.dumps(found.to_json(), allow_nan=False)


def test_an_override_is_told(predictor, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 220, (48, 48, 3)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    path = tmp_path / "a 🔬.svs"
    write_svs(pixels, path, mpp=0.25, objective_power=40.0)
    found = predictor.predict(path, mpp=0.5)
    assert found.slide == "a 🔬"
    assert (found.mpp, found.mpp_source) == (0.5, "override")
    assert found.tiles["20x"] == 4
    assert len(found.warnings) == 1
    assert "0.25" in found.warnings[0]


def test_slides_that_cannot_be_used(predictor, tmp_path):
    with pytest.raises(SlideNotFound):
        predictor.predict(tmp_path / "none.svs")
    blank = tmp_path / "blank.svs"
    write_svs(np.full((300, 300, 3), 245, np.uint8), blank, mpp=0.5, objective_power=20.0)
    with pytest.raises(NoTissue):
        predictor.predict(blank)


@pytest.mark.realdata
def test_a_real_slide_without_mpp(predictor, real_data):
    with pytest.raises(MppUnknown, match="--mpp"):
        predictor.predict(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs")


def test_cancelling_stops_within_a_batch(predictor, synthetic_slide):
    cancel = threading.Event()
    set_at: list[float] = []

    def stop(event: ProgressEvent) -> None:
        if event.stage == "encode" and not set_at:
            assert event.done < event.total
            cancel.set()
            set_at.append(time.perf_counter())

    with pytest.raises(Cancelled):
        predictor.predict(synthetic_slide, cancel=cancel, on_progress=stop)
    assert time.perf_counter() - set_at[0] < 5


def test_lost_tiles_are_told(bundle, predictor, synthetic_slide, monkeypatch):
    """Two of 52 tiles cannot be decoded: the prediction stands and says so."""
    from cmamil_sdk.features import encode

    real = encode.read_tiles

    def lossy(reader, batch):
        tiles = real(reader, batch)
        for row in (3, 20):
            tiles.ok[(batch.tile_scale == 2) & (batch.plan_row == row)] = False
        return tiles

    monkeypatch.setattr(encode, "read_tiles", lossy)
    found = predictor.predict(synthetic_slide)
    assert found.tiles_failed == 2
    quality = found.quality
    assert (quality.tiles_planned, quality.tiles_read, quality.tiles_failed) == (52, 50, 2)
    assert found.tiles == {"5x": 4, "10x": 12, "20x": 34}
    assert found.warnings == ("2 of 52 tiles could not be decoded.",)
    assert len(found.maps[2].coords) == 34
    assert not any(math.isnan(p) for p in found.probabilities.values())


@pytest.mark.realdata
@pytest.mark.slow
def test_the_two_real_files_of_one_region_agree(bundle, real_data):
    predictor = LocalPredictor(bundle, workers=2)
    one, two = (
        predictor.predict(real_data / "slides" / name)
        for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.svs")
    )
    assert all(abs(one.tiles[s] - two.tiles[s]) <= 2 for s in one.tiles)
    for label, probability in one.probabilities.items():
        assert two.probabilities[label] == pytest.approx(probability, abs=0.1)


def test_a_prediction_without_maps_has_the_same_document(prediction):
    assert replace(prediction, maps=()).to_json() == prediction.to_json()


def test_the_slide_is_named_by_its_last_extension_only(predictor, synthetic_slide, tmp_path):
    link = Path(tmp_path / "case.7.b.svs")
    link.symlink_to(synthetic_slide)
    from cmamil_sdk.slides import open_slide

    with open_slide(link) as reader:
        assert reader.facts.slide_id == "case.7.b"


def test_masks_are_for_bundles_that_want_them(bundle, predictor, synthetic_slide, tmp_path):
    (tmp_path / "m.png").touch()
    with pytest.raises(FieldInvalid, match="no effect"):
        predictor.predict(synthetic_slide, tissue_masks=tmp_path / "m.png")
    Image.fromarray(np.full((150, 200), 255, np.uint8)).save(tmp_path / "synthetic.png")
    by_mask = bundle.manifest.recipe.model_copy(update={"tissue": TissueRecipe(method="mask")})
    manifest = bundle.manifest.model_copy(update={"recipe": by_mask})
    masked = copy.copy(bundle)
    masked.manifest = manifest
    wanting = LocalPredictor(masked, workers=1)
    assert wanting.predict(synthetic_slide, tissue_masks=tmp_path).tiles["20x"] == 63
    with pytest.raises(FieldInvalid, match="--tissue-masks"):
        wanting.predict(synthetic_slide)
    wanting.close()


def test_a_slide_that_changes_while_it_is_read_is_refused(bundle, synthetic_slide, tmp_path):
    slide = tmp_path / "growing.svs"
    slide.write_bytes(synthetic_slide.read_bytes())

    def append(_event: ProgressEvent) -> None:
        with slide.open("ab") as file:
            file.write(b"\0")

    predictor = LocalPredictor(bundle, workers=1)
    with pytest.raises(SlideCorrupt, match="changed while it was being read"):
        predictor.predict(slide, on_progress=append)
    predictor.close()
