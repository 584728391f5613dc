"""Batches of tiles to features: read and encoded by one thread, or decoded ahead on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.errors import GpuOutOfMemory, NonFiniteOutput
from cmamil_sdk.features.device_tiles import read_device_tiles
from cmamil_sdk.features.tiles import TilePixels, read_tiles
from cmamil_sdk.machine import available_cores
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


@dataclass(frozen=True)
class DecodedBatch:
    """The tiles of a batch on the host, and the seconds that it took to read them."""

    batch: TileBatch
    tiles: TilePixels
    seconds: float


def decoding_device(reader: ReaderName, engine: EngineInfo) -> str:
    """Where tiles are decoded: on the encoder's device if cuCIM reads and it takes them there."""
    return engine.device if reader == "cucim" and engine.takes_device_arrays else "cpu"


def batch_tiles(device: str) -> int:
    """About how many tiles a batch for :func:`encode_batch` has that is decoded on a device."""
    return DEFAULT_BATCH_TILES if device == "cpu" else DEVICE_BATCH_TILES


def call_tiles(device: str) -> int:
    """About how many tiles a batch for :func:`encode_all` has, which decodes the next one ahead."""
    return DEFAULT_BATCH_TILES if device == "cpu" else DEVICE_CALL_TILES


def worker_count(workers: int | None, device: str) -> int:
    """Workers that decode on a device: as many as were asked for, or one per core, and one for a GPU."""
    return workers or (available_cores() if device == "cpu" else 1)


def encode_batch(reader: SlideReader, batch: TileBatch, engine: Engine) -> EncodedBatch:
    """Read and encode one batch; on a GPU, where both can, part by part, each decoded ahead.

    Raises:
        NonFiniteOutput: the encoder returned NaN or infinity.
    """
    if isinstance(reader, CudaReader) and engine.info.takes_device_arrays:
        parts = iter(batch.parts(DEVICE_CALL_TILES))
        return _joined(batch, list(encode_ahead(reader, parts, engine)))
    [encoded] = encode_together([decode_batch(reader, batch)], engine)
    check_finite(encoded, reader.facts.path)
    return encoded


def decode_batch(reader: SlideReader, batch: TileBatch) -> DecodedBatch:
    """Read the tiles of one batch onto the host."""
    started = time.perf_counter()
    tiles = read_tiles(reader, batch)
    return DecodedBatch(batch, tiles, time.perf_counter() - started)


def encode_together(decoded: Sequence[DecodedBatch], engine: Engine) -> list[EncodedBatch]:
    """Encode batches, which may be of several slides, in calls that they share.

    Each gets its share of the seconds, by tiles. Features may be NaN or infinite: see
    :func:`check_finite`.
    """
    started = time.perf_counter()
    pixels = [part.tiles.pixels for part in decoded]
    features = infer_tiles(engine, pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
    seconds_a_tile = (time.perf_counter() - started) / len(features)
    ends = np.cumsum([len(part.batch) for part in decoded])
    return [
        EncodedBatch(part.batch, own, part.tiles.ok, part.seconds, seconds_a_tile * len(part.batch))
        for part, own in zip(decoded, np.split(features, ends[:-1]), strict=True)
    ]


def check_finite(encoded: EncodedBatch, slide: Path | str) -> None:
    """Refuse features that are none; ``slide`` is named in the message.

    Raises:
        NonFiniteOutput: the encoder returned NaN or infinity for a tile that could be decoded.
    """
    if not np.isfinite(encoded.features[encoded.ok]).all():
        raise NonFiniteOutput(
            f"{slide}: the encoder returned NaN or infinity; "
            "run `cmamil verify` on the bundle or choose a higher precision."
        )


def encode_all(
    reader: SlideReader, batches: Iterator[TileBatch], engine: Engine
) -> Iterator[EncodedBatch]:
    """Read and encode batches, one after the other or, on a GPU, decoded ahead.

    Raises:
        NonFiniteOutput: as :func:`encode_batch`.
    """
    if isinstance(reader, CudaReader) and engine.info.takes_device_arrays:
        yield from encode_ahead(reader, batches, engine)
    else:
        for batch in batches:
            yield encode_batch(reader, batch, engine)


def encode_ahead(
    reader: CudaReader, batches: Iterator[TileBatch], engine: Engine
) -> Iterator[EncodedBatch]:
    """Encode batches, in order, while a thread decodes the next one on the GPU."""

    def decode() -> DecodedBatch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        started = time.perf_counter()
        tiles = read_device_tiles(reader, batch)
        return DecodedBatch(batch, tiles, time.perf_counter() - started)

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
        ahead = decoder.submit(decode)
        while (decoded := ahead.result()) is not None:
            ahead = decoder.submit(decode)
            [encoded] = encode_together([decoded], engine)
            check_finite(encoded, reader.facts.path)
            yield encoded


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
    "DecodedBatch",
    "EncodedBatch",
    "batch_tiles",
    "call_tiles",
    "check_finite",
    "decode_batch",
    "decoding_device",
    "encode_ahead",
    "encode_all",
    "encode_batch",
    "encode_together",
    "infer_tiles",
    "worker_count",
]
