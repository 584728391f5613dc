"""``cmamil inspect``: what a slide is, and what would be read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Json, Reader
from cmamil_sdk.cli.output import note, output_folder, say, say_json, table


def run(
    slide: Annotated[Path, typer.Argument(help="The slide file.")],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0, if the file is silent.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Scales to count tiles for.")] = "5x,10x,20x",
    reader: Reader = "auto",
    json: Json = False,
    thumbnail: Annotated[
        Path | None, typer.Option(help="Write a PNG with the tiles that would be read.")
    ] = None,
) -> None:
    """Size, levels, microns per pixel, vendor, compression, hash; tissue and tiles per scale.

    A slide that does not say its microns per pixel is described without tiles; --mpp mends that.
    """
    from cmamil_sdk.errors import MppUnknown, MppUnusable, NoTissue
    from cmamil_sdk.files import sha256_of_file
    from cmamil_sdk.slides import open_slide
    from cmamil_sdk.tiling.plan import TilePlan, make_plan
    from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

    recipe = TilingRecipe(scales=parse_scales(scales))
    plan: TilePlan | None = None
    problems: list[str] = []
    with open_slide(slide, mpp=mpp, reader=reader) as opened:
        try:
            plan = make_plan(opened, recipe)
        except (MppUnknown, MppUnusable, NoTissue) as problem:
            problems.append(str(problem))
        facts = opened.facts
        if thumbnail is not None:
            from cmamil_sdk.explain.overview import write_overview

            output_folder(thumbnail.parent)
            write_overview(thumbnail, opened, plan)
            note(f"wrote {thumbnail}")
    document: dict[str, Any] = {
        "slide": str(slide),
        "sha256": sha256_of_file(slide),
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
        "tissue_fraction": None if plan is None else round(plan.tissue_share, 4),
        "tiles": None if plan is None else plan.counts(),
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
        rows.append(("tissue", f"{document['tissue_fraction']:.1%} of the slide"))
        rows.append(("tiles", ", ".join(f"{name}: {count}" for name, count in tiles.items())))
    say("\n".join(table(["", ""], rows).splitlines()[1:]))
    for warning in document["warnings"]:
        say(warning)
