"""``cmamil features``: slides to feature files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli import tissue as tissue_options
from cmamil_sdk.cli.options import Device, EngineName, Json, OnError, Reader, RunMpp, Workers
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table
from cmamil_sdk.wording import counted


def run(
    slides: Annotated[
        list[Path],
        typer.Option(help="Slide files, folders of slides, or a CSV with a slide column."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the feature files.")],
    encoder: Annotated[str, typer.Option(help="Tile encoder.")] = "efficientnet_lite0",
    weights: Annotated[
        Path | None, typer.Option(help="Encoder weights from a file instead of its own.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Magnifications, nested.")] = "5x,10x,20x",
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
    allow_empty: Annotated[
        bool,
        typer.Option("--allow-empty", help="Write a file without tiles if there is no tissue."),
    ] = False,
    engine: EngineName = "auto",
    device: Device = "auto",
    workers: Workers = None,
    mpp: RunMpp = None,
    reader: Reader = "auto",
    on_error: OnError = "skip",
    resume: Annotated[
        bool, typer.Option(help="Keep complete files of the same slide and recipe.")
    ] = True,
    json: Json = False,
) -> None:
    """Extract the features of every slide at all scales in one pass, one .h5 file per slide."""
    from cmamil_sdk.cli.slide_list import expand_slides
    from cmamil_sdk.cli.slide_runs import each_slide
    from cmamil_sdk.engines import load_engine
    from cmamil_sdk.export.encoder import exported_encoder
    from cmamil_sdk.features.slide import extract_slide
    from cmamil_sdk.slides.open import check_mpp
    from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

    check_mpp(mpp)
    tissue_recipe = tissue_options.tissue_recipe(
        tissue,
        edge_threshold=edge_threshold,
        edge_area=edge_area,
        pens=pens,
        pen_min_um2=pen_min_um2,
        fill_holes_um2=fill_holes_um2,
        drop_specks_um2=drop_specks_um2,
    )
    sample = tissue_options.tile_sample(max_tiles, seed)
    files = expand_slides(slides)
    tissue_options.check_masks(tissue_recipe, tissue_masks, files)
    output_folder(out)
    exported = exported_encoder(encoder, weights)
    recipe = TilingRecipe(
        scales=parse_scales(scales),
        tile_px=exported.info.tile_px,
        tissue=tissue_recipe,
        sample=sample,
    )
    loaded = load_engine(exported.graph, engine=engine, device=device)
    done: list[dict[str, Any]] = []
    started = time.perf_counter()

    def extract(slide: Path, progress: Progress) -> None:
        result = extract_slide(
            slide,
            out,
            recipe=recipe,
            encoder=exported.info,
            engine=loaded,
            mpp=mpp,
            reader=reader,
            workers=workers,
            resume=resume,
            tissue_masks=tissue_masks,
            allow_empty=allow_empty,
            on_progress=progress.update,
        )
        done.append(
            {
                "slide": slide.stem,
                "file": str(result.path),
                "tiles": result.tiles,
                "tiles_failed": result.tiles_failed,
                "seconds": round(result.seconds, 3),
                "resumed": result.resumed,
            }
        )

    failures = each_slide(files, extract, stop_on_error=on_error == "stop")
    if json:
        say_json({"features": done, "failed": failures.slides, "engine": loaded.info.label})
    else:
        _say_summary(done, len(files), out, time.perf_counter() - started)
    raise typer.Exit(failures.exit_code(len(files)))


def _say_summary(done: list[dict[str, Any]], slides: int, out: Path, seconds: float) -> None:
    if done:
        names = list(done[0]["tiles"])
        rows = [
            [
                d["slide"],
                *(d["tiles"][n] for n in names),
                d["tiles_failed"],
                "kept" if d["resumed"] else f"{d['seconds']:.1f}",
            ]
            for d in done
        ]
        say(table(["slide", *names, "lost", "seconds"], rows))
    fresh = [d for d in done if not d["resumed"]]
    tiles = sum(sum(d["tiles"].values()) for d in fresh)
    rate = f", {tiles / seconds:.0f} tiles/s" if fresh else ""
    say(f"{len(done)} of {counted(slides, 'slide')} in {out}, {seconds:.1f} s{rate}")
