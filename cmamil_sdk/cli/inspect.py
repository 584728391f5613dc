"""``cmamil inspect``: what a slide is, and what would be read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli import tissue as tissue_options
from cmamil_sdk.cli.options import Json, Reader
from cmamil_sdk.cli.output import note, output_folder, say, say_json, table


def run(
    slide: Annotated[Path, typer.Argument(readable=False, help="The slide file.")],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0, if the file is silent.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Scales to count tiles for.")] = "5x,10x,20x",
    tile_px: Annotated[
        int, typer.Option(min=16, max=4096, help="Edge of a tile; an encoder may take another.")
    ] = 224,
    reader: Reader = "auto",
    tissue: tissue_options.Method = "otsu",
    tissue_masks: tissue_options.Masks = None,
    edge_threshold: tissue_options.EdgeThreshold = None,
    edge_area: tissue_options.EdgeArea = None,
    pens: tissue_options.Pens = "keep",
    pen_min_um2: tissue_options.PenMinUm2 = None,
    fill_holes_um2: tissue_options.FillHolesUm2 = 0.0,
    drop_specks_um2: tissue_options.DropSpecksUm2 = 0.0,
    max_tiles: tissue_options.MaxTiles = None,
    seed: tissue_options.Seed = None,
    scale_source: tissue_options.ScaleSource = "finest",
    json: Json = False,
    thumbnail: Annotated[
        Path | None,
        typer.Option(help="Write a PNG with tissue, tiles and excluded ink drawn in."),
    ] = None,
) -> None:
    """Size, levels, microns per pixel, vendor, compression, hash; tissue and tiles per scale.

    A slide that does not say its microns per pixel is described without tiles; --mpp mends that.
    """
    from cmamil_sdk.cli.slide_list import ListedSlide
    from cmamil_sdk.errors import FieldInvalid, MppUnknown, MppUnusable
    from cmamil_sdk.files import sha256_of_file
    from cmamil_sdk.slides import open_slide
    from cmamil_sdk.slides.unchanged import unchanged
    from cmamil_sdk.tiling.geometry import read_geometry
    from cmamil_sdk.tiling.mask_file import mask_file
    from cmamil_sdk.tiling.plan import TilePlan, no_tissue, plan_tiles
    from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales
    from cmamil_sdk.tiling.tissue import TissueMap, find_tissue

    if thumbnail is not None and thumbnail.suffix.lower() != ".png":
        raise FieldInvalid(
            f"--thumbnail {thumbnail}: a PNG is written; give a name that ends in .png."
        )
    recipe = TilingRecipe(
        scales=parse_scales(scales),
        tile_px=tile_px,
        scale_source=scale_source,
        tissue=tissue_options.tissue_recipe(
            tissue,
            edge_threshold=edge_threshold,
            edge_area=edge_area,
            pens=pens,
            pen_min_um2=pen_min_um2,
            fill_holes_um2=fill_holes_um2,
            drop_specks_um2=drop_specks_um2,
        ),
        sample=tissue_options.tile_sample(max_tiles, seed),
    )
    tissue_options.check_masks(recipe.tissue, tissue_masks, [ListedSlide(slide)])
    plan: TilePlan | None = None
    found: TissueMap | None = None
    problems: list[str] = []
    with unchanged(slide), open_slide(slide, mpp=mpp, reader=reader) as opened:
        sha256 = sha256_of_file(slide)
        facts = opened.facts
        mask = None if tissue_masks is None else mask_file(tissue_masks, facts.slide_id)
        try:
            geometry = read_geometry(facts, recipe)
        except (MppUnknown, MppUnusable) as problem:
            problems.append(str(problem))
        else:
            found = find_tissue(opened, recipe, geometry, mask=mask)
            plan = plan_tiles(facts, recipe, geometry, found)
            lost_mm2 = int(found.lost.sum()) * found.grid.size_um**2 / 1e6
            if lost_mm2:
                problems.append(
                    f"{lost_mm2:.3g} mm² cannot be decoded where tissue was looked for; it counts as "
                    "tissue, and tiles that cannot be read are lost: copy the file again from its source."
                )
            if plan.total_tiles() == 0:
                problems.append(no_tissue(plan))
        if thumbnail is not None:
            from cmamil_sdk.explain.overview import write_overview

            output_folder(thumbnail.parent)
            write_overview(thumbnail, opened, plan, found)
            note(f"wrote {thumbnail}")
    tiled = plan if plan is not None and plan.total_tiles() else None
    document: dict[str, Any] = {
        "slide": str(slide),
        "sha256": sha256,
        "width": facts.width,
        "height": facts.height,
        "levels": [vars(level) for level in facts.levels],
        "mpp": facts.mpp,
        "mpp_source": facts.mpp_source,
        "objective_power": facts.objective_power,
        "vendor": facts.vendor,
        "compression": facts.compression,
        "reader": facts.reader,
        "reader_reason": facts.reader_reason,
        "read_from": None if tiled is None else tiled.geometry.levels(),
        "tissue_fraction": None if tiled is None else round(tiled.tissue_share, 4),
        "tiles": None if tiled is None else tiled.counts(),
        "warnings": [*facts.warnings, *problems],
    }
    if json:
        say_json(document)
    else:
        say_plainly(document)


def _objective(power: float | None) -> str:
    return "not stated" if power is None else f"{power:g}x"


def say_plainly(document: dict[str, Any]) -> None:
    """Print an inspection for a person, whether it was made here or by a server."""
    levels = ", ".join(
        f"{level['width']} x {level['height']} (1/{level['downsample']:.4g})"
        for level in document["levels"]
    )
    known = document["mpp"] is not None
    mpp = f"{document['mpp']:.4g} µm/px ({document['mpp_source']})" if known else "unknown"
    tiles = document["tiles"] or {}
    rows = [
        ("slide", document["slide"]),
        ("sha256", document["sha256"]),
        ("size", f"{document['width']} x {document['height']} px"),
        ("levels", levels),
        ("mpp", mpp),
        ("objective", _objective(document["objective_power"])),
        ("vendor", document["vendor"]),
        ("compression", document["compression"] or "not a TIFF"),
        ("reader", f"{document['reader']}: {document['reader_reason']}"),
    ]
    if tiles:
        sources = (f"{name}: level {level}" for name, level in document["read_from"].items())
        rows.append(("read from", ", ".join(sources)))
        rows.append(("tissue", f"{document['tissue_fraction']:.1%} of the slide"))
        rows.append(("tiles", ", ".join(f"{name}: {count}" for name, count in tiles.items())))
    say("\n".join(table(["", ""], rows).splitlines()[1:]))
    for warning in document["warnings"]:
        say(warning)
