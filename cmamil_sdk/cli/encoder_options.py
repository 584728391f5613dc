"""The options that choose a tile encoder, and what is done where tiles are not those it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Encoder = Annotated[
    str | None,
    typer.Option(
        help="Tile encoder: efficientnet_lite0, shufflenet_v2_x1_0, timm:<name> or onnx:<file>, "
        "docs/encoders.md. Default: the first for slides, the second for tiles.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Encoder weights from a file instead of its own.")
]
Projection = Annotated[
    Literal["none", "seeded"] | None,
    typer.Option(
        help="CMA-MIL's projection to 512 features, of shufflenet_v2_x1_0. Default: none for slides, "
        "seeded for tiles.",
    ),
]
ResizeTiles = Annotated[
    bool,
    typer.Option("--resize-tiles", help="Have the encoder resize tiles that are not of its size."),
]
AcceptMpp = Annotated[
    bool,
    typer.Option(
        "--accept-mpp", help="Show the encoder scales that it was not made for, where it says so."
    ),
]

SLIDES_ENCODER = "efficientnet_lite0"
TILES_ENCODER = "shufflenet_v2_x1_0"

__all__ = [
    "SLIDES_ENCODER",
    "TILES_ENCODER",
    "AcceptMpp",
    "Encoder",
    "Projection",
    "ResizeTiles",
    "Weights",
]
