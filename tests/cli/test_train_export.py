"""``cmamil train``, ``evaluate`` and ``export``: from feature files to a bundle that predicts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.cli.train import metrics_table
from cmamil_sdk.export.encoder import load_encoder
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, write_feature_file
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales
from cmamil_sdk.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("blank_pictures", "small_parity_bags")

RECIPE = TilingRecipe(scales=parse_scales("5x,10x,20x"))
LABELS = ("calm", "wild")
QUICK = ("--folds", "2", "--epochs", "2", "--val-share", "0.25", "--dim", "16", "--k-sample", "1")

HMIL = ("--model", "hmil", "--hierarchy", "h.yaml")
OF_HMIL: dict[str, tuple[list[str], Any]] = {
    "hierarchy": (["h.yaml", "--model", "hmil"], {"calm": "low", "wild": "high"}),
    "recipe": (["paper", *HMIL], "paper"),
    "head": (["shared", *HMIL], "shared"),
    "fine_weight": (["0.5", *HMIL], 0.5),
    "coarse_weight": (["0.5", *HMIL], 0.5),
    "bag_align_weight": (["0.5", *HMIL], 0.5),
    "inst_align_weight": (["0.5", *HMIL], 0.5),
    "contrast_weight": (["0.5", *HMIL], 0.5),
    "logit_adjust": (["0.5", *HMIL], 0.5),
}
OTHER_VALUES: dict[str, tuple[list[str], Any]] = {
    "model": (["hmil", "--hierarchy", "h.yaml"], "hmil"),
    "scales": (["5x, 20x"], ("5x", "20x")),
    "cross_attention": (["global"], "global"),
    "cross_norm": (["layer"], "layer"),
    "pooling": (["reference"], "reference"),
    "embed_dim": (["9"], 9),
    "dim": (["64"], 64),
    "attention_dim": (["5"], 5),
    "heads": (["2"], 2),
    "drop_out": (["0.5"], 0.5),
    "standardize": ([], False),
    "bag_loss": (["svm"], "svm"),
    "inst_loss": (["none"], "none"),
    "bag_weight": (["0.25"], 0.25),
    "k_sample": (["3"], 3),
    "subtyping": ([], True),
    "scale_loss": (["0.5"], 0.5),
    "label_smoothing": (["0.1"], 0.1),
    "epochs": (["7"], 7),
    "lr": (["0.01"], 0.01),
    "weight_decay": (["0.5"], 0.5),
    "schedule": (["cosine"], "cosine"),
    "accumulate": (["4"], 4),
    "sampling": (["balanced"], "balanced"),
    "max_tiles": (["500"], 500),
    "gradient_clip": (["1.5"], 1.5),
    "early_stopping": ([], True),
    "patience": (["3", "--early-stopping"], 3),
    "folds": (["3"], 3),
    "val_share": (["0.3"], 0.3),
    "test_share": (["0.4"], 0.4),
    "ignore_unlabelled": ([], True),
    "seed": (["11"], 11),
    "device": (["cpu"], "cpu"),
    "precision": (["bf16-mixed"], "bf16-mixed"),
    "log_data": ([], True),
    "threads": (["2"], 2),
    "cache_mb": (["64"], 64),
    **OF_HMIL,
}
"""For every field of the configuration: what follows its option, and the value that must arrive."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``features/`` of twelve slides of two kinds, and ``labels.csv``."""
    folder = tmp_path_factory.mktemp("cohort")
    encoder = load_encoder("efficientnet_lite0").info
    rng = np.random.default_rng(0)
    lines = ["slide,patient,label"]
    for number in range(12):
        slide, label = f"s{number:02d}", LABELS[number % 2]
        lines.append(f"{slide},p{number:02d},{label}")
        counts = {"5x": 1, "10x": 4, "20x": 16}
        parent = {n: np.arange(c, dtype=np.int64) // 4 for n, c in counts.items()}
        parent["5x"][:] = -1
        bag = Bag(
            slide_id=slide,
            scales=RECIPE.scales,
            features={
                n: rng.normal(number % 2, 0.3, (c, encoder.dim)).astype(np.float32)
                for n, c in counts.items()
            },
            coords={n: np.zeros((c, 2), dtype=np.int64) for n, c in counts.items()},
            parent=parent,
            tissue={n: np.ones(c, dtype=np.float32) for n, c in counts.items()},
        )
        provenance = FeatureProvenance(
            slide_id=slide,
            slide_sha256="0" * 64,
            width=896,
            height=896,
            mpp=0.5,
            mpp_source="metadata",
            reader="openslide",
            recipe=RECIPE,
            encoder=encoder,
            engine="onnxruntime-cpu-fp32",
        )
        write_feature_file(folder / "features" / f"{slide}.h5", bag, provenance)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that ``cmamil train`` would train with, instead of training."""
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, **_paths: Any) -> dict[str, Any]:
        seen.append(config)
        return {"folds": [], "mean": {}, "std": {}, "ci95": {}, "seconds": 0.0}

    monkeypatch.setattr("cmamil_sdk.training.run.train", train)
    return seen


def test_every_field_of_the_configuration_is_tried() -> None:
    assert set(OTHER_VALUES) == set(TrainConfig.model_fields)


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_option_reaches_the_configuration(
    field: str,
    cmamil: Callable[..., Any],
    captured: list[TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("h.yaml").write_text("calm: low\nwild: high\n")
    values, expected = OTHER_VALUES[field]
    # A switch that is on by default is turned off by its negative.
    negative = not values and expected is False
    option = f"--{'no-' if negative else ''}{field.replace('_', '-')}"
    answer = cmamil("train", "--features", "f", "--labels", "l.csv", option, *values, "--json")
    assert answer.code == 0, answer.err
    assert getattr(captured[0], field) == expected
    if field != "model":
        assert getattr(TrainConfig(), field) != expected, "this value would prove nothing"


def test_options_override_the_file_and_the_rest_is_taken_from_it(
    cmamil: Callable[..., Any], captured: list[TrainConfig], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("epochs: 9\nlr: 0.5\nscales: [20x]\n")
    answer = cmamil(
        "train", "--features", "f", "--labels", "l", "--config", config, "--lr", "0.25", "--json"
    )
    assert answer.code == 0, answer.err
    assert (captured[0].epochs, captured[0].lr, captured[0].scales) == (9, 0.25, ("20x",))


@pytest.mark.parametrize(
    "options", [("--drop-out", "2"), ("--epochs", "0"), ("--patience", "3"), ("--device", "tpu")]
)
def test_values_out_of_range_are_refused(
    options: tuple[str, str], cmamil: Callable[..., Any], captured: list[TrainConfig]
) -> None:
    answer = cmamil("train", "--features", "f", "--labels", "l", *options)
    assert answer.code == 2
    assert "CONFIG_INVALID" in answer.err
    assert captured == []


@pytest.mark.parametrize(
    "options",
    [
        ("--recipe", "ours"),
        ("--model", "hmil"),
        ("--model", "hmil", "--hierarchy", "absent.yaml"),
        (*HMIL, "--pooling", "attention"),
    ],
)
def test_options_of_the_other_model_are_refused(
    options: tuple[str, ...],
    cmamil: Callable[..., Any],
    captured: list[TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("h.yaml").write_text("calm: low\nwild: high\n")
    answer = cmamil("train", "--features", "f", "--labels", "l", *options)
    assert answer.code == 2
    assert "CONFIG_INVALID" in answer.err
    assert captured == []


def test_help_names_defaults_and_owners(cmamil: Callable[..., Any]) -> None:
    text = " ".join(cmamil("train", "--help").out.replace("│", " ").split())
    assert "(default: 0.0002; hmil: 0.0001)" in text
    assert "(default: 50; hmil: 200)" in text
    assert "(only cma-mil)" in text and "(not hmil)" in text


def test_help_is_grouped_and_short(
    cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    panels: dict[str, list[str]] = {}
    for line in cmamil("train", "--help").out.splitlines():
        if line.startswith("╭─"):
            panels[line.strip("╭─╮ ")] = []
        elif line.startswith("│"):
            next(reversed(panels.values())).append(line)
    options = {
        title: [line.split()[1] for line in lines if "--" in line]
        for title, lines in panels.items()
    }
    assert list(options) == [
        "Options",
        "Model",
        "Losses",
        "Hierarchy and losses, only hmil",
        "Optimisation",
        "Folds",
        "Run",
    ]
    schema = TrainConfig.model_json_schema()["properties"]
    of_hmil = [
        f"--{n}".replace("_", "-") for n, field in schema.items() if field.get("only") == ["hmil"]
    ]
    assert options["Hierarchy and losses, only hmil"] == of_hmil
    assert sum(map(len, options.values())) == len(schema) + 10
    assert sum(map(len, panels.values())) < 2 * sum(map(len, options.values()))


@pytest.mark.parametrize("text", ["nonsense: 1\n", "epochs: many\n", "- a\n", "a: [\n"])
def test_unusable_configuration_files(
    text: str, cmamil: Callable[..., Any], captured: list[TrainConfig], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    answer = cmamil("train", "--features", "f", "--labels", "l", "--config", config)
    assert answer.code == 2
    assert "CONFIG_INVALID" in answer.err
    assert str(config) in answer.err


@pytest.mark.slow
def test_train_evaluate_export_verify_predict(
    cmamil: Callable[..., Any], cohort: Path, small_slide: Path, tmp_path: Path
) -> None:
    run, bundles = tmp_path / "run", tmp_path / "bundles"
    data = ("--features", cohort / "features", "--labels", cohort / "labels.csv")
    trained = cmamil("train", *data, "--results_dir", run, *QUICK, "--json")
    assert trained.code == 0, trained.err
    assert "goes on" not in trained.err
    summary = trained.document
    assert json.loads((run / "metrics.json").read_text()) == summary
    assert {"model", "folds", "mean", "std", "ci95", "seconds"} <= set(summary)
    assert [fold["fold"] for fold in summary["folds"]] == [0, 1]

    again = cmamil("train", *data, "--results-dir", run, *QUICK)
    assert again.code == 0
    assert "fold 1" in again.out and "is finished already" in again.err
    other = cmamil("train", *data, "--results-dir", run, *QUICK, "--seed", "5")
    assert other.code == 2
    assert "OUTPUT_EXISTS" in other.err

    absent = cmamil("evaluate", "--run", run, *data, "--device", "cuda:99")
    assert "ENGINE_MISSING" in absent.err
    cpu = ("--device", "cpu")
    scores = cmamil("evaluate", "--run", run, *data, *cpu, "--json", "--out", tmp_path / "e")
    assert scores.code == 0, scores.err
    assert scores.document["mean"] == summary["mean"]
    assert json.loads((tmp_path / "e" / "metrics.json").read_text()) == scores.document
    written = (tmp_path / "e" / "predictions.csv").read_text()
    assert written == (run / "predictions.csv").read_text()

    export = ("export", "--run", run, "--name", "tiny", "--out", bundles, "--fold", "1")
    exported = cmamil(*export)
    assert exported.code == 0, exported.err
    assert "parity with the eager model" in exported.out
    assert str(bundles / "tiny" / "1") in exported.out
    assert cmamil("verify", bundles / "tiny" / "1").code == 0
    for taken in (run, tmp_path / "e"):
        kept = (taken / "metrics.json").read_bytes()
        over = cmamil("evaluate", "--bundle", bundles / "tiny" / "1", *data, "--out", taken)
        assert over.code == 2 and "OUTPUT_EXISTS" in over.err
        assert (taken / "metrics.json").read_bytes() == kept
    scores = cmamil("evaluate", "--bundle", bundles / "tiny" / "1", *data, "--json")
    assert scores.code == 0, scores.err
    assert scores.document["folds"][0]["test"]["slides"] == 12
    check_that_known_slides_are_counted(cmamil, cohort, run, bundles / "tiny" / "1", scores.err)
    answer = cmamil("predict", small_slide, "--bundle", bundles / "tiny" / "1", "--json")
    assert set(answer.document["predictions"][0]["probabilities"]) == set(LABELS)

    exported = cmamil(*export[:-1], "all", "--version", "2")
    assert exported.code == 0, exported.err
    assert "tiny/2 (folds 0, 1 together, manifest" in exported.out
    assert cmamil("verify", bundles / "tiny" / "2").code == 0
    scores = cmamil("evaluate", "--bundle", bundles / "tiny" / "2", *data, "--json")
    assert "12 of 12 slides had, by their names, a part in the training" in scores.err

    twice = cmamil(*export)
    assert twice.code == 2
    assert "OUTPUT_EXISTS" in twice.err


def check_that_known_slides_are_counted(
    cmamil: Callable[..., Any], cohort: Path, run: Path, bundle: Path, said_of_all: str
) -> None:
    """Of the bundle of fold 1: what was said on all slides, and on those of its test part."""
    with (run / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = {row["slide"] for row in rows if row["fold"] == "1" and row["split"] != "test"}
    assert said_of_all.count("\n") == 1
    assert f"{len(seen)} of 12 slides had, by their names, a part in the training" in said_of_all
    unseen, out = run / "unseen.csv", run / "unseen"
    lines = (cohort / "labels.csv").read_text().splitlines(keepends=True)
    unseen.write_text("".join(line for line in lines if line[:3] not in seen))
    data = ("--features", cohort / "features", "--labels", unseen)
    scores = cmamil("evaluate", "--bundle", bundle, *data, "--out", out)
    assert (scores.code, scores.err) == (0, "")
    assert "None of them had a part in its training" in (out / "report.html").read_text()


def test_one_fold_has_no_spread() -> None:
    one = {"fold": 0, "test": {"auc": 0.75}}
    summary = {"folds": [one], "mean": {"auc": 0.75}, "std": {"auc": None}, "ci95": {}}
    assert [line.split() for line in metrics_table(summary).splitlines()] == [
        ["test", "auc"],
        ["value", "0.750"],
        ["95", "%", "interval", "-"],
    ]
    two = {"fold": 1, "test": {"auc": 0.25}}
    summary |= {"folds": [one, two], "mean": {"auc": 0.5}, "std": {"auc": 0.25}}
    titles = [line.split("  ")[0] for line in metrics_table(summary).splitlines()]
    assert titles == ["test", "fold 0", "fold 1", "mean", "std", "95 % interval"]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--fold", "first"), 2, "FIELD_INVALID"),
        (("--name", "a/b"), 2, "FIELD_INVALID"),
        ((), 3, "RUN_INVALID"),
    ],
)
def test_export_refuses(
    cmamil: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], code: int, reason: str
) -> None:
    answer = cmamil("export", "--run", tmp_path, "--name", "n", "--out", tmp_path / "o", *options)
    assert answer.code == code
    assert reason in answer.err


@pytest.mark.parametrize("options", [(), ("--run", "r", "--bundle", "b")])
def test_evaluate_refuses(cmamil: Callable[..., Any], options: tuple[str, ...]) -> None:
    answer = cmamil("evaluate", *options, "--features", "f", "--labels", "l.csv")
    assert answer.code == 2
    assert "FIELD_INVALID" in answer.err


def test_train_names_what_is_missing(
    cmamil: Callable[..., Any], cohort: Path, tmp_path: Path
) -> None:
    answer = cmamil(
        *("train", "--features", tmp_path, "--labels", cohort / "labels.csv"),
        *("--results-dir", tmp_path / "r"),
    )
    assert answer.code == 3
    assert "FEATURE_FILE_INVALID" in answer.err
    assert str(tmp_path) in answer.err
