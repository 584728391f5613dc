"""``cmamil predict``: slides to predictions, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cmamil_sdk.cli.output import Progress, failure, note, output_folder, say, say_json, table

HEATMAP_PX = 768


def run(
    slides: Annotated[list[Path], typer.Argument(help="Slide files, folders or a CSV.")],
    bundle: Annotated[Path, typer.Option(help="The bundle's directory, <name>/<version>.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions.json and heatmaps.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0 of all these slides.")
    ] = None,
    heatmap: Annotated[bool, typer.Option(help="Write <out>/<slide>.heatmap.png.")] = False,
    top_k: Annotated[int, typer.Option(min=0, help="How many telling tiles to name.")] = 16,
    engine: Annotated[str, typer.Option(help="Inference engine.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one per core by default.")
    ] = None,
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option(help="What a bad slide does to the run.")
    ] = "skip",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict each slide with a bundle; nothing leaves this machine."""
    from cmamil_sdk.bundle import Bundle
    from cmamil_sdk.cli.slide_list import expand_slides
    from cmamil_sdk.errors import CmamilError, FieldInvalid
    from cmamil_sdk.files import write_json
    from cmamil_sdk.predict import LocalPredictor, Prediction

    if heatmap and out is None:
        raise FieldInvalid("--heatmap needs a folder for the pictures; give --out.")
    files = expand_slides(slides)
    if out is not None:
        output_folder(out)
    predictor = LocalPredictor(Bundle.load(bundle, engine=engine, device=device), workers=workers)
    predictions: list[Prediction] = []
    failed: list[dict[str, str]] = []
    first_error: CmamilError | None = None
    for number, slide in enumerate(files, start=1):
        try:
            with Progress(f"{slide.name} ({number} of {len(files)})") as progress:
                prediction = predictor.predict(
                    slide,
                    mpp=mpp,
                    top_k=top_k,
                    on_progress=_drawn_on(progress),
                )
            if heatmap and out is not None:
                _write_heatmap(slide, out, prediction)
        except CmamilError as error:
            first_error = first_error or error
            failed.append(failure(slide.stem, error))
            note(f"{slide.name}: {error.reason}: {error}")
            if on_error == "stop":
                break
            continue
        predictions.append(prediction)
    document = {"predictions": [p.to_json() for p in predictions], "failed": failed}
    if out is not None:
        write_json(out / "predictions.json", document)
    if json:
        say_json(document)
    elif predictions:
        say(predictions_table(predictions))
    if first_error is not None:
        raise typer.Exit(first_error.exit_code if len(files) == 1 else 1)


def predictions_table(predictions: list[Any]) -> str:
    """One line per slide: label, probability, coarse label if any, tiles per scale, seconds."""
    scales = list(predictions[0].tiles)
    coarse = ["coarse"] if predictions[0].coarse else []
    rows = [
        [
            p.slide,
            p.label,
            round(p.probabilities[p.label], 3),
            *(max(p.coarse, key=p.coarse.get) for _ in coarse),
            *(p.tiles[s] for s in scales),
            round(p.seconds["total"], 2),
        ]
        for p in predictions
    ]
    return table(["slide", "prediction", "probability", *coarse, *scales, "seconds"], rows)


def _drawn_on(bar: Progress) -> Callable[[Any], None]:
    return lambda event: bar.update(event.done, event.total, event.stage)


def _write_heatmap(slide: Path, out: Path, prediction: Any) -> None:
    from cmamil_sdk.explain import save_heatmap

    save_heatmap(slide, out / f"{prediction.slide}.heatmap.png", prediction, max_px=HEATMAP_PX)
