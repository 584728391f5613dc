"""``cmamil predict``: slides to predictions, on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmamil_sdk.cli.options import (
    AllowFailedParity,
    Device,
    EngineCache,
    EngineName,
    Json,
    OnError,
    Precision,
    Reader,
    RunMpp,
    Workers,
)
from cmamil_sdk.cli.output import note, output_folder, printable, say, say_json, table

if TYPE_CHECKING:
    from cmamil_sdk.cli.slide_list import ListedSlide
    from cmamil_sdk.cli.slide_runs import RunProgress
    from cmamil_sdk.predict import ProgressEvent

HEATMAP_PX = 768


def run(
    context: typer.Context,
    slides: Annotated[
        list[Path], typer.Argument(readable=False, help="Slide files, folders or a CSV.")
    ],
    bundle: Annotated[Path, typer.Option(help="The bundle's directory, <name>/<version>.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions.json and heatmaps.")
    ] = None,
    mpp: RunMpp = None,
    reader: Reader = "auto",
    tissue_masks: Annotated[
        Path | None,
        typer.Option(
            help="Tissue masks, a file or a folder, for a bundle that takes its tissue from such."
        ),
    ] = None,
    heatmap: Annotated[bool, typer.Option(help="Write <out>/<slide>.heatmap.png.")] = False,
    top_k: Annotated[int, typer.Option(min=0, help="How many telling tiles to name.")] = 16,
    engine: EngineName = "auto",
    device: Device = "auto",
    engine_cache: EngineCache = None,
    precision: Precision = "auto",
    allow_failed_parity: AllowFailedParity = False,
    workers: Workers = None,
    on_error: OnError = "skip",
    json: Json = False,
) -> None:
    """Predict each slide with a bundle; nothing leaves this machine."""
    from cmamil_sdk.bundle import Bundle
    from cmamil_sdk.cli.slide_list import expand_slides
    from cmamil_sdk.cli.slide_runs import each_slide
    from cmamil_sdk.cli.tissue import check_masks
    from cmamil_sdk.engines.base import TENSORRT
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.explain import save_heatmap
    from cmamil_sdk.files import write_json
    from cmamil_sdk.predict import LocalPredictor, Prediction
    from cmamil_sdk.slides.open import check_mpp

    if engine_cache is not None and engine not in TENSORRT:
        raise FieldInvalid(
            f"--engine-cache has no effect with --engine {engine}; name one of {', '.join(TENSORRT)}."
        )
    if heatmap and out is None:
        raise FieldInvalid("--heatmap needs a folder for the pictures; give --out.")
    check_mpp(mpp)
    files = expand_slides(slides, mpp=mpp)
    if out is not None:
        output_folder(out)
    loaded = Bundle.load(
        bundle,
        engine=engine,
        device=device,
        engine_cache=engine_cache,
        precision=precision,
        callers=workers,
        reader=reader,
        allow_failed_parity=allow_failed_parity,
    )
    if heatmap and "contribution" not in loaded.manifest.explanations:
        raise FieldInvalid(
            f"--heatmap: model {loaded.manifest.model_kind} of bundle {loaded.label} does not say which "
            "tiles its answer comes from; leave --heatmap out."
        )
    check_masks(loaded.manifest.recipe.tissue, tissue_masks, files)
    predictor = LocalPredictor(loaded, workers=workers)
    context.call_on_close(predictor.close)
    predictions: list[Prediction] = []

    def predict(slide: ListedSlide, progress: RunProgress) -> None:
        prediction = predictor.predict(
            slide.path,
            mpp=mpp if slide.mpp is None else slide.mpp,
            reader=reader,
            tissue_masks=slide.mask or tissue_masks,
            top_k=top_k,
            on_progress=partial(_show, progress),
        )
        predictions.append(prediction)
        say_warnings(prediction)
        if out is not None:  # after each slide, so that a killed run keeps what it has
            write_json(out / "predictions.json", _document(predictions, []))
        if heatmap and out is not None:
            picture = out / f"{prediction.slide}.heatmap.png"
            save_heatmap(slide.path, picture, prediction, max_px=HEATMAP_PX, reader=reader)

    failures = each_slide(files, predict, stop_on_error=on_error == "stop")
    document = _document(predictions, failures.slides)
    if out is not None:
        write_json(out / "predictions.json", document)
    if json:
        say_json(document)
    elif predictions:
        say(predictions_table(predictions))
    raise typer.Exit(failures.exit_code(len(files)))


def _show(progress: RunProgress, event: ProgressEvent) -> None:
    if event.stage == "encode":  # the other stages count no tiles
        progress.update(event.done, event.total)


def _document(predictions: list[Any], failed: list[dict[str, str]]) -> dict[str, Any]:
    return {"predictions": [p.to_json() for p in predictions], "failed": failed}


def say_warnings(prediction: Any) -> None:
    """Each warning of a prediction on standard error, whatever is printed on standard output."""
    for warning in prediction.warnings:
        note(f"{printable(prediction.slide)}: warning: {warning}")


def predictions_table(predictions: list[Any]) -> str:
    """One line per slide: label, probability, coarse label if any, tiles per scale, seconds."""
    scales = list(predictions[0].tiles)
    coarse = ["coarse"] if predictions[0].coarse else []
    rows = [
        [
            p.slide,
            p.label,
            f"{p.probabilities[p.label]:.3f}",
            *([max(p.coarse, key=p.coarse.get)] if p.coarse else []),
            *(p.tiles[s] for s in scales),
            f"{p.seconds['total']:.2f}",
        ]
        for p in predictions
    ]
    return table(["slide", "prediction", "probability", *coarse, *scales, "seconds"], rows)
