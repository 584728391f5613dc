"""The stages of ``cmamil demo``, in order; each can be repeated after an interruption."""

from __future__ import annotations

import contextlib
import csv
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmamil_sdk import __version__
from cmamil_sdk.cli.demo_report import HeldOut, report_results
from cmamil_sdk.cli.output import Progress, say
from cmamil_sdk.client import Client
from cmamil_sdk.engines.gated import open_encoder
from cmamil_sdk.errors import OutputExists
from cmamil_sdk.export.bundle import export_bundle
from cmamil_sdk.export.encoder import exported_encoder
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.files import write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.predict import Prediction, ProgressEvent
from cmamil_sdk.runs import read_json
from cmamil_sdk.serving.own_process import running_server
from cmamil_sdk.slides import open_slide
from cmamil_sdk.synthetic import plan_cohort, write_cohort
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales
from cmamil_sdk.training.baselines import mean_feature_auc
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.run import train

ENCODER = "efficientnet_lite0"
SCALES = "5x,10x,20x"
BUNDLE_NAME = "demo"
SETTINGS_FILE = "demo.json"
TRAINING = {
    "dim": 128,
    "drop_out": 0.25,
    "lr": 2e-4,
    "weight_decay": 1e-3,
    "schedule": "onecycle",
    "label_smoothing": 0.05,
    "inst_loss": "none",
    "epochs": 25,
}
VAL_SHARE = 0.2  # of the first training; what it is compared with trains on the same folds


@dataclass(frozen=True)
class DemoSettings:
    """What the demo is asked for."""

    out: Path
    slides: int
    own_slide: Path | None
    own_mpp: float | None
    seed: int

    @property
    def cohort(self) -> dict[str, Any]:
        """What decides the slides; a folder holds one cohort only."""
        return {"slides": self.slides, "seed": self.seed, "sdk_version": __version__}


@dataclass
class Stages:
    """Seconds per stage, announced as they pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, title: str) -> Iterator[Progress]:
        """Time a stage under ``name`` and draw its progress under ``title``."""
        started = time.perf_counter()
        with Progress(title) as progress:
            yield progress
        self.passed(name, title, started)

    def passed(self, name: str, title: str, started: float) -> None:
        """Note and announce a stage that began at ``started`` (``time.perf_counter``)."""
        self.seconds[name] = round(time.perf_counter() - started, 2)
        say(f"{title}: {self.seconds[name]:.1f} s")


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run every stage; returns the document of ``summary.json``.

    Raises:
        OutputExists: the folder holds another cohort, or something else.
        CmamilError: whatever a stage raises.
    """
    if settings.own_slide is not None:
        with open_slide(settings.own_slide, mpp=settings.own_mpp) as reader:
            # A slide that cannot be predicted shows now, not in four minutes.
            make_plan(reader, TilingRecipe(scales=parse_scales(SCALES)))
    out = settings.out
    _claim(settings)
    stages, started = Stages(), time.perf_counter()
    slides = _write_slides(settings, stages)
    _extract(out, slides, stages)
    summary = _train(settings, stages)
    baselines = _train_baselines(settings, stages)
    bundle = _export(out, stages)
    truth = _held_out(out)
    serving = time.perf_counter()
    with running_server(bundle, _slides_roots(settings)) as address, Client(address) as client:
        stages.passed("serve", "Starting the server", serving)
        served = _predict_held_out(client, truth, stages)
        own = _predict_own(client, settings, stages)
    with stages.stage("report", "Drawing heatmaps"):
        held_out = HeldOut(truth=truth, predictions=served)
        report = report_results(
            out, held_out, baselines=baselines, own_slide=settings.own_slide, own=own
        )
    stages.seconds["total"] = round(time.perf_counter() - started, 2)
    document = {
        **report,
        "bundle": str(bundle),
        "seconds": stages.seconds,
        "baselines": baselines,
        "own_slide": None if own is None else own.to_json(),
        "training": {
            "val_auc": summary["folds"][0]["val"]["auc"],
            "settings": TRAINING | {"val_share": VAL_SHARE},
        },
        "cohort": settings.cohort,
    }
    write_json(out / "summary.json", document)
    _say_end(out, document)
    return document


def _claim(settings: DemoSettings) -> None:
    """Take the folder for this cohort, or refuse to touch what is there."""
    marker = settings.out / SETTINGS_FILE
    if settings.out.exists() and any(settings.out.iterdir()):
        if not marker.is_file() or read_json(marker) != settings.cohort:
            raise OutputExists(
                f"{settings.out} holds something other than the demo of {settings.slides} slides "
                f"with seed {settings.seed}; choose another --out, or remove it."
            )
        return
    write_json(marker, settings.cohort)


def _write_slides(settings: DemoSettings, stages: Stages) -> list[Path]:
    planned = plan_cohort(settings.slides, seed=settings.seed)
    folder = settings.out / "slides"
    with stages.stage("slides", f"Drawing {len(planned)} slides") as progress:
        return write_cohort(
            planned,
            folder,
            workers=available_cores(),
            keep_complete=True,
            on_slide=progress.update,
        )


def _extract(out: Path, slides: list[Path], stages: Stages) -> None:
    with stages.stage("features", "Extracting features at 5x, 10x and 20x") as progress:
        encoder = exported_encoder(ENCODER)
        recipe = TilingRecipe(scales=parse_scales(SCALES), tile_px=encoder.info.tile_px)
        engine = open_encoder(encoder.graph, encoder.parity).engine
        tiles = 0
        for number, slide in enumerate(slides, start=1):
            done = extract_slide(
                slide, out / "features", recipe=recipe, encoder=encoder.info, engine=engine
            )
            tiles += sum(done.tiles.values())
            progress.update(number, len(slides))
    say(f"  {tiles} tiles on {engine.info.label} ({engine.info.reason})")


def _train(settings: DemoSettings, stages: Stages) -> dict[str, Any]:
    with stages.stage("training", "Training CMA-MIL") as progress:
        return train(
            _config(settings.seed, val_share=VAL_SHARE),
            features=settings.out / "features",
            labels=settings.out / "slides" / "labels.csv",
            run=settings.out / "run",
            on_progress=lambda _fold, epoch, epochs, _metrics: progress.update(epoch, epochs),
        )


def _train_baselines(settings: DemoSettings, stages: Stages) -> dict[str, float]:
    """Held-out macro AUC of simpler ways to use the same features and the same splits."""
    out = settings.out
    features, labels = out / "features", out / "slides" / "labels.csv"
    with stages.stage("baselines", "Training what it is compared with"):
        found = {
            "logistic_regression_mean_20x": mean_feature_auc(
                features=features, labels=labels, splits=out / "run", scale="20x"
            )
        }
        variants: dict[str, dict[str, Any]] = {
            "cma_mil_20x_alone": {"scales": ["20x"]},
            "cma_mil_global_attention": {"cross_attention": "global"},
        }
        for name, changes in variants.items():
            trained = train(
                _config(settings.seed, **changes),
                features=features,
                labels=labels,
                run=out / "baselines" / name,
                splits=out / "run",
            )
            found[name] = trained["mean"]["auc"]
    return {name: round(value, 4) for name, value in found.items()}


def _config(seed: int, **changes: Any) -> TrainConfig:
    return make_config(**{**TRAINING, "seed": seed, **changes})


def _export(out: Path, stages: Stages) -> Path:
    with stages.stage("export", "Exporting encoder and aggregator to ONNX"):
        shutil.rmtree(out / "bundles", ignore_errors=True)
        return export_bundle(out / "run", out / "bundles", name=BUNDLE_NAME)


def _held_out(out: Path) -> dict[str, dict[str, str]]:
    """Rows of the labels table that training never saw, by slide id."""
    with (out / "slides" / "labels.csv").open(newline="", encoding="utf-8") as file:
        return {row["slide"]: row for row in csv.DictReader(file) if row["split"] == "held_out"}


def _slides_roots(settings: DemoSettings) -> list[Path]:
    roots = [settings.out / "slides"]
    if settings.own_slide is not None:
        roots.append(settings.own_slide.resolve().parent)
    return roots


def _predict_held_out(
    client: Client, truth: dict[str, dict[str, str]], stages: Stages
) -> dict[str, Prediction]:
    served = {}
    with stages.stage("predictions", f"Predicting {len(truth)} held-out slides") as progress:
        for number, slide in enumerate(truth):

            def show(event: ProgressEvent, number: int = number, slide: str = slide) -> None:
                share = event.done / max(event.total, 1) if event.stage == "encode" else 0.0
                progress.update(int(100 * (number + share)), 100 * len(truth), slide)

            served[slide] = client.predict(f"{slide}.svs", attention=True, on_progress=show)
    return served


def _predict_own(client: Client, settings: DemoSettings, stages: Stages) -> Prediction | None:
    if settings.own_slide is None:
        return None
    with stages.stage("own_slide", f"Predicting {settings.own_slide.name}"):
        return client.predict(
            str(settings.own_slide.resolve()), mpp=settings.own_mpp, attention=True
        )


def _say_end(out: Path, document: dict[str, Any]) -> None:
    low, high = document["auc_ci95"]
    say(f"\nTest accuracy {document['accuracy']:.3f}, macro AUC {document['auc']:.3f}")
    say(f"(95 % interval over patients {low:.3f} to {high:.3f}; {len(document['slides'])} slides)")
    for name, value in document["baselines"].items():
        say(f"  {name}: AUC {value:.3f}")
    say(f"\nPage      {out / 'report.html'}")
    say(f"Heatmaps  {out / 'heatmaps'}")
    say(f"Bundle    {document['bundle']}")
    say(f"Summary   {out / 'summary.json'}")
    say(f"Total     {document['seconds']['total']:.0f} s")


__all__ = ["DemoSettings", "run_demo"]
