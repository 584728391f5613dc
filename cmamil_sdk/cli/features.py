"""``cmamil features``: slides to feature files, or tiles on disk to arrays."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli import encoder_options
from cmamil_sdk.cli import tissue as tissue_options
from cmamil_sdk.cli.options import (
    Device,
    GraphEngineName,
    Json,
    OnError,
    Precision,
    Reader,
    RunMpp,
    Workers,
)
from cmamil_sdk.cli.output import Progress, output_folder
from cmamil_sdk.cli.patch_features import extract_patches
from cmamil_sdk.errors import FieldInvalid

_WITH_TILES = frozenset(
    (
        *("patch_root", "out", "encoder", "weights", "projection", "resize_tiles", "accept_mpp"),
        *("engine", "device", "precision", "workers", "batch_size", "on_error", "resume", "json"),
    )
)
"""Options that mean something with --patch-root; all others are about slides."""


def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the feature files.")],
    slides: Annotated[
        list[Path] | None,
        typer.Option(
            readable=False, help="Slide files, folders of slides, or a CSV with a slide column."
        ),
    ] = None,
    patch_root: Annotated[
        Path | None,
        typer.Option(
            help="Instead of slides, a folder of tiles: <class>/<slide>/<col>_<row>.jpeg."
        ),
    ] = None,
    encoder: encoder_options.Encoder = None,
    weights: encoder_options.Weights = None,
    projection: encoder_options.Projection = None,
    tile_px: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Edge of a tile. Default: what the encoder takes."),
    ] = None,
    resize_tiles: encoder_options.ResizeTiles = False,
    accept_mpp: encoder_options.AcceptMpp = False,
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
    scale_source: tissue_options.ScaleSource = "finest",
    allow_empty: Annotated[
        bool,
        typer.Option("--allow-empty", help="Write a file without tiles if there is no tissue."),
    ] = False,
    engine: GraphEngineName = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --patch-root, tiles per batch. Default: 32.")
    ] = None,
    mpp: RunMpp = None,
    reader: Reader = "auto",
    on_error: OnError = "skip",
    resume: Annotated[
        bool, typer.Option(help="Keep complete files of the same slide and recipe.")
    ] = True,
    json: Json = False,
) -> None:
    """Extract the features of every slide at all scales in one pass, one .h5 file per slide.

    With --patch-root, of tiles that `cmamil tile` wrote: one .npy per slide.
    """
    from cmamil_sdk.engines.base import TENSORRT

    if (slides is None) == (patch_root is None):
        raise FieldInvalid("Give either --slides or --patch-root.")
    if engine in TENSORRT:
        raise FieldInvalid(
            f"--engine {engine} runs plans, which bundles alone have; use auto, onnxruntime, openvino or "
            "torch."
        )
    if weights is not None and (encoder or "").startswith("onnx:"):
        raise FieldInvalid(
            "--weights has no effect with onnx:, whose file holds them; leave it out."
        )
    if patch_root is not None:
        _refuse_without_effect(context, "--patch-root", _WITH_TILES)
        raise typer.Exit(
            extract_patches(
                patch_root,
                out,
                encoder=encoder,
                weights=weights,
                projection=projection,
                resize_tiles=resize_tiles,
                accept_mpp=accept_mpp,
                engine=engine,
                device=device,
                precision=precision,
                workers=workers,
                batch_size=batch_size,
                stop_on_error=on_error == "stop",
                resume=resume,
                json=json,
            )
        )
    _refuse_without_effect(context, "--slides", context.params.keys() - {"batch_size"})
    if resize_tiles and tile_px is None:
        raise FieldInvalid("--resize-tiles has no effect without --tile-px; give the size as well.")
    from cmamil_sdk.cli.slide_features import extract_slides
    from cmamil_sdk.cli.slide_list import expand_slides
    from cmamil_sdk.encoders.fit import check_encoder_mpp
    from cmamil_sdk.engines.gated import open_encoder
    from cmamil_sdk.export.encoder import exported_encoder
    from cmamil_sdk.features.isolated_encoder import encoder_loader
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
    files = expand_slides(slides or [], mpp=mpp)
    tissue_options.check_masks(tissue_recipe, tissue_masks, files)
    output_folder(out)
    name = encoder_options.SLIDES_ENCODER if encoder is None else encoder
    with Progress(f"encoder {name}", time_left=False):
        exported = exported_encoder(
            name,
            weights,
            projection=projection == "seeded",
            tile_px=tile_px,
            resize_tiles=resize_tiles,
        )
    recipe = TilingRecipe(
        scales=parse_scales(scales),
        tile_px=exported.info.tile_px,
        scale_source=scale_source,
        tissue=tissue_recipe,
        sample=sample,
    )
    check_encoder_mpp(exported.info, recipe.scales, accept=accept_mpp)
    loaded = open_encoder(
        exported.graph_for(precision),
        exported.parity,
        engine=engine,
        device=device,
        precision=precision,
        callers=workers,
        loader=encoder_loader(reader),
    ).engine
    context.call_on_close(loaded.close)
    raise typer.Exit(
        extract_slides(
            files,
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
            stop_on_error=on_error == "stop",
            json=json,
        )
    )


def _refuse_without_effect(context: typer.Context, mode: str, known: Collection[str]) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in known and source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise FieldInvalid(f"{option} has no effect with {mode}; leave it out.")
