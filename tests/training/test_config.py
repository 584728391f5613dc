from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.training.config import TrainConfig, load_config, make_config
from cmamil_sdk.training.recipes import recipe_of

HMIL = {"model": "hmil", "hierarchy": {"a": "x", "b": "y"}}
NO_WEIGHTS = dict.fromkeys(
    ("fine_weight", "coarse_weight", "bag_align_weight", "inst_align_weight"), 0.0
)


def test_defaults_are_the_documented_ones() -> None:
    config = TrainConfig()
    documented = {
        "bag_loss": "ce",
        "inst_loss": "svm",
        "bag_weight": 0.7,
        "k_sample": 8,
        "drop_out": 0.2,
        "dim": 128,
        "weight_decay": 1e-5,
        "early_stopping": False,
        "epochs": 50,
        "lr": 2e-4,
    }
    assert config.model_dump(include=set(documented)) == documented


def test_every_field_is_described() -> None:
    assert all(field.description for field in TrainConfig.model_fields.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"pooling": "max"}, "pooling"),
        ({"scales": ()}, "scales"),
        ({"device": "tpu"}, "device"),
        ({"bag_loss": "svm", "label_smoothing": 0.1}, "label_smoothing"),
        ({"patience": 3}, "patience"),
        ({"early_stopping": True, "val_share": 0}, "early_stopping"),
        ({"schedule": "plateau", "val_share": 0}, "'plateau' needs validation slides"),
        ({"inst_loss": "none", "bag_weight": 0.5}, "bag_weight has no effect with inst_loss"),
        ({"inst_loss": "none", "k_sample": 2}, "k_sample has no effect with inst_loss"),
        ({"inst_loss": "none", "subtyping": True}, "subtyping has no effect with inst_loss"),
        ({"bag_weight": 1, "inst_loss": "ce"}, "inst_loss has no effect with bag_weight 1"),
        ({"bag_weight": 1, "k_sample": 2}, "k_sample has no effect with bag_weight 1"),
        ({"model": "torchmil:CLAM_SB", "inst_loss": "none", "k_sample": 2}, "k_sample"),
        (HMIL | {"contrast_weight": 0.5, "accumulate": 1}, "contrast_weight compares"),
        (HMIL | {"recipe": "repo", "accumulate": 1}, "contrast_weight compares"),
        (HMIL | NO_WEIGHTS, "nothing would be trained"),
        (HMIL | NO_WEIGHTS | {"recipe": "paper", "contrast_weight": 0}, "nothing would be trained"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"inst_loss": "none"},
        {"inst_loss": "none", "bag_weight": 0.7, "k_sample": 8},
        {"bag_weight": 1.0},
        {"model": "abmil"},
        HMIL | {"accumulate": 1},
        HMIL | {"recipe": "paper", "accumulate": 1, "contrast_weight": 0},
        HMIL | NO_WEIGHTS | {"contrast_weight": 1.0},
        HMIL | NO_WEIGHTS | {"recipe": "paper"},
    ],
)
def test_what_makes_sense_reads_back_as_it_was_written(fields: dict[str, Any]) -> None:
    config = make_config(**fields)
    assert make_config(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("epochs", "patience"), [(5, 2), (20, 4), (50, 10), (200, 20)])
def test_patience_fits_the_number_of_epochs(epochs: int, patience: int) -> None:
    assert make_config(epochs=epochs, early_stopping=True).effective_patience == patience
    assert make_config(epochs=epochs, early_stopping=True, patience=3).effective_patience == 3


def test_yaml_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("epochs: 7\nscales: [10x, 20x]\n", encoding="utf-8")
    assert load_config(path, epochs=9) == make_config(epochs=9, scales=("10x", "20x"))
    path.write_text("epochs: 7\nwidth: 3\n", encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=r"train\.yaml: width"):
        load_config(path)


def test_scales_may_be_one_string(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("scales: 10x, 20x\n")
    assert load_config(path).scales == make_config(scales=("10x", "20x")).scales == ("10x", "20x")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "\x00", "[]\n", "a: 2020-13-45\n"])
def test_unreadable_yaml_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=r"train\.yaml"):
        load_config(path)
    with pytest.raises(ConfigInvalid, match="absent"):
        load_config(tmp_path / "absent.yaml")


def test_balanced_sampling_takes_the_place_of_logit_adjustment() -> None:
    hmil = {"model": "hmil", "hierarchy": {"a": "x", "b": "y"}}
    assert recipe_of(make_config(**hmil)).logit_adjust == 1.0
    assert recipe_of(make_config(**hmil, sampling="balanced")).logit_adjust == 0.0
    with pytest.raises(ConfigInvalid, match="balanced' has evened"):
        make_config(**hmil, sampling="balanced", logit_adjust=0.5)
    make_config(**hmil, sampling="balanced", logit_adjust=0.0)
