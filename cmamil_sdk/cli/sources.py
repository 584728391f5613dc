"""The options that say where features and labels are, for training and evaluation alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.errors import FieldInvalid

_SCALES = ("5x", "10x", "20x")

FeaturesFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of `cmamil features`, or of one array [N, D] a slide: .pt, .npy, .h5."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="CSV: slide, label, and if known patient, site, split. Of data roots, only patients."
    ),
]
DataRoot5x = Annotated[
    Path | None,
    typer.Option("--data-root-5x", help="CMA-MIL tree: <fold>/{train,val,test}/<class>/*.npy."),
]
DataRoot10x = Annotated[
    Path | None, typer.Option("--data-root-10x", help="The same slides at 10x.")
]
DataRoot20x = Annotated[
    Path | None, typer.Option("--data-root-20x", help="The same slides at 20x.")
]

SOURCE_OPTIONS: Mapping[str, Any] = {
    "features": FeaturesFolder,
    "labels": Labels,
    "data_root_5x": DataRoot5x,
    "data_root_10x": DataRoot10x,
    "data_root_20x": DataRoot20x,
}


def features_of(paths: Mapping[str, Path | None]) -> Path | dict[str, Path]:
    """The folder of features, or the data roots by scale, coarse to fine.

    Args:
        paths: by option name, None or absent for those not given.

    Raises:
        FieldInvalid: both or neither were given.
    """
    folder = paths.get("features")
    named = {scale: paths.get(f"data_root_{scale}") for scale in _SCALES}
    roots = {scale: root for scale, root in named.items() if root is not None}
    if folder is None and not roots:
        raise FieldInvalid(
            "No features were named; give --features and --labels, or --data-root-5x, -10x or -20x."
        )
    if folder is not None and roots:
        raise FieldInvalid(
            f"--features {folder} and --data-root-{next(iter(roots))} were both given; "
            "leave out one of them."
        )
    return roots if folder is None else folder


__all__ = [
    "SOURCE_OPTIONS",
    "DataRoot5x",
    "DataRoot10x",
    "DataRoot20x",
    "FeaturesFolder",
    "Labels",
    "features_of",
]
