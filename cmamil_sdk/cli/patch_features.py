"""``cmamil features --patch-root``: tiles on disk to one array per slide, as CMA-MIL has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmamil_sdk.cli import encoder_options
from cmamil_sdk.cli.output import output_folder, say, say_json, table
from cmamil_sdk.cli.parity_tables import engine_document
from cmamil_sdk.errors import CmamilError

if TYPE_CHECKING:
    from cmamil_sdk.patches.tree import SlideFolder

INDEX = "dataset_index.npy"


def extract_patches(
    patch_root: Path,
    out: Path,
    *,
    encoder: str | None,
    weights: Path | None,
    projection: str | None,
    resize_tiles: bool,
    accept_mpp: bool,
    engine: str,
    device: str,
    precision: str,
    workers: int | None,
    batch_size: int | None,
    stop_on_error: bool,
    resume: bool,
    json: bool,
) -> int:
    """Write ``<out>/<name of the root>/<class>/<slide>.npy`` for every slide; returns the exit status."""
    from cmamil_sdk.cli.slide_list import ListedSlide
    from cmamil_sdk.cli.slide_runs import RunProgress, each_slide
    from cmamil_sdk.engines.gated import open_encoder
    from cmamil_sdk.export.encoder import exported_encoder
    from cmamil_sdk.patches.extract import DEFAULT_BATCH_TILES, extract_folder
    from cmamil_sdk.patches.tree import find_slides

    slides = {slide.path: slide for slide in find_slides(patch_root)}
    folder = out / patch_root.resolve().name
    output_folder(folder)
    name = encoder_options.TILES_ENCODER if encoder is None else encoder
    projected = projection == "seeded" if projection else name == encoder_options.TILES_ENCODER
    exported = exported_encoder(
        name,
        weights,
        projection=projected,
        tile_px=_tile_px(list(slides.values())),
        resize_tiles=resize_tiles,
    )
    loaded = open_encoder(
        exported.graph_for(precision),
        exported.parity,
        engine=engine,
        device=device,
        precision=precision,
        callers=workers,
    ).engine
    done: list[dict[str, Any]] = []

    def extract(listed: ListedSlide, progress: RunProgress) -> None:
        slide = slides[listed.path]
        result = extract_folder(
            slide,
            folder,
            encoder=exported.info,
            engine=loaded,
            accept_mpp=accept_mpp,
            batch_tiles=batch_size or DEFAULT_BATCH_TILES,
            workers=workers,
            resume=resume,
            on_progress=progress.update,
        )
        done.append(
            {
                "slide": slide.slide_id,
                "class": slide.label,
                "file": str(result.path),
                "tiles": result.tiles,
                "seconds": round(result.seconds, 3),
                "resumed": result.resumed,
            }
        )

    failures = each_slide(
        [ListedSlide(path) for path in slides], extract, stop_on_error=stop_on_error
    )
    _write_index(folder, done, [slide.label for slide in slides.values()])
    if json:
        say_json({"features": done, "failed": failures.slides, **engine_document(loaded.info)})
    else:
        rows = [
            [d["slide"], d["class"] or "", d["tiles"], "kept" if d["resumed"] else d["seconds"]]
            for d in done
        ]
        say(table(["slide", "class", "tiles", "seconds"], rows))
        say(f"{len(done)} of {len(slides)} slides in {folder}, {exported.info.dim} features a tile")
        say(f"{loaded.info.label}: {loaded.info.reason}")
    return failures.exit_code(len(slides))


def _tile_px(slides: Sequence[SlideFolder]) -> int | None:
    """Edge of the first tile that can be read; None where each slide will fail by itself."""
    from cmamil_sdk.patches.tree import list_tiles, read_image

    for slide in slides:
        try:
            return len(read_image(list_tiles(slide).paths[0]))
        except CmamilError:
            continue  # is named when its turn comes
    return None


def _write_index(folder: Path, done: list[dict[str, Any]], labels: Sequence[str | None]) -> None:
    """``dataset_index.npy``: rows [path, number of the class], as text.

    Classes are numbered by name over all ``labels`` of the root, so that a class whose slides fail
    leaves the numbers of the others as they are at other magnifications.
    """
    import io

    import numpy as np

    from cmamil_sdk.files import write_atomic

    classes = sorted({label for label in labels if label is not None})
    if not classes:
        return
    rows = [[entry["file"], str(classes.index(entry["class"]))] for entry in done]
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows), allow_pickle=False)
    write_atomic(folder / INDEX, buffer.getvalue())


__all__ = ["extract_patches"]
