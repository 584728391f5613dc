"""Predictions through the server equal the local ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.client import Client
from cmamil_sdk.errors import InputError, SlideHashMismatch, UsageError, leaf_errors
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.predict import LocalPredictor, Prediction, ProgressEvent
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import background_server

LABELS = ("benign", "in_situ", "invasive")


@pytest.fixture(scope="module")
def local(tiny_bundle: Path, slides_root: Path) -> Prediction:
    predictor = LocalPredictor(Bundle.load(tiny_bundle), workers=1)
    return predictor.predict(slides_root / "a.svs")


def without_times(prediction: Prediction) -> Prediction:
    return replace(prediction, seconds={}, maps=())


def test_served_prediction_equals_the_local_one(client: Client, local: Prediction) -> None:
    served = client.predict("a.svs")
    assert without_times(served) == without_times(local)
    assert served.seconds.keys() == local.seconds.keys()
    assert served.maps == ()


def test_maps_come_on_request_and_equal_the_local_ones(client: Client, local: Prediction) -> None:
    served = client.predict("a.svs", attention=True)
    assert [m.scale for m in served.maps] == ["5x", "10x", "20x"]
    for ours, theirs in zip(local.maps, served.maps, strict=True):
        assert ours.size == theirs.size
        np.testing.assert_array_equal(ours.coords, theirs.coords)
        np.testing.assert_array_equal(ours.attention, theirs.attention)
        np.testing.assert_array_equal(ours.contribution, theirs.contribution)


def test_progress_rises_and_ends_with_the_aggregate(client: Client) -> None:
    events: list[ProgressEvent] = []
    prediction = client.predict("a.svs", on_progress=events.append)
    encoded = [event.done for event in events if event.stage == "encode"]
    assert encoded == sorted(encoded)
    assert events[-1] == ProgressEvent("aggregate", 1, 1)
    assert all(e.total == sum(prediction.tiles.values()) for e in events if e.stage == "encode")


def test_inspection_says_what_a_slide_is(client: Client, slides_root: Path) -> None:
    found = client.inspect(f"file:{slides_root}/folder/b%20c.svs")
    assert (found.slide, found.width, found.height) == ("b c", 2000, 1500)
    assert found.mpp == pytest.approx(0.5) and found.mpp_source == "metadata"
    assert found.sha256 == sha256_of_file(slides_root / "folder" / "b c.svs")
    assert found.tiles is not None and found.tiles["20x"] == 36
    assert found.tissue_fraction is not None and 0.5 < found.tissue_fraction < 0.7
    assert found.levels[0].downsample == 1.0 and found.warnings == ()
    assert found.to_json()["levels"][0] == {"width": 2000, "height": 1500, "downsample": 1.0}


def test_inspection_takes_another_mpp(client: Client) -> None:
    found = client.inspect("a.svs", mpp=0.25)
    assert (found.mpp, found.mpp_source) == (0.25, "override")
    assert found.tiles is not None and found.tiles["20x"] < 36
    assert any("metadata says 0.5" in warning for warning in found.warnings)


def test_models_and_engines_are_told(client: Client, tiny_bundle: Path) -> None:
    (model,) = client.models()
    assert model.name == "models/tiny/versions/1" and model.labels == LABELS
    assert model.scales == {"5x": 2.0, "10x": 1.0, "20x": 0.5} and model.tile_px == 224
    assert model.bundle_sha256 == sha256_of_file(tiny_bundle / "manifest.json")
    assert client.predict("a.svs", model="tiny").bundle == "tiny/1"
    assert client.predict("a.svs", model="tiny/1", top_k=2).top_tiles[1:]


def test_the_slides_sha256_may_be_demanded(client: Client, slides_root: Path) -> None:
    digest = sha256_of_file(slides_root / "a.svs")
    assert client.predict("a.svs", expected_sha256=digest.upper()).label in LABELS
    with pytest.raises(SlideHashMismatch, match=digest):
        client.predict("a.svs", expected_sha256="f" * 64)


@pytest.mark.realdata
def test_real_files_end_in_a_prediction_or_a_typed_error(
    real_data: Path, config: ServerConfig
) -> None:
    slides = real_data / "slides"
    outcomes = {}
    with (
        background_server(config.model_copy(update={"slides_roots": (slides,)})) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=120.0) as client,
    ):
        for path in sorted(slides.iterdir()):
            try:
                outcomes[path.name] = client.predict(path.name).label
            except (InputError, UsageError) as problem:
                outcomes[path.name] = problem.reason
        restarts = [worker.restarts for worker in client.server_info().workers]
    assert outcomes["CMU-1-Small-Region.svs"] in LABELS
    assert outcomes["unopenable.tiff"] in leaf_errors()
    assert restarts == [0, 0]


def test_a_bundle_of_stored_levels_is_served_as_it_predicts(
    tiny_bundle: Path, config: ServerConfig, slides_root: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "1"
    shutil.copytree(tiny_bundle, stored)
    manifest = json.loads((stored / "manifest.json").read_text("utf-8"))
    manifest["recipe"]["scale_source"] = "stored"
    (stored / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    predictor = LocalPredictor(Bundle.load(stored), workers=1)
    expected = predictor.predict(slides_root / "a.svs")
    predictor.close()
    with (
        background_server(config.model_copy(update={"bundles": (stored,), "workers": 1})) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        assert client.inspect("a.svs").read_from == {"5x": 1, "10x": 0, "20x": 0}
        assert without_times(client.predict("a.svs")) == without_times(expected)
