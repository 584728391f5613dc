"""What people look at after a training, and the evaluation of bundles."""

from __future__ import annotations

import csv
import io
import re
from base64 import b64decode
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import LabelsInvalid, RecipeMismatch
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import read_feature_file, write_feature_file
from cmamil_sdk.tiling.recipe import parse_scales
from cmamil_sdk.training.bootstrap import Scored
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.evaluation import evaluate_bundle
from cmamil_sdk.training.metrics import score
from cmamil_sdk.training.outputs import changed_settings, write_evaluation
from cmamil_sdk.training.plots import calibration_png, confusion_png, curves_png, roc_png
from cmamil_sdk.training.report import Examined, Report, write_report
from cmamil_sdk.training.run import train

from .conftest import Cohort, provenance, write_labels

NAMES = ("benign", "in $\\situ$", "<b>rare</b>")


def drawn(n: int, seed: int, labels: tuple[int, ...] = (0, 1)) -> Scored:
    rng = np.random.default_rng(seed)
    truth = rng.choice(labels, n).astype(np.int64)
    logits = rng.standard_normal((n, 3))
    logits[np.arange(n), truth] += 1.0
    powers = np.exp(logits)
    return Scored(powers / powers.sum(1, keepdims=True), truth, [str(i) for i in range(n)])


def picture(data: bytes) -> np.ndarray:
    """Pixels ``[H, W, 3]`` of a PNG that is more than background."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    return pixels


def test_pictures_are_drawn_with_an_absent_class_and_without_validation() -> None:
    parts = [drawn(20, 0), drawn(20, 1)]
    picture(roc_png(parts, NAMES))
    picture(calibration_png(parts, parts))
    history = [{"epoch": e, "train_loss": 1.0 / e, "lr": 1e-3} for e in (1, 2, 3)]
    alone = picture(curves_png(history, 3))
    validated = [row | {"val_loss": 1.0, "val_auc": 0.5 + row["epoch"] / 10} for row in history]
    assert picture(curves_png(validated, 2)).shape[1] > 1.2 * alone.shape[1]
    unknown = [row | {"val_auc": float("nan")} for row in validated]
    picture(curves_png(unknown, 1))


def test_confusion_is_shaded_by_the_share_of_the_truth() -> None:
    """All slides of both classes are taken for the first: its column is dark, the other light."""
    pixels = picture(confusion_png(np.array([[9, 0], [3, 0]]), ["a", "b"]))
    dark = (pixels.astype(int).sum(axis=2) < 250) & (pixels[..., 2] > 60)
    rows, columns = np.nonzero(dark)
    assert len(rows) > 10_000
    assert np.mean(columns < 0.55 * pixels.shape[1]) > 0.99
    picture(confusion_png(np.eye(3, dtype=np.int64), NAMES))
    picture(confusion_png(np.eye(20, dtype=np.int64), [f"class {i}" for i in range(20)]))


def report_text(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "http" not in page
    for source in re.findall(r'<img[^>]* src="([^"]*)"', page):
        picture(b64decode(source.removeprefix("data:image/png;base64,")))
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(style).*?</\1>", "", page, flags=re.S)))


def test_the_page_names_wrong_answers_of_most_confidence_first(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]])
    truth = np.array([1, 1, 1, 0])
    answers = Scored(probabilities, truth, list("abcd"))
    test = score(answers, NAMES)
    scalars = {name: value for name, value in test.items() if isinstance(value, float)}
    summary = {"folds": [{"fold": 0, "test": test}], "mean": scalars, "std": scalars, "ci95": {}}
    slides = ("sure & wrong", "less sure", "right", "third")
    write_report(
        tmp_path,
        Report(
            title="T",
            introduction="I",
            facts={"slides": "4"},
            labels=NAMES,
            summary=summary,
            tested=[Examined("test", slides, answers, answers)],
            next_steps=[("Do <this>:", "cmamil x")],
        ),
    )
    text = report_text(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calibration.png",
        "confusion.png",
        "report.html",
        "roc.png",
    ]
    assert "3 of 4 answers are wrong" in text and "Do <this>:" in text
    found = [text.index(slide) for slide in ("sure & wrong", "third", "less sure")]
    assert found == sorted(found) and "right " not in text[found[0] : found[0] + 400]
    assert "<b>rare</b>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run(shared_cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    config = make_config(epochs=2, folds=2, dim=8, lr=1e-3, seed=4)
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    summary = train(config, **paths, run=run)
    text = " ".join(report_text(run).split())
    assert "Training of cma-mil: my run" in text
    assert "36 of 18 patients" in text and "benign (12)" in text
    for name, value in (("epochs", "2"), ("dim", "8"), ("lr", "0.001"), ("seed", "4")):
        assert f" {name} {value} " in text
    assert "drop_out" not in text and "coarse" not in text
    assert "ECE after temperature" in text and "ECE before temperature" in text
    low, high = summary["ci95"]["auc"]
    assert f"{summary['mean']['auc']:.3f}" in text and f"{low:.3f} to {high:.3f}" in text
    assert f"cmamil export --run '{run}' --fold best --name model" in text
    for fold in (0, 1):
        assert (run / f"fold_{fold}" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_settings_that_differ_are_told() -> None:
    assert changed_settings(make_config()) == {}
    assert changed_settings(make_config(lr=0.5, scales=("5x", "20x"))) == {
        "lr": "0.5",
        "scales": "5x, 20x",
    }
    hierarchy = {"a": "x", "b": "y"}
    assert changed_settings(make_config(model="hmil", hierarchy=hierarchy)) == {
        "hierarchy": "a: x, b: y",
    }


@pytest.fixture(scope="module")
def new_slides(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides that no run knows, of two of the bundle's three labels."""
    folder = tmp_path_factory.mktemp("new")
    manifest = Bundle.load(tiny_bundle).manifest
    rows = []
    for number in range(6):
        slide, rng = f"new_{number}", np.random.default_rng(number)
        counts = {"5x": 1, "10x": 4, "20x": 16}
        parent = {n: np.arange(c, dtype=np.int64) // 4 for n, c in counts.items()}
        parent["5x"][:] = -1
        bag = Bag(
            slide_id=slide,
            scales=parse_scales("5x,10x,20x"),
            features={n: rng.normal(0, 1, (c, 1280)).astype(np.float32) for n, c in counts.items()},
            coords={n: np.zeros((c, 2), np.int64) for n, c in counts.items()},
            parent=parent,
            tissue={n: np.ones(c, np.float32) for n, c in counts.items()},
        )
        origin = {"recipe": manifest.recipe, "encoder": manifest.encoder}
        write_feature_file(
            folder / "features" / f"{slide}.h5", bag, provenance(slide).model_copy(update=origin)
        )
        rows.append({"slide": slide, "label": ("invasive", "benign")[number % 2]})
    write_labels(folder / "labels.csv", rows)
    return folder


def test_a_bundle_answers_for_new_slides_through_its_graph(
    tiny_bundle: Path, new_slides: Path, tmp_path: Path
) -> None:
    paths = {"features": new_slides / "features", "labels": new_slides / "labels.csv"}
    evaluation = evaluate_bundle(tiny_bundle, **paths)
    write_evaluation(tmp_path, evaluation)
    bundle = Bundle.load(tiny_bundle)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names, right = bundle.manifest.labels, 0
    for row in rows:
        expected = bundle.aggregate_file(paths["features"] / f"{row['slide']}.h5").probabilities
        given = [float(row[f"probability_{name}"]) for name in names]
        assert given == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["prediction"] == names[int(expected.argmax())]
        right += row["prediction"] == row["label"]
    assert len(rows) == 6
    test = evaluation.summary["folds"][0]["test"]
    assert test["accuracy"] == pytest.approx(right / 6)
    assert test["auc_per_class"]["in_situ"] is None
    assert evaluation.summary["folds"][0]["temperature"] == 1.5
    assert test["ece"] != test["ece_uncalibrated"]
    assert set(evaluation.summary["ci95"]) == set(evaluation.summary["mean"])
    text = report_text(tmp_path)
    assert "Bundle tiny/1 answered for 6 slides" in text
    assert evaluation.flattered and "does not say which slides trained it" in text


def test_a_bundle_refuses_what_it_does_not_know(
    tiny_bundle: Path, new_slides: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    write_labels(
        labels, [{"slide": "new_0", "label": "malign"}, {"slide": "new_1", "label": "benign"}]
    )
    with pytest.raises(
        LabelsInvalid, match=r"malign, which the model does not know \(it knows benign"
    ):
        evaluate_bundle(tiny_bundle, features=new_slides / "features", labels=labels)
    bag, made = read_feature_file(new_slides / "features" / "new_0.h5")
    encoder = made.encoder.model_copy(update={"weights_sha256": "f" * 64})
    other = made.model_copy(update={"encoder": encoder})
    write_feature_file(tmp_path / "features" / "new_0.h5", bag, other)
    write_labels(labels, [{"slide": "new_0", "label": "benign"}])
    with pytest.raises(RecipeMismatch, match="another recipe or encoder than bundle tiny/1"):
        evaluate_bundle(tiny_bundle, features=tmp_path / "features", labels=labels)
    labels.write_text("slide,label\n", encoding="utf-8")
    with pytest.raises(LabelsInvalid, match="names no slide"):
        evaluate_bundle(tiny_bundle, features=new_slides / "features", labels=labels)
