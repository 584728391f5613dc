"""From the library's types to the messages of ``cmamil.v1``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration

from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.predict import Prediction, ScaleMap

from .metrics import Metrics
from .models import ListedModel, LoadedModel, ModelState, resource_of
from .pool import WorkerState
from .predictor import Answer, Inspection, Stage

MPP_SOURCES = {
    "metadata": slide_pb2.MPP_SOURCE_METADATA,
    "override": slide_pb2.MPP_SOURCE_OVERRIDE,
    "unknown": slide_pb2.MPP_SOURCE_UNKNOWN,
}
_STAGES = {
    "queued": prediction_pb2.STAGE_QUEUED,
    "planning": prediction_pb2.STAGE_PLANNING,
    "tiles": prediction_pb2.STAGE_TILES,
    "aggregating": prediction_pb2.STAGE_AGGREGATING,
}
FEATURE_SOURCES = {
    "computed": prediction_pb2.FEATURE_SOURCE_COMPUTED,
    "cached": prediction_pb2.FEATURE_SOURCE_CACHED,
    "coalesced": prediction_pb2.FEATURE_SOURCE_COALESCED,
}
_MODEL_STATES = {
    ModelState.LOADING: model_pb2.Model.STATE_LOADING,
    ModelState.READY: model_pb2.Model.STATE_READY,
    ModelState.UNLOADING: model_pb2.Model.STATE_UNLOADING,
}
WORKER_STATES = {
    WorkerState.STARTING: server_pb2.Worker.STATE_STARTING,
    WorkerState.IDLE: server_pb2.Worker.STATE_IDLE,
    WorkerState.BUSY: server_pb2.Worker.STATE_BUSY,
}


def duration(seconds: float) -> Duration:
    """Seconds, to the nanosecond."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def prediction_message(
    answer: Answer, model: LoadedModel, request_id: str, *, attention: bool
) -> prediction_pb2.PredictSlideResponse:
    """The answer to a prediction request; ``attention`` adds the maps of all tiles."""
    found = answer.prediction
    message = prediction_pb2.PredictSlideResponse(
        request_id=request_id,
        model=model.resource,
        bundle=found.bundle,
        bundle_sha256=found.bundle_sha256,
        slide_id=found.slide,
        label=found.label,
        tiles_failed=found.tiles_failed,
        mpp=found.mpp,
        mpp_source=MPP_SOURCES[found.mpp_source],
        timings=_timings(found, answer.seconds_queued),
        engine=found.engine,
        warnings=found.warnings,
        feature_source=FEATURE_SOURCES[found.feature_source],
        quality=prediction_pb2.QualityReport(**vars(found.quality)),
    )
    for label, value in found.probabilities.items():
        message.scores.add(label=label, probability=value)
    for label, value in (found.coarse or {}).items():
        message.coarse_scores.add(label=label, probability=value)
    for scale, count in found.tiles.items():
        message.tiles_per_scale.add(scale=scale, tiles=count)
    for tile in found.top_tiles:
        message.top_tiles.add(
            scale=tile.scale, x=tile.x, y=tile.y, size=tile.size, score=tile.score
        )
    if attention:
        message.attention.extend(_scale_attention(scale_map) for scale_map in found.maps)
    return message


def progress_message(stage: Stage) -> prediction_pb2.Progress:
    """Where a request stands."""
    return prediction_pb2.Progress(stage=_STAGES[stage.name], done=stage.done, total=stage.total)


def inspection_message(found: Inspection) -> slide_pb2.InspectSlideResponse:
    """What a slide is."""
    facts = found.facts
    message = slide_pb2.InspectSlideResponse(
        slide_id=facts.slide_id,
        sha256=found.sha256,
        width=facts.width,
        height=facts.height,
        mpp=facts.mpp,
        mpp_source=MPP_SOURCES[facts.mpp_source],
        objective_power=facts.objective_power,
        vendor=facts.vendor,
        compression=facts.compression,
        reader=facts.reader,
        reader_reason=facts.reader_reason,
        warnings=facts.warnings,
    )
    for level in facts.levels:
        message.levels.add(width=level.width, height=level.height, downsample=level.downsample)
    if found.plan is None:
        message.warnings.append(found.problem)
        return message
    message.tissue_fraction = found.plan.tissue_share
    levels = found.plan.geometry.levels()
    for scale, count in found.plan.counts().items():
        message.tiles.add(scale=scale, tiles=count, level=levels[scale])
    return message


def model_message(model: ListedModel) -> model_pb2.Model:
    """A model, with its state."""
    manifest = model.manifest
    message = model_pb2.Model(
        name=resource_of(manifest),
        bundle_sha256=model.sha256,
        kind=manifest.model_kind,
        labels=manifest.labels,
        tile_px=manifest.recipe.tile_px,
        encoder=manifest.encoder.id,
        state=_MODEL_STATES[model.state],
        is_default=model.is_default,
    )
    for scale in manifest.recipe.scales:
        message.scales.add(name=scale.name, mpp=scale.mpp)
    return message


def engine_message(info: EngineInfo) -> server_pb2.EngineInfo:
    """An engine as it runs."""
    return server_pb2.EngineInfo(
        name=info.name,
        device=info.device,
        precision=info.precision,
        version=info.version,
        reason=info.reason,
    )


def stats_message(metrics: Metrics, uptime_s: float) -> server_pb2.GetServerStatsResponse:
    """What the server has done, and what waits."""
    now = metrics.now()
    message = server_pb2.GetServerStatsResponse(
        uptime=duration(uptime_s),
        tiles_ok=metrics.tiles("ok"),
        tiles_failed=metrics.tiles("failed"),
        batches=metrics.batches(),
        worker_restarts=now.worker_restarts,
        active_slides=now.active_slides,
        queued_slides=now.queued_slides,
        queued_batches=now.queued_batches,
    )
    for rpc, model, code, count in metrics.calls():
        message.calls.add(rpc=rpc, model=model, code=code, count=count)
    for name, count, seconds in metrics.durations():
        message.rpcs.add(name=name, count=count, total=duration(seconds))
    for name, count, seconds in metrics.stages():
        message.stages.add(name=name, count=count, total=duration(seconds))
    for name, count in metrics.cancelled():
        message.cancelled.add(name=name, count=count)
    return message


def _timings(found: Prediction, seconds_queued: float) -> prediction_pb2.StageTimings:
    stages = {stage: duration(value) for stage, value in found.seconds.items()}
    return prediction_pb2.StageTimings(queued=duration(seconds_queued), **stages)


def _scale_attention(scale_map: ScaleMap) -> prediction_pb2.ScaleAttention:
    return prediction_pb2.ScaleAttention(
        scale=scale_map.scale,
        tile_size=scale_map.size,
        coords=scale_map.coords.ravel().tolist(),
        attention=_flat(scale_map.attention),
        contribution=_flat(scale_map.contribution),
    )


def _flat(values: npt.NDArray[np.float32] | None) -> list[float]:
    return [] if values is None else values.ravel().tolist()


__all__ = [
    "FEATURE_SOURCES",
    "MPP_SOURCES",
    "WORKER_STATES",
    "duration",
    "engine_message",
    "inspection_message",
    "model_message",
    "prediction_message",
    "progress_message",
    "stats_message",
]
