"""Batches of tiles to features: read and encoded by one thread, or decoded ahead on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.errors import GpuOutOfMemory, NonFiniteOutput
from cmamil_sdk.features.device_tiles import read_device_tiles
from cmamil_sdk.features.tiles import TilePixels, read_tiles
from cmamil_sdk.slides import ReaderName
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.cuda_reader import CudaReader
from cmamil_sdk.tiling.batches import TileBatch
from cmamil_sdk.tiling.plan import DEFAULT_BATCH_TILES

Float32 = npt.NDArray[np.float32]
BoolMask = npt.NDArray[np.bool_]

CPU_CALL_TILES = 16
"""Tiles per call of an engine on a CPU, where larger calls are no faster."""

DEVICE_CALL_TILES = 128
"""Tiles that are decoded on a GPU while it encodes as many: the largest batch that engines take."""

DEVICE_BATCH_TILES = 4 * DEVICE_CALL_TILES
"""Tiles of a batch that is decoded on a GPU: its first part alone is not decoded ahead."""


@dataclass(frozen=True)
class EncodedBatch:
    """Features of one batch: ``features [T, D]`` float32 for the tiles where ``ok [T]``."""

    batch: TileBatch
    features: Float32
    ok: BoolMask
    seconds_decode: float
    seconds_encode: float


def decoding_device(reader: ReaderName, engine: EngineInfo) -> str:
    """Where tiles are decoded: on the encoder's device if cuCIM reads and it takes them there."""
    return engine.device if reader == "cucim" and engine.takes_device_arrays else "cpu"


def batch_tiles(device: str) -> int:
    """About how many tiles a batch has that is decoded on a device."""
    return DEFAULT_BATCH_TILES if device == "cpu" else DEVICE_BATCH_TILES


def encode_batch(reader: SlideReader, batch: TileBatch, engine: Engine) -> EncodedBatch:
    """Read and encode one batch; on a GPU, where both can, part by part, each decoded ahead.

    Raises:
        NonFiniteOutput: the encoder returned NaN or infinity.
    """
    if isinstance(reader, CudaReader) and engine.info.takes_device_arrays:
        parts = iter(batch.parts(DEVICE_CALL_TILES))
        return _joined(batch, list(encode_ahead(reader, parts, engine)))
    started = time.perf_counter()
    tiles = read_tiles(reader, batch)
    return _encoded(reader, batch, tiles, engine, time.perf_counter() - started)


def encode_all(
    reader: SlideReader, batches: Iterator[TileBatch], engine: Engine
) -> Iterator[EncodedBatch]:
    """Read and encode batches, one after the other or, on a GPU, decoded ahead.

    Raises:
        NonFiniteOutput: as :func:`encode_batch`.
    """
    if isinstance(reader, CudaReader) and engine.info.takes_device_arrays:
        parts = (part for batch in batches for part in batch.parts(DEVICE_CALL_TILES))
        yield from encode_ahead(reader, parts, engine)
    else:
        for batch in batches:
            yield encode_batch(reader, batch, engine)


def encode_ahead(
    reader: CudaReader, batches: Iterator[TileBatch], engine: Engine
) -> Iterator[EncodedBatch]:
    """Encode batches, in order, while a thread decodes the next one on the GPU."""

    def decode() -> tuple[TileBatch, TilePixels, float] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        started = time.perf_counter()
        tiles = read_device_tiles(reader, batch)
        return batch, tiles, time.perf_counter() - started

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
        ahead = decoder.submit(decode)
        while (decoded := ahead.result()) is not None:
            ahead = decoder.submit(decode)
            batch, tiles, seconds = decoded
            yield _encoded(reader, batch, tiles, engine, seconds)


def _encoded(
    reader: SlideReader, batch: TileBatch, tiles: TilePixels, engine: Engine, seconds: float
) -> EncodedBatch:
    """Tiles that took ``seconds`` to read, encoded."""
    started = time.perf_counter()
    features = infer_tiles(engine, tiles.pixels)
    if not np.isfinite(features[tiles.ok]).all():
        raise NonFiniteOutput(
            f"{reader.facts.path}: the encoder returned NaN or infinity; "
            "run `cmamil verify` on the bundle or choose a higher precision."
        )
    return EncodedBatch(batch, features, tiles.ok, seconds, time.perf_counter() - started)


def infer_tiles(engine: Engine, pixels: Any) -> Float32:
    """Features ``[T, D]`` of tiles ``[T, px, px, 3]`` uint8, on the host or the engine's device.

    On a CPU a few at a time, which takes less memory; on a GPU all at once, or half as many, and half
    again, where it has no memory for them.

    Raises:
        GpuOutOfMemory: it has none for a single tile.
    """
    total, start, parts = pixels.shape[0], 0, []
    step = CPU_CALL_TILES if engine.info.device == "cpu" else total
    while start < total:
        try:
            parts.append(engine.infer({"tiles": pixels[start : start + step]})["features"])
        except GpuOutOfMemory:
            step = min(step, total - start) // 2
            if not step:
                raise
        else:
            start += step
    return np.concatenate(parts).astype(np.float32, copy=False)


def _joined(batch: TileBatch, parts: list[EncodedBatch]) -> EncodedBatch:
    """The parts of a batch as one."""
    return EncodedBatch(
        batch,
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.ok for part in parts]),
        sum(part.seconds_decode for part in parts),
        sum(part.seconds_encode for part in parts),
    )


__all__ = [
    "CPU_CALL_TILES",
    "EncodedBatch",
    "batch_tiles",
    "decoding_device",
    "encode_all",
    "encode_batch",
    "infer_tiles",
]
