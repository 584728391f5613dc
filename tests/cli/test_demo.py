"""``cmamil demo``: what it promises to write and print, that it learns, and how it refuses."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.metrics import roc_auc_score

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.cli import demo_run
from cmamil_sdk.cli.app import main
from cmamil_sdk.errors import ServerUnreachable
from cmamil_sdk.predict import LocalPredictor
from cmamil_sdk.serving import own_process
from cmamil_sdk.serving.own_process import running_server
from cmamil_sdk.synthetic import write_svs

CLASSES = ("benign", "in_situ", "invasive")
HELD_OUT_PER_CLASS = 6
STAGES = {
    *("slides", "features", "training", "baselines", "export"),
    *("serve", "predictions", "report", "total"),
}
BASELINES = {
    *("logistic_regression_mean_20x", "cma_mil_20x_alone", "cma_mil_global_attention"),
}


@dataclass(frozen=True)
class Run:
    """One run of the demo, and the state of its files when it was over."""

    folder: Path
    out: str
    err: str
    summary: dict[str, Any]
    written: dict[str, int]

    @property
    def slides(self) -> dict[str, dict[str, Any]]:
        return {slide["slide"]: slide for slide in self.summary["slides"]}

    @property
    def table(self) -> list[list[str]]:
        """Lines of the printed table, its heading first."""
        lines = self.out.splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith("slide "))
        last = next(n for n in range(first, len(lines)) if ":" in lines[n])
        return [line.split() for line in lines[first:last]]


def run_over(folder: Path, out: str, err: str) -> Run:
    """What a run has left in ``folder``."""
    written = {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }
    return Run(folder, out, err, json.loads((folder / "summary.json").read_text()), written)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo as `make demo` runs it: fewer slides teach it too little to promise anything."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "cmamil_sdk.cli", "demo", "--out", "demo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return run_over(folder / "demo", done.stdout, done.stderr)


@pytest.fixture(scope="module")
def again(
    first: Run,
    small_parity_bags: None,
    synthetic_slide: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Path]:
    """Once more, with a slide of the user's that lies elsewhere and says no mpp.

    Of the held-out slides only one per class is predicted again, and bags of full size are not
    compared again.
    """
    own = tmp_path_factory.mktemp("own") / "my slide.tif"
    with tifffile.TiffFile(synthetic_slide) as file:
        pixels = file.pages[0].asarray()
    tifffile.imwrite(own, pixels, tile=(256, 256), photometric="rgb", compression="jpeg")
    held_out = demo_run._held_out

    def one_per_class(out: Path) -> dict[str, dict[str, str]]:
        return dict({row["label"]: (slide, row) for slide, row in held_out(out).items()}.values())

    arguments = ["demo", "--out", "demo", "--slide", str(own), "--mpp", "0.5"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.chdir(first.folder.parent)
        patch.setattr(demo_run, "_held_out", one_per_class)
        with pytest.raises(SystemExit) as end:
            main(arguments)
    assert end.value.code in (None, 0)
    return run_over(first.folder, out.getvalue(), ""), own


def labels_of(run: Run) -> dict[str, dict[str, str]]:
    with (run.folder / "slides" / "labels.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestRun:
    """One whole run; the first of these tests waits for it."""

    def test_summary_holds_what_the_contract_names(self, first: Run) -> None:
        keys = {"auc", "accuracy", "auc_ci95", "bundle", "seconds", "slides", "baselines"}
        assert keys <= set(first.summary)
        assert set(first.summary["baselines"]) == BASELINES
        assert all(0 <= value <= 1 for value in first.summary["baselines"].values())
        seconds = first.summary["seconds"]
        assert set(seconds) == STAGES
        assert all(value > 0 for value in seconds.values())
        parts = sum(value for stage, value in seconds.items() if stage != "total")
        assert 0.8 * seconds["total"] < parts <= seconds["total"] + 0.1
        assert first.summary["own_slide"] is None
        assert "Traceback" not in first.err

    def test_it_has_learned(self, first: Run) -> None:
        assert first.summary["auc"] >= 0.9
        low, high = first.summary["auc_ci95"]
        assert 0.7 < low <= first.summary["auc"] <= high <= 1

    def test_held_out_slides_were_never_seen(self, first: Run) -> None:
        labels = labels_of(first)
        held_out = {name for name, row in labels.items() if row["split"] == "held_out"}
        assert set(first.slides) == held_out
        truths = Counter(slide["truth"] for slide in first.summary["slides"])
        assert truths == dict.fromkeys(CLASSES, HELD_OUT_PER_CLASS)
        assert all(slide["truth"] == labels[name]["label"] for name, slide in first.slides.items())
        with (first.folder / "run" / "splits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["slide"] for row in rows if row["split"] == "test"} == held_out
        patients = {
            part: {row["patient"] for row in rows if row["split"] == part}
            for part in ("train", "val", "test")
        }
        assert not patients["test"] & (patients["train"] | patients["val"])
        assert not patients["train"] & patients["val"]
        assert max(Counter(row["patient"] for row in rows).values()) > 1

    def test_figures_follow_from_the_answers(self, first: Run) -> None:
        slides = first.summary["slides"]
        truth = np.array([CLASSES.index(slide["truth"]) for slide in slides])
        chances = np.array([[slide["probabilities"][name] for name in CLASSES] for slide in slides])
        auc = np.mean([roc_auc_score(truth == k, chances[:, k]) for k in range(3)])
        assert first.summary["auc"] == pytest.approx(auc, abs=1e-4)
        right = (chances.argmax(axis=1) == truth).mean()
        assert first.summary["accuracy"] == pytest.approx(right, abs=1e-4)
        assert {
            slide["label"] == CLASSES[k]
            for slide, k in zip(slides, chances.argmax(axis=1), strict=True)
        } == {True}

    def test_table_is_the_one_described(self, first: Run) -> None:
        head, *lines = first.table
        scales = ["5x", "10x", "20x"]
        assert head == ["slide", "truth", "prediction", "probability", *scales, "seconds"]
        assert len(lines) == len(first.slides)
        for name, truth, label, probability, *tiles, seconds in lines:
            slide = first.slides[name]
            assert (truth, label) == (slide["truth"], slide["label"])
            assert float(probability) == pytest.approx(slide["probabilities"][label], abs=6e-4)
            assert [int(count) for count in tiles] == [slide["tiles"][s] for s in scales]
            assert float(seconds) == pytest.approx(slide["seconds"]["total"], abs=0.006)
        low, high = first.summary["auc_ci95"]
        figures = (first.summary["accuracy"], first.summary["auc"], low, high)
        for figure in (*figures, *first.summary["baselines"].values()):
            assert f"{figure:.3f}" in first.out
        for place in ("report.html", "heatmaps", "summary.json", "bundles/demo/1"):
            assert f"demo/{place}" in first.out
            assert (first.folder / place).exists()

    def test_the_tiles_are_as_many_as_promised(self, first: Run) -> None:
        found = re.search(r"^  (\d+) tiles on", first.out, re.MULTILINE)
        assert found is not None
        assert 3000 < int(found.group(1)) <= 12000

    def test_pictures_and_page_show_every_held_out_slide(self, first: Run) -> None:
        page = (first.folder / "report.html").read_text()
        names = {path.stem for path in (first.folder / "heatmaps").iterdir()}
        assert names == set(first.slides)
        for name in first.slides:
            assert f'<img src="heatmaps/{name}.png"' in page
            assert f"<td>{name}</td>" in page
            with Image.open(first.folder / "heatmaps" / f"{name}.png") as picture:
                picture.load()
                assert picture.format == "PNG"
                # Slide and evidence side by side; the evidence is in colour.
                right = np.asarray(picture.convert("RGB"))[44:, picture.width // 2 + 6 :]
                assert np.ptp(right.astype(int), axis=2).max() > 60

    def test_what_was_served_is_what_the_bundle_says(self, first: Run) -> None:
        bundle = Bundle.load(first.folder.parent / first.summary["bundle"], device="cpu")
        name, served = next(iter(first.slides.items()))
        predictor = LocalPredictor(bundle, workers=2)
        local = predictor.predict(first.folder / "slides" / f"{name}.svs").to_json()
        predictor.close()
        assert served["probabilities"] == pytest.approx(local["probabilities"], abs=1e-5)
        for key in ("label", "tiles", "mpp", "mpp_source", "bundle", "bundle_sha256"):
            assert served[key] == local[key], key

    def test_again_it_keeps_features_and_training(
        self, again: tuple[Run, Path], first: Run
    ) -> None:
        second, _ = again
        kept = [
            name
            for name in first.written
            if name.startswith("features/") or name.endswith((".safetensors", "history.csv"))
        ]
        assert len(kept) > 60
        assert [name for name in kept if second.written[name] != first.written[name]] == []
        for stage in ("features", "training"):
            assert second.summary["seconds"][stage] < first.summary["seconds"][stage] / 2
        assert len(second.slides) == len(CLASSES)
        for name, slide in second.slides.items():
            before = first.slides[name]["probabilities"]
            assert slide["probabilities"] == pytest.approx(before, abs=1e-5)

    def test_a_slide_of_the_user_is_predicted_by_the_same_server(
        self, again: tuple[Run, Path]
    ) -> None:
        second, own = again
        found = second.summary["own_slide"]
        assert (found["slide"], found["mpp"], found["mpp_source"]) == ("my slide", 0.5, "override")
        assert found["bundle"] == "demo/1"
        assert found["tiles"] == {"5x": 4, "10x": 12, "20x": 36}
        bundle = Bundle.load(second.folder / "bundles" / "demo" / "1", device="cpu")
        predictor = LocalPredictor(bundle, workers=2)
        local = predictor.predict(own, mpp=0.5)
        predictor.close()
        assert found["probabilities"] == pytest.approx(local.probabilities, abs=1e-5)
        # It counts neither as held out nor in the figures, but is shown with the others.
        assert "my slide" not in second.slides
        assert "my slide" in (second.folder / "report.html").read_text()
        assert (second.folder / "heatmaps" / "own-my slide.png").is_file()
        assert second.table[-1][:3] == ["my", "slide", "unknown"]
        assert second.summary["seconds"]["own_slide"] > 0


def test_a_folder_of_something_else_is_left_alone(
    cmamil: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    answer = cmamil("demo", "--out", out)
    assert answer.code == 2
    assert answer.err.startswith("cmamil: OUTPUT_EXISTS: ")
    assert str(out) in answer.err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("marker", ['{"slides": 60, "seed": 1}', '{"slides": 33, "seed": 0}'])
def test_a_folder_of_another_cohort_is_left_alone(
    cmamil: Callable[..., Any], tmp_path: Path, marker: str
) -> None:
    (tmp_path / "demo.json").write_text(marker)
    answer = cmamil("demo", "--out", tmp_path)
    assert (answer.code, answer.err.split()[1]) == (2, "OUTPUT_EXISTS:")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("options", [("--slides", "29"), ("--seed", "-1"), ("--slides", "many")])
def test_bad_usage_writes_nothing(
    cmamil: Callable[..., Any], tmp_path: Path, options: tuple[str, str]
) -> None:
    assert cmamil("demo", "--out", tmp_path / "demo", *options).code == 2
    assert list(tmp_path.iterdir()) == []


def blank(path: Path) -> None:
    write_svs(np.full((900, 900, 3), 244, np.uint8), path, mpp=0.5, objective_power=20)


def silent_on_mpp(path: Path) -> None:
    pixels = np.full((900, 900, 3), 120, np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "SLIDE_NOT_FOUND"),
        (lambda path: path.write_text("no slide"), "SLIDE_FORMAT_UNSUPPORTED"),
        (silent_on_mpp, "MPP_UNKNOWN"),
        (blank, "NO_TISSUE"),
    ],
)
def test_a_slide_that_cannot_be_predicted_fails_at_once(
    cmamil: Callable[..., Any], tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    slide = tmp_path / "own.tif"
    make(slide)
    started = time.perf_counter()
    answer = cmamil("demo", "--out", tmp_path / "demo", "--slide", slide)
    assert time.perf_counter() - started < 20
    assert answer.code == 3
    assert answer.err.startswith(f"cmamil: {reason}: ")
    assert not (tmp_path / "demo").exists()


def test_the_server_is_up_within_and_gone_after(tiny_bundle: Path, tmp_path: Path) -> None:
    from cmamil_sdk.client import Client

    with running_server(tiny_bundle, [tmp_path]) as address, Client(address) as client:
        assert client.health() == "SERVING"
    with Client(address, timeout_s=5) as client, pytest.raises(ServerUnreachable):
        client.health()


def test_a_server_that_cannot_start_is_named_with_its_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerUnreachable, match=r"did not start \(cmamil: BUNDLE_"),
        running_server(tmp_path / "none", [tmp_path]),
    ):
        pytest.fail("there is no bundle to serve")


def test_a_server_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = tmp_path / "python"
    mute.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nexec sleep 60\n")
    mute.chmod(0o755)
    monkeypatch.setattr(own_process.sys, "executable", str(mute))
    monkeypatch.setattr(own_process, "_START_TIMEOUT_S", 1.0)
    with (
        pytest.raises(ServerUnreachable, match="it printed nothing"),
        running_server(tmp_path, [tmp_path]),
    ):
        pytest.fail("it never said where it serves")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
