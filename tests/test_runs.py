"""Run directories: what was saved is loaded, anything else is one error."""

from __future__ import annotations

import numpy as np
import pytest

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import RunInvalid
from cmamil_sdk.runs import (
    CheckpointMeta,
    fold_directory,
    load_checkpoint,
    read_json,
    save_checkpoint,
)
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

META = CheckpointMeta(
    model_kind="cma-mil",
    hyperparameters={"scales": ["20x"], "dim": 8},
    labels=("a", "b"),
    recipe=TilingRecipe(scales=parse_scales("20x")),
    encoder=EncoderInfo(
        id="e",
        weights_sha256="0" * 64,
        dim=4,
        tile_px=224,
        mean=(127.0, 127.0, 127.0),
        std=(0.1, 1, 1),
    ),
    fold=2,
    seed=7,
    temperature=1.25,
    metrics={"val_auc": 0.75},
)
TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3], np.int64)}


@pytest.fixture
def folder(tmp_path):
    folder = fold_directory(tmp_path, 2)
    save_checkpoint(folder, META, TENSORS)
    return folder


def test_round_trip(folder):
    assert folder.name == "fold_2"
    meta, tensors = load_checkpoint(folder)
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        assert (tensors[name] == array).all()


def test_views_are_saved_as_they_look(tmp_path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_checkpoint(tmp_path, META, {"w": turned, "every second": np.arange(8.0)[::2]})
    _, tensors = load_checkpoint(tmp_path)
    assert (tensors["w"] == turned).all()
    assert tensors["every second"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint.safetensors"])
def test_a_damaged_or_missing_file(folder, name):
    data = (folder / name).read_bytes()
    for changed in (data[:-5], b"", b"garbage" * 9, b"[" * 100_000, b"[]"):
        (folder / name).write_bytes(changed)
        with pytest.raises(RunInvalid, match=name):
            load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(RunInvalid, match=name):
        load_checkpoint(folder)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunInvalid, match=r"There is no .*config\.json; .* run of `cmamil train`"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"temperature": 1.25', '"temperature": -1'),
        ('"labels": [', '"labels": [], "more": ['),
        ('"fold": 2', '"fold": "x"'),
        ('"mpp": 0.5', '"mpp": -0.5'),
    ],
)
def test_a_description_that_makes_no_sense(folder, old, new):
    path = folder / "checkpoint.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RunInvalid, match=r"checkpoint\.json"):
        load_checkpoint(folder)


def test_read_json_wants_an_object(tmp_path):
    with pytest.raises(RunInvalid):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(RunInvalid, match="object"):
        read_json(tmp_path / "a.json")
