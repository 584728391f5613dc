"""``cmamil tile``: slides to JPEG tiles on disk, as CMA-MIL's own tool writes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Json, OnError, Reader, RunMpp
from cmamil_sdk.cli.output import output_folder
from cmamil_sdk.errors import FieldInvalid


def run(
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of classes: <class>/<slide>.svs.")
    ] = None,
    slides: Annotated[
        list[Path] | None,
        typer.Option(help="Instead, a CSV with the columns slide, class and, if need be, mpp."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Name that the folders of tiles begin with: patches makes patches_20x, and so on."
        ),
    ] = Path("patches"),
    slide_format: Annotated[
        str | None,
        typer.Option(help="With --data-root, extension of the slide files. Default: svs."),
    ] = None,
    tile_size: Annotated[int, typer.Option(min=16, max=4096, help="Edge of a tile, pixels.")] = 224,
    base_mag: Annotated[float, typer.Option(help="Magnification that is halved.")] = 20.0,
    magnifications: Annotated[
        list[int] | None,
        typer.Option(min=0, max=8, help="Halvings of it: 0 1 2 are 20x, 10x and 5x. Default: 0."),
    ] = None,
    objective: Annotated[
        float | None,
        typer.Option(help="Power of slides that name neither it nor their microns per pixel."),
    ] = None,
    mpp: RunMpp = None,
    reader: Reader = "auto",
    overlap: Annotated[
        int, typer.Option(min=0, max=512, help="Pixels by which a tile reaches over on each side.")
    ] = 0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG files.")] = 70,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one per core by default.")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(min=0, help="Edge density above which a tile is kept, docs/tiles.md."),
    ] = 15.0,
    on_error: OnError = "skip",
    json: Json = False,
) -> None:
    """Cut slides into JPEG tiles: <out>_<magnification>/<class>/<slide>/<column>_<row>.jpeg."""
    from cmamil_sdk.cli.slide_list import slides_by_class, slides_with_class
    from cmamil_sdk.cli.slide_tiles import tile_slides
    from cmamil_sdk.patches.grid import magnifications as halved
    from cmamil_sdk.patches.manifest import PatchRecipe
    from cmamil_sdk.patches.write import scale_folder
    from cmamil_sdk.slides.open import check_mpp

    check_mpp(mpp)
    for option, value in (("--base-mag", base_mag), ("--objective", objective)):
        if value is not None and not 0.5 <= value <= 200:
            raise FieldInvalid(f"{option} {value:g} is no magnification; give 20 or 40, say.")
    if not math.isfinite(threshold):
        raise FieldInvalid(f"--threshold {threshold:g} keeps no tile; give a number, 15 say.")
    if out.name in ("", ".."):
        raise FieldInvalid(f"--out-dir {out} is no name for folders to begin with; give one.")
    if (data_root is None) == (slides is None):
        raise FieldInvalid("Give either --data-root or --slides.")
    if data_root is None and slide_format is not None:
        raise FieldInvalid("--slide-format has no effect with --slides; leave it out.")
    if data_root is not None:
        listed = slides_by_class(data_root, slide_format or "svs")
    else:
        listed = slides_with_class(slides or [], mpp=mpp)
    recipes = tuple(
        PatchRecipe(
            scale=scale, tile_px=tile_size, overlap_px=overlap, threshold=threshold, quality=quality
        )
        for scale in halved(base_mag, magnifications or [0])
    )
    for recipe in recipes:
        output_folder(scale_folder(out, recipe.scale))
    raise typer.Exit(
        tile_slides(
            listed,
            out,
            recipes,
            objective=objective,
            mpp=mpp,
            reader=reader,
            workers=workers,
            stop_on_error=on_error == "stop",
            json=json,
        )
    )


__all__ = ["run"]
