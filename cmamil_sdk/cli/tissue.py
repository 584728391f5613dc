"""Options that say which tiles of a slide are read, and the recipe they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmamil_sdk.cli.slide_list import ListedSlide
    from cmamil_sdk.tiling.recipe import TileSample, TissueRecipe

_PANEL = "Tissue and tiles"

Method = Annotated[
    Literal["otsu", "edge-density", "mask", "none"],
    typer.Option("--tissue", help="How tissue is found.", rich_help_panel=_PANEL),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="For --tissue mask: the slide's mask (PNG or TIFF, not black is tissue), or a folder "
        "of masks named as the slides.",
        rich_help_panel=_PANEL,
    ),
]
EdgeThreshold = Annotated[
    float | None,
    typer.Option(
        help="For --tissue edge-density: a tile is kept if its score is above; 15 by default.",
        rich_help_panel=_PANEL,
    ),
]
EdgeArea = Annotated[
    Literal["tile", "inside"] | None,
    typer.Option(
        help="For --tissue edge-density: divide scores by a whole tile's area, as published (the "
        "default), or by that of the part inside the slide.",
        rich_help_panel=_PANEL,
    ),
]
Pens = Annotated[
    Literal["keep", "exclude"],
    typer.Option(help="What becomes of pen marks (H&E slides only).", rich_help_panel=_PANEL),
]
PenMinUm2 = Annotated[
    float | None,
    typer.Option(
        help="For --pens exclude: the smallest mark, square micrometres; 50000 by default.",
        rich_help_panel=_PANEL,
    ),
]
FillHolesUm2 = Annotated[
    float,
    typer.Option(
        help="Fill holes in the tissue up to this area, square micrometres.", rich_help_panel=_PANEL
    ),
]
DropSpecksUm2 = Annotated[
    float,
    typer.Option(
        help="Drop pieces of tissue below this area, square micrometres.", rich_help_panel=_PANEL
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option(
        help="Read at most this many tiles of the finest scale, whole coarse tiles at a time.",
        rich_help_panel=_PANEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="For --max-tiles: which ones are drawn; 0 by default.", rich_help_panel=_PANEL
    ),
]

ScaleSource = Annotated[
    Literal["finest", "stored"],
    typer.Option(
        help="Where coarser scales come from: averages of the finest, or of the nearest stored level.",
        rich_help_panel=_PANEL,
    ),
]


def tissue_recipe(
    method: str,
    *,
    edge_threshold: float | None,
    edge_area: str | None,
    pens: str,
    pen_min_um2: float | None,
    fill_holes_um2: float,
    drop_specks_um2: float,
) -> TissueRecipe:
    """The recipe that the options mean.

    Raises:
        FieldInvalid: an option is out of range, or has no effect beside the others.
    """
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.files import parse_document
    from cmamil_sdk.tiling.recipe import TissueRecipe

    if method != "edge-density":
        _refuse("--tissue edge-density", edge_threshold=edge_threshold, edge_area=edge_area)
    if pens != "exclude":
        _refuse("--pens exclude", pen_min_um2=pen_min_um2)
    given = {
        "method": method,
        "edge_threshold": edge_threshold,
        "edge_area": edge_area,
        "pens": pens,
        "pen_min_um2": pen_min_um2,
        "fill_holes_um2": fill_holes_um2,
        "drop_specks_um2": drop_specks_um2,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    return parse_document(
        TissueRecipe, fields, where="The tissue options", error=FieldInvalid, shown=_option
    )


def tile_sample(max_tiles: int | None, seed: int | None) -> TileSample | None:
    """The sample that the options mean, None for all tiles.

    Raises:
        FieldInvalid: an option is out of range, or a seed is given and no cap.
    """
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.files import parse_document
    from cmamil_sdk.tiling.recipe import TileSample

    if max_tiles is None:
        _refuse("--max-tiles", seed=seed)
        return None
    fields = {"max_tiles": max_tiles, "seed": seed or 0}
    return parse_document(
        TileSample, fields, where="The sample of tiles", error=FieldInvalid, shown=_option
    )


def check_masks(tissue: TissueRecipe, masks: Path | None, slides: Sequence[ListedSlide]) -> None:
    """Refuse masks without a use, a use without masks, and one mask for several slides, before work.

    Raises:
        FieldInvalid: one of these.
    """
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.tiling.tissue import check_mask_wanted

    listed = [slide for slide in slides if slide.mask is not None]
    if not listed:
        check_mask_wanted(tissue, masks)
        if masks is not None and len(slides) > 1 and not masks.is_dir():
            raise FieldInvalid(
                f"--tissue-masks {masks} is no folder, and there are {len(slides)} slides; name a "
                "folder with a mask for each."
            )
        return
    if masks is not None:
        raise FieldInvalid(
            f"--tissue-masks {masks} is for all slides, and the list gives {listed[0].path.name} a mask "
            "of its own; leave one of them out."
        )
    check_mask_wanted(tissue, listed[0].mask)
    without = next((slide for slide in slides if slide.mask is None), None)
    if without is not None:
        raise FieldInvalid(
            f"{without.path} has no mask in the list, and others have; list one for each slide."
        )


def _refuse(needed: str, **options: object) -> None:
    """Refuse options that were given and have no effect without another one."""
    from cmamil_sdk.errors import FieldInvalid

    for name, value in options.items():
        if value is not None:
            raise FieldInvalid(
                f"{_option(name)} has no effect without {needed}; add that, or leave it out."
            )


def _option(name: str) -> str:
    """How the command line names a field of the recipe."""
    return "--tissue" if name == "method" else "--" + name.replace("_", "-")


__all__ = [
    "DropSpecksUm2",
    "EdgeArea",
    "EdgeThreshold",
    "FillHolesUm2",
    "Masks",
    "MaxTiles",
    "Method",
    "PenMinUm2",
    "Pens",
    "ScaleSource",
    "Seed",
    "check_masks",
    "tile_sample",
    "tissue_recipe",
]
