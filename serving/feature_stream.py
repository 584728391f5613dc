"""ExtractFeatures: the features of a slide as a stream of chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from cmamil_sdk import __version__
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import QueueFull
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.wording import counted

from .calls import ID_CHARACTERS, URI_CHARACTERS, current_call
from .config import ServerConfig
from .convert import FEATURE_SOURCES, MPP_SOURCES, duration
from .handlers import Method
from .models import LoadedModel, ModelTable
from .predictor import Extraction, Predictor
from .requests import extraction_request, parse, request_id, slide_asked_for
from .slide_request import Stage
from .status import FieldProblem, RequestInvalid
from .streaming import CallContext, Events, with_progress

CHUNK_BYTES = 2**20
_ROOM_BYTES = 512  # of a chunk beside its rows
_ROW_BYTES = 28  # coordinates, parent and tissue of a tile

_TYPES = {
    prediction_pb2.FEATURE_TYPE_UNSPECIFIED: "<f4",
    prediction_pb2.FEATURE_TYPE_FLOAT32: "<f4",
    prediction_pb2.FEATURE_TYPE_FLOAT16: "<f2",
}


class FeatureStream:
    """Answers ExtractFeatures with the models of a table, by the predictor that ``predictor`` returns.

    ``predictor`` raises :class:`ModelNotReady` while there is none.
    """

    def __init__(
        self, config: ServerConfig, models: ModelTable, predictor: Callable[[], Predictor]
    ) -> None:
        self._config, self._models, self._predictor = config, models, predictor
        self._streams = 0

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {"ExtractFeatures": Method(self._extract_features, response_streaming=True)}

    async def _extract_features(self, data: bytes, context: CallContext) -> None:
        kind = prediction_pb2.ExtractFeaturesRequest
        message = parse(kind, data, self._config.max_request_bytes)
        call, identity = current_call(), request_id(message)
        call.request_id = identity[:ID_CHARACTERS]
        call.slide = slide_asked_for(message.slide)[:URI_CHARACTERS]
        request = extraction_request(message, self._models)
        call.model = request.model.bundle.label
        predictor = self._predictor()
        events = Events(prediction_pb2.ExtractFeaturesResponse, context, identity)
        with (
            # The model from now on: to say that the request is in may take a while.
            request.model.use(),
            self._place(),
            predictor.admission.enter() as ticket,
        ):

            async def extract(report: Callable[[Stage], None]) -> Extraction:
                def enter(stage: Stage) -> None:
                    call.enter(stage.name)  # this one's, though the work be another call's
                    report(stage)

                return await predictor.extract(
                    request, ticket, remaining_s=context.time_remaining(), report=enter
                )

            accepted = prediction_pb2.Accepted(
                queue_position=ticket.position, model=request.model.resource
            )
            async with predictor.deadlines.limit(context.time_remaining()):
                heartbeat_s = self._config.heartbeat_s
                found = await with_progress(extract, events, accepted, heartbeat_s=heartbeat_s)
                ticket.release()  # what is left needs no worker
                call.enter("answering")
                call.note_features(found.features.source, _seconds(found))
                for chunk in chunks(found.features.slide.bag, message.feature_type):
                    await events.write(chunk=chunk)
                call.answered = True
                await events.write(summary=summary(found, request.model))

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place for a stream: each holds the features of a slide until its client has taken them."""
        if self._streams >= self._config.max_active_slides:
            streams = counted(self._streams, "slide")
            raise QueueFull(
                f"The server sends the features of {streams}, its limit; try again later."
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def chunks(
    bag: Bag, feature_type: prediction_pb2.FeatureType
) -> Iterator[prediction_pb2.FeatureChunk]:
    """The tiles of a bag, coarse to fine, in parts of at most :data:`CHUNK_BYTES`.

    Raises:
        RequestInvalid: a feature is too large for float16.
    """
    kind = np.dtype(_TYPES[feature_type])
    rows = max(1, (CHUNK_BYTES - _ROOM_BYTES) // (_ROW_BYTES + bag.dim * kind.itemsize))
    for scale in bag.scales:
        name = scale.name
        for first in range(0, len(bag.coords[name]), rows):
            part = slice(first, first + rows)
            with np.errstate(over="ignore"):
                features = bag.features[name][part].astype(kind, copy=False)
            if kind.itemsize == 2 and not np.isfinite(features).all():
                problem = "a feature is too large for 16 bits; ask for FEATURE_TYPE_FLOAT32"
                raise RequestInvalid([FieldProblem("feature_type", problem)])
            yield prediction_pb2.FeatureChunk(
                scale=name,
                first_row=first,
                rows=len(features),
                coords=bag.coords[name][part].astype("<i8", copy=False).tobytes(),
                parent=bag.parent[name][part].astype("<i8", copy=False).tobytes(),
                tissue=bag.tissue[name][part].astype("<f4", copy=False).tobytes(),
                features=features.tobytes(),
            )


def summary(found: Extraction, model: LoadedModel) -> prediction_pb2.FeatureSummary:
    """What was sent, and where it comes from."""
    slide, manifest = found.features.slide, model.bundle.manifest
    facts, engine = slide.facts, model.bundle.encoder_info
    message = prediction_pb2.FeatureSummary(
        model=model.resource,
        slide_id=facts.slide_id,
        slide_sha256=found.slide_sha256,
        width=facts.width,
        height=facts.height,
        mpp=facts.require_mpp(),
        mpp_source=MPP_SOURCES[facts.mpp_source],
        reader=f"{facts.reader}: {facts.reader_reason}",
        recipe=json.dumps(manifest.recipe.model_dump(mode="json")),
        encoder=json.dumps(manifest.encoder.model_dump(mode="json", exclude_none=True)),
        engine=engine.label,
        engine_reason=engine.reason,
        sdk_version=__version__,
        tiles_failed=slide.tiles_failed,
        dim=slide.bag.dim,
        feature_source=FEATURE_SOURCES[found.features.source],
        warnings=[*model.bundle.warnings, *facts.warnings],
    )
    for scale, tiles in slide.bag.counts().items():
        message.tiles_per_scale.add(scale=scale, tiles=tiles)
    for stage, seconds in _seconds(found).items():
        getattr(message.timings, stage).CopyFrom(duration(seconds))
    return message


def _seconds(found: Extraction) -> dict[str, float]:
    queued_s, total_s = found.seconds_queued, found.seconds_total
    return {"queued": queued_s, **found.features.seconds, "total": total_s}


__all__ = ["CHUNK_BYTES", "FeatureStream", "chunks", "summary"]
