"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EngineName = Annotated[str, typer.Option(help="Inference engine.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
EngineCache = Annotated[
    Path | None,
    typer.Option(help="Folder of TensorRT plans that `cmamil plans` wrote, docs/tensorrt.md."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads; one per core by default.")]
RunMpp = Annotated[
    float | None, typer.Option(help="Microns per pixel of level 0 of all these slides.")
]
OnError = Annotated[Literal["skip", "stop"], typer.Option(help="What a bad slide does to the run.")]
Reader = Annotated[
    Literal["auto", "direct", "openslide"],
    typer.Option(help="What reads the slides; auto decides by file, docs/reading.md."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

__all__ = ["Device", "EngineCache", "EngineName", "Json", "OnError", "Reader", "RunMpp", "Workers"]
