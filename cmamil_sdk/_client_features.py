"""Features of a slide as the clients ask for them and put them together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmamil_sdk._client_calls import OnProgress, Stream, model_name, slide_source
from cmamil_sdk._client_results import mpp_source_from, progress_from
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import FieldInvalid, UnexpectedError
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, write_feature_file
from cmamil_sdk.tiling.recipe import TilingRecipe

FeatureDtype = Literal["float32", "float16"]
OnWarning = Callable[[str], None]
SlideFeatures = tuple[Bag, FeatureProvenance]

_TYPES = {
    "float32": prediction_pb2.FEATURE_TYPE_FLOAT32,
    "float16": prediction_pb2.FEATURE_TYPE_FLOAT16,
}
_KINDS = {"coords": "<i8", "parent": "<i8", "tissue": "<f4"}


def feature_request(
    uri: str,
    *,
    dtype: FeatureDtype,
    mpp: float | None,
    model: str | None,
    expected_sha256: str,
    request_id: str,
    bypass_cache: bool,
) -> prediction_pb2.ExtractFeaturesRequest:
    """What is asked of a slide.

    Raises:
        FieldInvalid: ``dtype`` is neither ``float32`` nor ``float16``.
    """
    if dtype not in _TYPES:
        raise FieldInvalid(f"dtype is {dtype!r}; choose {' or '.join(_TYPES)}.")
    return prediction_pb2.ExtractFeaturesRequest(
        model=model_name(model),
        slide=slide_source(uri, expected_sha256),
        tiling=slide_pb2.TilingOptions(mpp_override=mpp),
        request_id=request_id,
        feature_type=_TYPES[dtype],
        bypass_cache=bypass_cache,
    )


def ask_features(
    request: prediction_pb2.ExtractFeaturesRequest,
    dtype: FeatureDtype,
    on_progress: OnProgress | None,
    on_warning: OnWarning | None,
) -> Stream[SlideFeatures]:
    """The features of a slide, put together; each attempt needs a stream of its own."""
    return Stream(
        "/cmamil.v1.SlidePredictionService/ExtractFeatures",
        request,
        prediction_pb2.ExtractFeaturesResponse,
        FeatureCollector(dtype, on_progress, on_warning).take,
    )


class FeatureCollector:
    """Puts the events of one stream together."""

    def __init__(
        self,
        dtype: FeatureDtype,
        on_progress: OnProgress | None = None,
        on_warning: OnWarning | None = None,
    ) -> None:
        self._kinds = {**_KINDS, "features": "<f4" if dtype == "float32" else "<f2"}
        self._report = on_progress or (lambda _event: None)
        self._warn = on_warning or (lambda _warning: None)
        self._parts: dict[str, list[prediction_pb2.FeatureChunk]] = defaultdict(list)

    def take(self, event: prediction_pb2.ExtractFeaturesResponse) -> SlideFeatures | None:
        """The features, if ``event`` is the last one; tells progress and warnings.

        Raises:
            UnexpectedError: the server did not send all rows, in their order.
        """
        match event.WhichOneof("event"):
            case "progress":
                self._report(progress_from(event.progress))
            case "chunk":
                self._parts[event.chunk.scale].append(event.chunk)
            case "summary":
                for warning in event.summary.warnings:
                    self._warn(warning)
                return self._joined(event.summary)
        return None

    def _joined(self, summary: prediction_pb2.FeatureSummary) -> SlideFeatures:
        provenance = _provenance(summary)
        arrays: dict[str, dict[str, npt.NDArray[Any]]] = defaultdict(dict)
        for count in summary.tiles_per_scale:
            parts = self._parts.pop(count.scale, [])
            shapes = {"coords": (-1, 2), "features": (-1, summary.dim)}
            _check_order(parts, count)
            for name, kind in self._kinds.items():
                rows = np.concatenate([np.frombuffer(getattr(p, name), kind) for p in parts])
                arrays[name][count.scale] = rows.reshape(shapes.get(name, -1))
            features = arrays["features"]
            features[count.scale] = features[count.scale].astype(np.float32, copy=False)
        bag = Bag(slide_id=summary.slide_id, scales=provenance.recipe.scales, **arrays)
        bag.validate()
        return bag, provenance


def keep_features(found: SlideFeatures, out: Path | None) -> SlideFeatures:
    """The same, written to the feature file ``out`` as well, if one is named.

    Raises:
        OutputUnwritable: it cannot be written.
    """
    if out is not None:
        write_feature_file(out, *found)
    return found


def _check_order(parts: list[prediction_pb2.FeatureChunk], count: slide_pb2.ScaleTiles) -> None:
    row = 0
    for part in parts:
        if part.first_row != row:
            break
        row += part.rows
    if row != count.tiles:
        raise UnexpectedError(
            f"The server sent {row} of {count.tiles} tiles at {count.scale} in order; see its log."
        )


def _provenance(summary: prediction_pb2.FeatureSummary) -> FeatureProvenance:
    return FeatureProvenance(
        sdk_version=summary.sdk_version,
        slide_id=summary.slide_id,
        slide_sha256=summary.slide_sha256,
        width=summary.width,
        height=summary.height,
        mpp=summary.mpp,
        mpp_source=mpp_source_from(summary.mpp_source),
        reader=summary.reader,
        recipe=TilingRecipe.model_validate(json.loads(summary.recipe)),
        encoder=EncoderInfo.model_validate(json.loads(summary.encoder)),
        engine=summary.engine,
        engine_reason=summary.engine_reason,
        tiles_failed=summary.tiles_failed,
    )


__all__ = [
    "FeatureCollector",
    "FeatureDtype",
    "OnWarning",
    "SlideFeatures",
    "ask_features",
    "feature_request",
    "keep_features",
]
