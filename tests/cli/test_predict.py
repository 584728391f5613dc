"""``cmamil predict``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmamil_sdk.bundle.verify import read_manifest

KEYS = {
    *("slide", "label", "probabilities", "coarse", "tiles", "tiles_failed", "quality"),
    *("mpp", "mpp_source", "seconds", "engine", "bundle", "bundle_sha256", "top_tiles", "warnings"),
}


def test_one_good_and_one_bad_slide(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    small_slide: Path,
    not_a_slide: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    answer = cmamil(
        *("predict", small_slide, not_a_slide, "--bundle", tiny_bundle, "--json"),
        *("--out", out, "--heatmap", "--top-k", "3"),
    )
    assert answer.code == 1
    document = answer.document
    assert set(document) == {"predictions", "failed"}
    (prediction,), (failed,) = document["predictions"], document["failed"]
    assert set(prediction) == KEYS
    assert prediction["slide"] == "small"
    assert sum(prediction["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    best = max(prediction["probabilities"], key=prediction["probabilities"].get)
    assert prediction["label"] == best
    assert prediction["coarse"] is None
    assert prediction["tiles"] == {"5x": 1, "10x": 4, "20x": 16}
    stages = ("open", "tissue", "decode", "encode", "aggregate", "total")
    assert tuple(prediction["seconds"]) == stages
    assert prediction["bundle_sha256"] == read_manifest(tiny_bundle)[1]
    assert len(prediction["top_tiles"]) == 3
    assert set(prediction["top_tiles"][0]) == {"scale", "x", "y", "size", "score"}
    assert set(failed) == {"slide", "reason", "message"}
    assert (failed["slide"], failed["reason"]) == ("broken", "SLIDE_FORMAT_UNSUPPORTED")
    assert json.loads((out / "predictions.json").read_text()) == document
    with Image.open(out / "small.heatmap.png") as heatmap:
        assert heatmap.format == "PNG"
    assert sorted(p.name for p in out.iterdir()) == ["predictions.json", "small.heatmap.png"]


def test_no_heatmap_of_a_model_that_says_nothing_of_its_tiles(
    cmamil: Callable[..., Any], silent_bundle: Path, small_slide: Path, tmp_path: Path
) -> None:
    command = ("predict", small_slide, "--bundle", silent_bundle, "--out", tmp_path, "--json")
    refused = cmamil(*command, "--heatmap")
    assert refused.code == 2 and "leave --heatmap out" in refused.err
    assert list(tmp_path.iterdir()) == []
    answer = cmamil(*command)
    assert answer.code == 0
    assert answer.document["predictions"][0]["top_tiles"] == []
    assert "does not say which tiles" in answer.err


def test_table(cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path) -> None:
    answer = cmamil("predict", small_slide, "--bundle", tiny_bundle)
    assert answer.code == 0
    header, row = answer.out.splitlines()
    assert header.split() == ["slide", "prediction", "probability", "5x", "10x", "20x", "seconds"]
    assert row.split()[0] == "small"
    assert row.split()[3:6] == ["1", "4", "16"]


def test_a_single_bad_slide_has_its_own_status(
    cmamil: Callable[..., Any], tiny_bundle: Path, not_a_slide: Path
) -> None:
    answer = cmamil("predict", not_a_slide, "--bundle", tiny_bundle, "--json")
    assert answer.code == 3
    assert answer.document["predictions"] == []
    assert answer.document["failed"][0]["reason"] == "SLIDE_FORMAT_UNSUPPORTED"


def test_heatmap_needs_a_folder(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path
) -> None:
    answer = cmamil("predict", small_slide, "--bundle", tiny_bundle, "--heatmap")
    assert answer.code == 2
    assert "--out" in answer.err


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--bundle", "/nowhere"), 3, "BUNDLE_CORRUPT"),
        (("--engine", "nonsense"), 2, "FIELD_INVALID"),
        (("--device", "cuda:99"), 4, "ENGINE_MISSING"),
    ],
)
def test_what_cannot_be_had(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    small_slide: Path,
    options: tuple[str, str],
    code: int,
    reason: str,
) -> None:
    bundle = () if "--bundle" in options else ("--bundle", tiny_bundle)
    answer = cmamil("predict", small_slide, *bundle, *options)
    assert answer.code == code
    assert answer.err.startswith(f"cmamil: {reason}: ")


def test_mpp_option_is_used_and_noted(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path
) -> None:
    document = cmamil(
        "predict", small_slide, "--bundle", tiny_bundle, "--json", "--mpp", "0.25"
    ).document
    (prediction,) = document["predictions"]
    assert (prediction["mpp"], prediction["mpp_source"]) == (0.25, "override")
    assert prediction["tiles"]["20x"] == 4
    assert prediction["warnings"]
