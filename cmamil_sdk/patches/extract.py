"""A folder of tiles to one array of features, and what is known of each row beside it."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from cmamil_sdk import __version__
from cmamil_sdk.encoders.fit import check_encoder_mpp
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import Engine
from cmamil_sdk.errors import NonFiniteOutput, SlideCorrupt
from cmamil_sdk.files import sha256_of_file, write_atomic
from cmamil_sdk.machine import available_cores
from cmamil_sdk.patches.tree import SlideFolder, TileFiles, list_tiles, read_image
from cmamil_sdk.tiling.recipe import Scale

Float32 = npt.NDArray[np.float32]

FORMAT_VERSION = 1
DEFAULT_BATCH_TILES = 32


class PatchProvenance(BaseModel):
    """What lies beside the features of a slide, as ``<slide>.json``.

    ``col_row`` and ``x_y`` (level-0 pixels) are in the order of the rows; what the folder of tiles does
    not say is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    sdk_version: str = __version__
    slide_id: str
    label: str | None
    scale: Scale | None
    encoder: EncoderInfo
    engine: str
    engine_reason: str | None = Field(None, description="why this engine and precision")
    tiles_sha256: str = Field(description="over names and bytes of all tiles")
    features_sha256: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    col_row: tuple[tuple[int, int], ...]
    x_y: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class PatchFeatures:
    """What became of one slide; ``resumed`` if its features were there."""

    path: Path
    tiles: int
    seconds: float
    resumed: bool


def features_path(out: Path, slide: SlideFolder) -> Path:
    """Where the features of a slide go: ``<out>/<class>/<slide>.npy``, or without class."""
    folder = out if slide.label is None else out / slide.label
    return folder / f"{slide.slide_id}.npy"


def extract_folder(
    slide: SlideFolder,
    out: Path,
    *,
    encoder: EncoderInfo,
    engine: Engine,
    accept_mpp: bool = False,
    batch_tiles: int = DEFAULT_BATCH_TILES,
    workers: int | None = None,
    resume: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> PatchFeatures:
    """Write ``[N, D]`` float32 as .npy, rows by tile row, then column, and a .json beside it.

    Args:
        slide: folder of tiles.
        out: folder for the features of this root.
        encoder: identity of the encoder in ``engine``.
        engine: the encoder; shared by the threads.
        accept_mpp: encode tiles at a scale that the encoder was not made for.
        batch_tiles: tiles per call of the engine.
        workers: threads, one per core by default.
        resume: keep features of the same tiles and encoder.
        on_progress: called with tiles done and tiles in all.

    Raises:
        FieldInvalid: the encoder was made for another scale.
        NoTissue, SlideCorrupt: the folder is empty, or a tile cannot be used; nothing is written.
        NonFiniteOutput: the encoder returned NaN or infinity.
    """
    started = time.perf_counter()
    files = list_tiles(slide)
    if files.scale is not None:
        check_encoder_mpp(encoder, [files.scale], accept=accept_mpp)
    path = features_path(out, slide)
    digest = _digest(files)
    if resume and _already_done(path, digest, encoder):
        return PatchFeatures(path, len(files.paths), 0.0, resumed=True)
    features = _encode(files, encoder, engine, batch_tiles, workers, on_progress)
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    provenance = PatchProvenance(
        slide_id=slide.slide_id,
        label=slide.label,
        scale=files.scale,
        encoder=encoder,
        engine=engine.info.label,
        engine_reason=engine.info.reason,
        tiles_sha256=digest,
        features_sha256=sha256_of_file(path),
        col_row=files.addresses,
        x_y=files.corners,
    )
    write_atomic(_sidecar(path), provenance.model_dump_json().encode())
    return PatchFeatures(path, len(features), time.perf_counter() - started, resumed=False)


def _encode(
    files: TileFiles,
    encoder: EncoderInfo,
    engine: Engine,
    batch_tiles: int,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Float32:
    total = len(files.paths)
    features = np.zeros((total, encoder.dim), np.float32)
    starts = range(0, total, batch_tiles)

    def work(start: int) -> Float32:
        tiles = np.stack(
            [_tile(path, encoder) for path in files.paths[start : start + batch_tiles]]
        )
        return engine.infer({"tiles": tiles})["features"]

    pool = ThreadPoolExecutor(max(1, min(workers or available_cores(), len(starts))))
    try:
        for start, batch in zip(starts, pool.map(work, starts), strict=True):
            features[start : start + len(batch)] = batch
            if on_progress is not None:
                on_progress(start + len(batch), total)
    finally:
        pool.shutdown(cancel_futures=True)
    if not np.isfinite(features).all():
        raise NonFiniteOutput(
            f"{files.paths[0].parent}: the encoder returned NaN or infinity; choose another encoder."
        )
    return features


def _tile(path: Path, encoder: EncoderInfo) -> npt.NDArray[np.uint8]:
    pixels = read_image(path)
    if len(pixels) != encoder.tile_px:
        raise SlideCorrupt(
            f"{path} has {len(pixels)} px, and the encoder takes tiles of {encoder.tile_px} px; have all "
            "tiles of a run in one size."
        )
    return pixels


def _digest(files: TileFiles) -> str:
    """sha256 over names and bytes of all tiles."""
    whole = hashlib.sha256()
    for path in files.paths:
        whole.update(f"{path.name} {sha256_of_file(path)}\n".encode())
    return whole.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _already_done(path: Path, digest: str, encoder: EncoderInfo) -> bool:
    try:
        stored = PatchProvenance.model_validate_json(_sidecar(path).read_bytes())
        features_sha256 = sha256_of_file(path)
    except (OSError, ValueError):
        return False
    found = (stored.tiles_sha256, stored.encoder, stored.features_sha256)
    return stored.format_version == FORMAT_VERSION and found == (digest, encoder, features_sha256)


__all__ = [
    "DEFAULT_BATCH_TILES",
    "PatchFeatures",
    "PatchProvenance",
    "extract_folder",
    "features_path",
]
