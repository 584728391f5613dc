"""Results of the client: the messages of ``cmamil.v1`` as the library's own types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, slide_pb2
from cmamil_sdk.predict import (
    STAGES,
    Prediction,
    ProgressEvent,
    QualityReport,
    ScaleMap,
    TopTile,
)
from cmamil_sdk.slides.base import Level

UPLOAD_SCHEME = "upload:"
"""In front of a slide id, where a URI is asked for."""


_MPP_SOURCES: dict[int, str] = {
    slide_pb2.MPP_SOURCE_METADATA: "metadata",
    slide_pb2.MPP_SOURCE_OVERRIDE: "override",
}
_FEATURE_SOURCES: dict[int, str] = {
    prediction_pb2.FEATURE_SOURCE_CACHED: "cached",
    prediction_pb2.FEATURE_SOURCE_COALESCED: "coalesced",
}
_STAGES = {
    prediction_pb2.STAGE_QUEUED: "queued",
    prediction_pb2.STAGE_PLANNING: "tissue",
    prediction_pb2.STAGE_TILES: "encode",
    prediction_pb2.STAGE_AGGREGATING: "aggregate",
}


@dataclass(frozen=True)
class ModelFacts:
    """A model that a server has.

    Attributes:
        name: ``models/NAME/versions/VERSION``.
        bundle_sha256: of the bundle's manifest.
        kind: of the aggregator, for example ``cma-mil``.
        labels: the classes.
        scales: microns per pixel by name, coarse to fine.
        tile_px: edge of a tile, pixels at its scale.
        encoder: its id.
        state: ``loading``, ``ready`` or ``unloading``.
        is_default: whether ``models/NAME`` means this version.
    """

    name: str
    bundle_sha256: str
    kind: str
    labels: tuple[str, ...]
    scales: dict[str, float]
    tile_px: int
    encoder: str
    state: str
    is_default: bool


@dataclass(frozen=True)
class SlideInspection:
    """What a server says of a slide.

    ``width``, ``height`` and levels are in pixels, ``mpp`` is of level 0. ``tissue_fraction``,
    ``read_from`` (the number of the stored level that a scale is read from) and ``tiles`` are None if
    the slide cannot be tiled, and ``warnings`` says why.
    """

    slide: str
    sha256: str
    width: int
    height: int
    levels: tuple[Level, ...]
    mpp: float | None
    mpp_source: str
    objective_power: float | None
    vendor: str
    compression: str | None
    reader: str
    reader_reason: str
    tissue_fraction: float | None
    read_from: dict[str, int] | None
    tiles: dict[str, int] | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``cmamil inspect --json`` prints."""
        document = vars(self) | {
            "levels": [vars(level) for level in self.levels],
            "warnings": list(self.warnings),
        }
        if self.tissue_fraction is not None:
            document["tissue_fraction"] = round(self.tissue_fraction, 4)
        return document


@dataclass(frozen=True)
class UploadedSlide:
    """A slide that a server stores for a while.

    Attributes:
        slide_id: its sha256.
        expires: when the server removes it, in UTC.
    """

    slide_id: str
    expires: datetime

    @property
    def uri(self) -> str:
        """What names it where the client's methods take a URI: ``upload:SLIDE_ID``."""
        return f"{UPLOAD_SCHEME}{self.slide_id}"


def prediction_from(message: prediction_pb2.PredictSlideResponse) -> Prediction:
    """A prediction; its maps are empty unless the answer has attention."""
    timings, quality = message.timings, message.quality
    return Prediction(
        slide=message.slide_id,
        label=message.label,
        probabilities={score.label: score.probability for score in message.scores},
        coarse={score.label: score.probability for score in message.coarse_scores} or None,
        tiles={count.scale: count.tiles for count in message.tiles_per_scale},
        quality=QualityReport(
            tiles_planned=quality.tiles_planned,
            tiles_read=quality.tiles_read,
            tiles_failed=quality.tiles_failed,
            tiles_background=quality.tiles_background,
            reader=quality.reader,
            reader_reason=quality.reader_reason,
        ),
        mpp=message.mpp,
        mpp_source=mpp_source_from(message.mpp_source),
        seconds={stage: getattr(timings, stage).ToNanoseconds() / 1e9 for stage in STAGES},
        engine=message.engine,
        bundle=message.bundle,
        bundle_sha256=message.bundle_sha256,
        top_tiles=tuple(
            TopTile(tile.scale, tile.x, tile.y, tile.size, tile.score) for tile in message.top_tiles
        ),
        warnings=tuple(message.warnings),
        maps=tuple(_map_from(scale, len(message.scores)) for scale in message.attention),
        feature_source=_FEATURE_SOURCES.get(message.feature_source, "computed"),
    )


def mpp_source_from(source: int) -> str:
    """Where microns per pixel come from, as :attr:`SlideFacts.mpp_source`."""
    return _MPP_SOURCES.get(source, "unknown")


def progress_from(message: prediction_pb2.Progress) -> ProgressEvent:
    """Progress in the local predictor's terms; the stage ``queued`` is the server's own."""
    stage = _STAGES.get(message.stage, "queued")
    if stage == "encode":
        return ProgressEvent(stage, message.done, message.total)
    return ProgressEvent(stage, 0, 1)


def inspection_from(message: slide_pb2.InspectSlideResponse) -> SlideInspection:
    """What a slide is."""
    tiled = message.HasField("tissue_fraction")
    return SlideInspection(
        slide=message.slide_id,
        sha256=message.sha256,
        width=message.width,
        height=message.height,
        levels=tuple(Level(lv.width, lv.height, lv.downsample) for lv in message.levels),
        mpp=message.mpp if message.HasField("mpp") else None,
        mpp_source=mpp_source_from(message.mpp_source),
        objective_power=message.objective_power if message.HasField("objective_power") else None,
        vendor=message.vendor,
        compression=message.compression if message.HasField("compression") else None,
        reader=message.reader,
        reader_reason=message.reader_reason,
        tissue_fraction=message.tissue_fraction if tiled else None,
        read_from={count.scale: count.level for count in message.tiles} if tiled else None,
        tiles={count.scale: count.tiles for count in message.tiles} if tiled else None,
        warnings=tuple(message.warnings),
    )


def model_from(message: model_pb2.Model) -> ModelFacts:
    """A model."""
    return ModelFacts(
        name=message.name,
        bundle_sha256=message.bundle_sha256,
        kind=message.kind,
        labels=tuple(message.labels),
        scales={scale.name: scale.mpp for scale in message.scales},
        tile_px=message.tile_px,
        encoder=message.encoder,
        state=model_pb2.Model.State.Name(message.state).removeprefix("STATE_").lower(),
        is_default=message.is_default,
    )


def _map_from(message: prediction_pb2.ScaleAttention, classes: int) -> ScaleMap:
    attention = np.array(message.attention, dtype=np.float32)
    contribution = np.array(message.contribution, dtype=np.float32).reshape(-1, classes)
    return ScaleMap(
        scale=message.scale,
        size=message.tile_size,
        coords=np.array(message.coords, dtype=np.int64).reshape(-1, 2),
        attention=attention if len(attention) else None,
        contribution=contribution if len(contribution) else None,
    )


__all__ = [
    "UPLOAD_SCHEME",
    "ModelFacts",
    "SlideInspection",
    "inspection_from",
    "model_from",
    "mpp_source_from",
    "prediction_from",
    "progress_from",
]
