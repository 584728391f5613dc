"""``cmamil demo``: the whole path on generated slides, from file to served prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=60, help="How many slides are generated.")] = 60,
    slide: Annotated[
        Path | None, typer.Option(help="A slide of your own, predicted by the same server.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0 of --slide.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of slides and training.")] = 0,
) -> None:
    """Generate slides, extract features, train, export, serve, predict the held-out slides.

    Run it again to go on after an interruption. Your own --slide is predicted by a model that
    has seen generated tissue only: its answer shows that the path works, and means nothing else.
    """
    from cmamil_sdk.cli.demo_run import DemoSettings, run_demo

    run_demo(DemoSettings(out=out, slides=slides, own_slide=slide, own_mpp=mpp, seed=seed))
