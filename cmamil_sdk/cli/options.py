"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

GraphEngineName = Annotated[
    str,
    typer.Option(
        help="What runs the encoder: auto, onnxruntime, openvino or torch, docs/engines.md."
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        help="What runs the encoder: auto, onnxruntime, openvino, torch, docs/engines.md; "
        "tensorrt-rtx or tensorrt, docs/tensorrt.md."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="The arithmetic: fp32, bf16, fp16 (aggregator included) or, where a bundle holds it, int8; "
        "auto: bf16 where the processor has it and the features stay close enough, else fp32."
    ),
]
AllowFailedParity = Annotated[
    bool,
    typer.Option(
        "--allow-failed-parity",
        help="Use a bundle or a precision that misses its gate; every answer then carries a warning.",
    ),
]
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
    Literal["auto", "direct", "cucim", "openslide", "image", "plugin"],
    typer.Option(help="What reads the slides; auto decides by file, docs/reading.md."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

__all__ = [
    "AllowFailedParity",
    "Device",
    "EngineCache",
    "EngineName",
    "GraphEngineName",
    "Json",
    "OnError",
    "Precision",
    "Reader",
    "RunMpp",
    "Workers",
]
