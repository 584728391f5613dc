"""``cmamil train`` on the layouts of other tools, with their own command lines."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("blank_pictures", "small_parity_bags")

LABELS = ("calm", "wild")
SLIDES = {f"{label}_{n}": label for n in range(10) for label in LABELS}
QUICK = ("--epochs", "2", "--dim", "8", "--k-sample", "1")

# As the READMEs of CMA-MIL and HMIL have them, after the name of their program.
CMA_MIL = """
  --data_root_5x data/5x \\
  --data_root_10x data/10x \\
  --data_root_20x data/20x \\
  --folds 5 \\
  --epochs 20 \\
  --bag_loss ce \\
  --inst_loss svm \\
  --early_stopping \\

"""
HMIL = (
    "--feature_directory FEATURE_DIRECTORY --root DATA_SPLIT_DIRECTORY --label_csv LABEL_CSV "
    "--split_csv_root SPLIT_CSV_ROOT --folds 3"
)
HMIL_CONFIG = "--config CONFIG_FILE"


def tiles(slide: str, n: int) -> np.ndarray:
    """Tiles ``[n, 6]`` that show the slide's label."""
    rng = np.random.default_rng([list(SLIDES).index(slide), n])
    features = rng.standard_normal((n, 6)).astype(np.float32)
    features[:, LABELS.index(SLIDES[slide])] += 2.0
    return features


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a labels table in CLAM's form."""
    monkeypatch.chdir(tmp_path)
    with Path("LABEL_CSV").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "label"])
        writer.writerows([f"patient of {slide}", slide, label] for slide, label in SLIDES.items())
    return tmp_path


def write_trees(folder: Path, *, val: bool = True) -> None:
    """Five folds at three scales; every slide is tested once."""
    for position, (slide, label) in enumerate(SLIDES.items()):
        number = position // 2 % 5 + 1
        for fold in range(1, 6):
            part = "test" if fold == number else "train"
            if val and fold % 5 + 1 == number:
                part = "val"
            for scale, n in (("5x", 1), ("10x", 4), ("20x", 9)):
                place = folder / scale / str(fold) / part / label
                place.mkdir(parents=True, exist_ok=True)
                np.save(place / f"{slide}.npy", tiles(slide, n))


def write_folder(folder: Path, suffix: str) -> None:
    folder.mkdir()
    for slide in SLIDES:
        path = folder / f"{slide}{suffix}"
        if suffix == ".npy":
            np.save(path, tiles(slide, 5))
        elif suffix == ".pt":
            torch.save(torch.from_numpy(tiles(slide, 5)), path)
        else:
            with h5py.File(path, "w") as file:
                file["features"] = tiles(slide, 5)[None]
                file["coords"] = np.zeros((5, 2), np.int64)


def folds_of(run: Path) -> dict[int, dict[str, set[str]]]:
    """Slides per fold and part in a run's splits.csv."""
    folds: dict[int, dict[str, set[str]]] = {}
    with (run / "splits.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            parts = folds.setdefault(int(row["fold"]), {})
            parts.setdefault(row["split"], set()).add(row["slide"])
    return folds


def test_the_command_of_cma_mil(cmamil: Callable[..., Any], workplace: Path) -> None:
    write_trees(workplace / "data")
    line = shlex.split(CMA_MIL.replace("\\\n", " "))
    trained = cmamil("train", *line, "--epochs", "2")  # the last of two counts
    assert trained.code == 0, trained.err
    run = workplace / "results"
    assert sorted(path.name for path in run.glob("fold_*")) == [f"fold_{n}" for n in range(1, 6)]
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["scales"] == ["5x", "10x", "20x"]
    assert config["model"]["cross_attention"] == "global"
    assert config["labels"] == list(LABELS)
    wanted = {"epochs": 2, "bag_loss": "ce", "inst_loss": "svm", "early_stopping": True}
    assert wanted.items() <= config["config"].items()
    for fold, parts in folds_of(run).items():
        assert parts["test"] == {s for i, s in enumerate(SLIDES) if i // 2 % 5 + 1 == fold}
    predicted = (run / "predictions.csv").read_text().splitlines()
    assert len(predicted) == 1 + 2 * len(SLIDES)

    roots = [word for s in ("5x", "10x", "20x") for word in (f"--data_root_{s}", f"data/{s}")]
    scores = cmamil("evaluate", "--run", run, *roots, "--json")
    assert scores.code == 0, scores.err
    summary = json.loads((run / "metrics.json").read_text())
    assert scores.document["mean"] == summary["mean"]

    exported = cmamil("export", "--run", run, "--name", "n", "--out", workplace / "bundles")
    assert exported.code == 3
    assert "PROVENANCE_UNKNOWN" in exported.err and "`cmamil features`" in exported.err
    assert not (workplace / "bundles").exists()


def test_a_tree_without_val_gets_one_from_train(
    cmamil: Callable[..., Any], workplace: Path
) -> None:
    write_trees(workplace / "data", val=False)
    line = ("train", "--data_root_20x", "data/20x", *QUICK, "--val_share", "0.25", "--folds", "2")
    for run in ("one", "two"):
        assert cmamil(*line, "--results-dir", run).code == 0
    folds = folds_of(workplace / "one")
    assert folds == folds_of(workplace / "two")
    assert list(folds) == [1, 2]
    for parts in folds.values():
        assert {part: len(slides) for part, slides in parts.items()} == {
            "train": 12,
            "val": 4,
            "test": 4,
        }
        assert sorted(SLIDES[slide] for slide in parts["val"]) == ["calm", "calm", "wild", "wild"]


def test_a_table_tells_the_patients_of_a_tree(cmamil: Callable[..., Any], workplace: Path) -> None:
    """Two slides of each patient, which stand in one part; intervals are over ten, not twenty."""
    write_trees(workplace / "data")
    pairs = {slide: f"p{position // 2}" for position, slide in enumerate(SLIDES)}
    lines = [f"{slide},{label},{pairs[slide]}" for slide, label in SLIDES.items()]
    Path("patients.csv").write_text("\n".join(["slide,label,patient", *lines, ""]))
    line = ("train", "--data-root-20x", "data/20x", "--folds", "2", *QUICK, "--json")
    told = cmamil(*line, "--labels", "patients.csv", "--results-dir", "told")
    untold = cmamil(*line, "--results-dir", "untold")
    assert told.code == untold.code == 0, told.err
    with Path("told/splits.csv").open(encoding="utf-8") as file:
        assert all(row["patient"] == pairs[row["slide"]] for row in csv.DictReader(file))
    tests = [answer.document["folds"][0]["test"] for answer in (told, untold)]
    assert [test["patients"] for test in tests] == [2, 4]
    assert tests[0]["accuracy"] == tests[1]["accuracy"]
    assert "20 of 10 patients" in Path("told/report.html").read_text()
    assert (
        "patients are not known: each slide counts as one" in Path("untold/report.html").read_text()
    )
    scores = ("evaluate", "--run", "told", "--data-root-20x", "data/20x", "--json")
    again = cmamil(*scores, "--labels", "patients.csv")
    assert again.document["ci95"] == told.document["ci95"]
    assert "gives slide 'calm_0' the patient" in cmamil(*scores).err


def test_the_commands_of_hmil(cmamil: Callable[..., Any], workplace: Path) -> None:
    write_folder(workplace / "FEATURE_DIRECTORY", ".pt")
    split = ("split", "--labels", "LABEL_CSV", "--out", "SPLIT_CSV_ROOT", "--format", "clam")
    assert cmamil(*split).code == 0
    trained = cmamil("train", *HMIL.split(), *QUICK)
    assert trained.code == 0, trained.err
    folds = folds_of(workplace / "DATA_SPLIT_DIRECTORY")
    assert list(folds) == [0, 1, 2]
    for fold, parts in folds.items():
        with Path(f"SPLIT_CSV_ROOT/splits_{fold}.csv").open(encoding="utf-8") as file:
            columns = list(csv.DictReader(file))
        assert parts == {p: {row[p] for row in columns} - {""} for p in ("train", "val", "test")}

    Path("settings").mkdir()
    Path("settings/hierarchy.yaml").write_text("calm: low\nwild: high\n")
    Path("settings/hmil.yaml").write_text(
        "model: hmil\nhierarchy: hierarchy.yaml\nepochs: 2\ndim: 8\nfolds: 1\n"
        "features: ../FEATURE_DIRECTORY\nlabels: ../LABEL_CSV\nsplits: ../SPLIT_CSV_ROOT\n"
        "results_dir: ../of_hmil\n"
    )
    line = HMIL_CONFIG.replace("CONFIG_FILE", "settings/hmil.yaml").split()
    trained = cmamil("train", *line, "--json")
    assert trained.code == 0, trained.err
    assert trained.document["model"] == "hmil"
    assert list(folds_of(workplace / "of_hmil")) == [0]
    elsewhere = cmamil("train", *line, "--results-dir", "elsewhere")
    assert elsewhere.code == 0 and (workplace / "elsewhere" / "metrics.json").exists()


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".h5"])
def test_flat_folders_train_and_evaluate_alike(
    cmamil: Callable[..., Any], workplace: Path, suffix: str
) -> None:
    write_folder(workplace / "f", suffix)
    data = ("--features", "f", "--labels", "LABEL_CSV")
    trained = cmamil("train", *data, "--folds", "2", *QUICK, "--scales", "20x", "--json")
    assert trained.code == 0, trained.err
    config = json.loads((workplace / "results" / "config.json").read_text())
    assert config["model"]["scales"] == ["20x"] and config["model"]["feature_dim"] == 6
    checkpoint = json.loads((workplace / "results" / "fold_0" / "checkpoint.json").read_text())
    assert checkpoint["recipe"] is None and checkpoint["encoder"] is None
    scores = cmamil("evaluate", "--run", "results", *data, "--json")
    assert scores.document["mean"] == trained.document["mean"]
    np.save(workplace / "f" / "calm_0.npy", np.ones((2, 6), np.float32))
    for other in set((workplace / "f").glob("calm_0.*")) - {workplace / "f" / "calm_0.npy"}:
        other.unlink()
    changed = cmamil("train", *data, "--folds", "2", *QUICK, "--scales", "20x")
    assert changed.code == 2 and "features_sha256" in changed.err


def test_the_folds_of_cma_mil_as_splits(cmamil: Callable[..., Any], workplace: Path) -> None:
    write_folder(workplace / "f", ".npy")
    Path("folds").mkdir()
    for fold, tested in ((1, "01"), (2, "23")):
        lines = {kind: ["class,filename"] for kind in ("training", "test")}
        for slide, label in SLIDES.items():
            kind = "test" if slide[-1] in tested else "training"
            lines[kind].append(f"{1 - LABELS.index(label)},{slide}")
        for kind, text in lines.items():
            path = Path(f"folds/fold_{fold}_{kind}.csv")
            path.write_bytes("\r\n".join([*text, ""]).encode())
    data = ("--features", "f", "--labels", "LABEL_CSV", "--splits", "folds")
    trained = cmamil("train", *data, *QUICK)
    assert trained.code == 0, trained.err
    folds = folds_of(workplace / "results")
    assert {fold: len(parts["test"]) for fold, parts in folds.items()} == {1: 4, 2: 4}
    assert all(parts["val"] for parts in folds.values())


TREE = ("--data-root-5x", "data/5x", "--data-root-20x", "data/20x")
FLAT = ("--features", "f", "--labels", "LABEL_CSV")


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        ((), "FIELD_INVALID", "No features were named"),
        ((*TREE, *FLAT), "FIELD_INVALID", "--features f and --data-root-5x were both given"),
        (("--features", "f"), "CONFIG_INVALID", "need a labels CSV"),
        ((*TREE, "--labels", "other.csv"), "LABELS_INVALID", "stands in the folder 'calm'"),
        ((*TREE, "--labels", "short.csv"), "LABELS_INVALID", "does not name wild_9, which data/5x"),
        ((*TREE, "--labels", "torn.csv"), "LABELS_INVALID", "patient p0 are in more than one part"),
        ((*TREE, "--splits", "s"), "CONFIG_INVALID", "leave out splits s"),
        ((*TREE, "--ignore-unlabelled"), "CONFIG_INVALID", "leave out ignore_unlabelled"),
        ((*TREE, "--folds", "6"), "CONFIG_INVALID", "holds 5"),
        ((*TREE, "--val-share", "0.3"), "CONFIG_INVALID", "val_share has no effect"),
        ((*TREE, "--test-share", "0.3"), "CONFIG_INVALID", "test_share has no effect"),
        ((*TREE, "--scales", "10x"), "SCALE_MISMATCH", "no data root for scale 10x"),
        ((*TREE, "--cross-attention", "nested"), "CONFIG_INVALID", "needs the tiles' parents"),
        (
            (*FLAT, "--cross-attention", "nested"),
            "CONFIG_INVALID",
            "no effect on the one scale tiles",
        ),
        ((*FLAT, "--scales", "5x,20x"), "SCALE_MISMATCH", "tiles of one scale"),
        ((*FLAT, "--test-share", "0.3"), "CONFIG_INVALID", "test_share has no effect"),
        (("--config", "c.yaml"), "CONFIG_INVALID", "features 7 is no path"),
    ],
)
def test_contradictions_end_before_training(
    cmamil: Callable[..., Any],
    workplace: Path,
    options: tuple[str, ...],
    reason: str,
    words: str,
) -> None:
    write_trees(workplace / "data")
    write_folder(workplace / "f", ".npy")
    Path("c.yaml").write_text("features: 7\nlabels: LABEL_CSV\n")
    table = Path("LABEL_CSV").read_text()
    Path("other.csv").write_text(table.replace(",calm_3,calm", ",calm_3,wild"))
    Path("short.csv").write_text(table.replace("patient of wild_9,wild_9,wild", ""))
    Path("torn.csv").write_text(re.sub("patient of (calm_0|calm_1)", "p0", table))
    answer = cmamil("train", *options)
    assert answer.code == 2
    assert re.search(rf"{reason}: .*{re.escape(words)}", answer.err), answer.err
    assert not (workplace / "results").exists()
