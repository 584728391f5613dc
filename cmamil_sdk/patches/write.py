"""A slide as JPEG tiles on disk: each magnification in a folder of its own, whole or absent."""

from __future__ import annotations

import fcntl
import glob
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

from PIL import Image

from cmamil_sdk.errors import (
    DecoderCrashed,
    NoTissue,
    OutputExists,
    OutputUnwritable,
    SlideCorrupt,
)
from cmamil_sdk.features.extract import MAX_FAILED_SHARE
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.machine import available_cores
from cmamil_sdk.patches.grid import PatchGrid, patch_grids, scale_of_slide
from cmamil_sdk.patches.manifest import (
    PatchManifest,
    PatchRecipe,
    PatchTile,
    read_manifest,
    write_manifest,
)
from cmamil_sdk.slides import ReaderName, open_slide
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.unchanged import unchanged
from cmamil_sdk.tiling.edge_density import edge_density
from cmamil_sdk.tiling.recipe import Scale

_CHUNK_TILES = 32

Address = tuple[int, int]


@dataclass(frozen=True)
class TiledScale:
    """What became of a slide at one magnification; ``resumed`` if it was there."""

    folder: Path
    manifest: PatchManifest
    resumed: bool


@dataclass(frozen=True)
class _Slide:
    """A slide whose scale is known."""

    path: Path
    slide_id: str
    sha256: str
    mpp: float
    mpp_source: str
    reader: ReaderName


@dataclass
class _Process:
    """What a process keeps from chunk to chunk: the slide, open, and the word to stop."""

    slide: _Slide
    stop: Event
    opened: SlideReader | None = None

    def reader(self) -> SlideReader:
        """The open slide."""
        if self.opened is None:
            slide = self.slide
            self.opened = open_slide(slide.path, mpp=slide.mpp, reader=slide.reader)
        return self.opened


_this_process: list[_Process] = []


@dataclass(frozen=True)
class _Chunk:
    """Some tiles for one process, and where they go."""

    grid: PatchGrid
    folder: Path
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class _Written:
    """Of a chunk or a slide: tiles that were kept, and those that could not be decoded."""

    tiles: list[PatchTile]
    lost: list[Address]


def scale_folder(out: Path, scale: Scale) -> Path:
    """Where the tiles of a magnification go: ``<out>_<scale>``."""
    return out.with_name(f"{out.name}_{scale.name}")


def tile_slide(
    slide: Path,
    label: str,
    out: Path,
    recipes: tuple[PatchRecipe, ...],
    *,
    objective: float | None = None,
    mpp: float | None = None,
    reader: ReaderName = "auto",
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TiledScale]:
    """Write the tiles of one slide at every magnification.

    Args:
        slide: the slide file.
        label: name of its class, a folder.
        out: a folder ``<out>_<scale>`` is made beside it for each magnification.
        recipes: one per magnification, coarse to fine.
        objective: power to assume where the slide names neither mpp nor objective.
        mpp: microns per pixel of level 0, overriding the file.
        reader: as :func:`~cmamil_sdk.slides.open_slide`; it changes no tile.
        workers: processes, one per core by default.
        on_progress: called with tiles looked at and tiles in all.

    Raises:
        OutputExists: tiles of this slide by another recipe or from another file are there.
        NoTissue: no tile of a magnification is above the threshold.
        InputError: the slide cannot be used, or changed meanwhile; nothing is left of the
            magnification at which it fails.
        OutputUnwritable: the disk is full, or the folder may not be written to.
        DecoderCrashed: a process died while it read the slide.
    """
    with unchanged(slide) as check_unchanged:
        with open_slide(slide, mpp=mpp, reader=reader) as opened:
            used_mpp, source = scale_of_slide(opened.facts, objective)
        with open_slide(slide, mpp=used_mpp, reader=reader) as opened:
            facts = opened.facts
        grids = patch_grids(facts, recipes)
        known = _Slide(slide, facts.slide_id, sha256_of_file(slide), used_mpp, source, facts.reader)
        seen, total = 0, sum(len(grid) for grid in grids)

        def count(tiles: int) -> None:
            nonlocal seen
            seen += tiles
            if on_progress is not None:
                on_progress(seen, total)

        results = []
        for grid in grids:
            folder = scale_folder(out, grid.recipe.scale) / label / facts.slide_id
            manifest = _finished(folder, known, grid.recipe)
            if manifest is None:
                results.append(_tile_scale(known, grid, folder, workers, count, check_unchanged))
            else:
                results.append(TiledScale(folder, manifest, resumed=True))
                count(len(grid))
    return results


def _finished(folder: Path, slide: _Slide, recipe: PatchRecipe) -> PatchManifest | None:
    """The manifest of a folder that is there already and holds the tiles that are wanted."""
    if not folder.exists():
        return None
    manifest = read_manifest(folder)
    wanted = (slide.sha256, slide.mpp, recipe)
    if manifest is None or (manifest.slide_sha256, manifest.mpp, manifest.recipe) != wanted:
        raise OutputExists(
            f"{folder} holds other tiles than these (of another slide file, threshold, quality, size or "
            "scale); remove it, or choose another --out-dir."
        )
    return manifest


def _tile_scale(
    slide: _Slide,
    grid: PatchGrid,
    folder: Path,
    workers: int | None,
    count: Callable[[int], None],
    check_unchanged: Callable[[], None],
) -> TiledScale:
    with _whole_folder(folder) as temporary:
        written = _write_tiles(slide, _chunks(grid, temporary), workers, count)
        check_unchanged()
        manifest = PatchManifest(
            slide_id=slide.slide_id,
            slide_sha256=slide.sha256,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            recipe=grid.recipe,
            size_level0=grid.geometry.tile_size_level0,
            columns=grid.columns,
            rows=grid.rows,
            kept=len(written.tiles),
            lost=tuple(written.lost),
        )
        _refuse_poor(slide.path, manifest)
        write_manifest(temporary, manifest, written.tiles)
    return TiledScale(folder, manifest, resumed=False)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` that becomes it at the end, or is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        with _held(left) as abandoned:
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with _held(temporary):
            yield temporary
            temporary.rename(folder)
    except OSError as problem:
        if folder.exists():
            raise OutputExists(
                f"{folder} has been written by another process meanwhile; start again, and it is kept."
            ) from problem
        raise OutputUnwritable(
            f"{folder} cannot be written ({problem.strerror or problem}); free space, or change "
            "permissions or paths."
        ) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the operating system's lock on a folder while its tiles are written; it ends with us.

    Gives False where another process holds it, or the file system has no such locks.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False  # it has just gone
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def _chunks(grid: PatchGrid, folder: Path) -> list[_Chunk]:
    return [_Chunk(grid, folder, addresses) for addresses in _in_chunks(grid.addresses())]


def _in_chunks(addresses: Iterator[Address]) -> Iterator[tuple[Address, ...]]:
    while chunk := tuple(islice(addresses, _CHUNK_TILES)):
        yield chunk


def _write_tiles(
    slide: _Slide, chunks: list[_Chunk], workers: int | None, count: Callable[[int], None]
) -> _Written:
    """All chunks, in processes: a decoder that crashes takes none of ours with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = max(1, min(workers or available_cores(), len(chunks)))
    stop = context.Event()
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_process, initargs=(slide, stop)
    )
    whole = _Written([], [])
    try:
        running = {pool.submit(_write_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(running):
            written = future.result()
            whole.tiles.extend(written.tiles)
            whole.lost.extend(written.lost)
            count(len(running[future].addresses))
    except BrokenProcessPool as problem:
        raise DecoderCrashed(
            f"{slide.path}: a process died while it read this slide; give the machine more memory "
            "or run fewer --workers, and if it dies again, convert the slide to a tiled TIFF."
        ) from problem
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    whole.tiles.sort(key=lambda tile: (tile.row, tile.col))
    whole.lost.sort(key=lambda address: address[::-1])
    return whole


def _start_process(slide: _Slide, stop: Event) -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _this_process.append(_Process(slide, stop))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_chunk(chunk: _Chunk) -> _Written:
    written = _Written([], [])
    recipe = chunk.grid.recipe
    (process,) = _this_process
    reader = process.reader()
    for column, row in chunk.addresses:
        if process.stop.is_set():
            break  # nobody asks for the rest
        image = chunk.grid.read(reader, column, row)
        if image is None:
            written.lost.append((column, row))
            continue
        inside = chunk.grid.inside(image, column, row)
        score = edge_density(inside, tile_size_px=recipe.image_px)
        if score > recipe.threshold:
            path = chunk.folder / f"{column}_{row}.jpeg"
            Image.fromarray(image).save(path, "JPEG", quality=recipe.quality)
            x, y = chunk.grid.corner(column, row)
            written.tiles.append(PatchTile(col=column, row=row, x=x, y=y, score=score))
    return written


def _refuse_poor(slide: Path, manifest: PatchManifest) -> None:
    total, lost = manifest.columns * manifest.rows, len(manifest.lost)
    scale = manifest.recipe.scale.name
    if lost > MAX_FAILED_SHARE * total:
        raise SlideCorrupt(
            f"{slide}: {lost} of {total} tiles at {scale} cannot be decoded; copy the file again from "
            "its source."
        )
    if not manifest.kept:
        raise NoTissue(
            f"{slide}: none of {total} tiles at {scale} has an edge density above "
            f"{manifest.recipe.threshold:g}; look at the slide, and lower --threshold if it holds tissue."
        )


__all__ = ["TiledScale", "scale_folder", "tile_slide"]
