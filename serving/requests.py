"""Requests as they arrive: bytes, parsed and checked field by field."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.errors import FieldInvalid, MessageTooLarge
from cmamil_sdk.slides.base import PLAUSIBLE_MPP

from .models import ModelTable
from .slide_request import SlideRequest
from .status import FieldProblem, RequestInvalid

_MessageT = TypeVar("_MessageT", bound=Message)
_WithId = prediction_pb2.PredictSlideRequest | prediction_pb2.ExtractFeaturesRequest

DEFAULT_TOP_K = 16
_MAX_TOP_K = 1000
_MAX_URI_CHARACTERS = 4096
_MAX_UUID_CHARACTERS = 45  # with urn:uuid: in front
_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")
SLIDE_ID = re.compile(r"[0-9a-f]{64}")
"""Id of an uploaded slide."""


def parse(kind: type[_MessageT], data: bytes, max_bytes: int) -> _MessageT:
    """A request message.

    Raises:
        MessageTooLarge: longer than ``max_bytes``.
        FieldInvalid: not a valid message of that kind.
    """
    if len(data) > max_bytes:
        raise MessageTooLarge(
            f"The request is {len(data)} bytes long, the limit is {max_bytes}; send less at once."
        )
    try:
        return kind.FromString(data)
    except DecodeError as problem:
        raise FieldInvalid(
            f"The request is not a {kind.DESCRIPTOR.full_name} message; "
            "use a client made from this server's protos."
        ) from problem


def prediction_request(
    message: prediction_pb2.PredictSlideRequest, models: ModelTable
) -> SlideRequest:
    """Check a prediction request.

    Raises:
        RequestInvalid: wrong fields, all of them named.
        ModelNotFound, ModelNotReady: as :meth:`ModelTable.find`.
    """
    problems = _slide_problems(message.slide, message.tiling)
    top_k = message.output.top_k if message.output.HasField("top_k") else DEFAULT_TOP_K
    if not 0 <= top_k <= _MAX_TOP_K:
        problems.append(FieldProblem("output.top_k", f"must be from 0 to {_MAX_TOP_K}"))
    problems += _id_problems(message)
    if problems:
        raise RequestInvalid(problems)
    request = _request(message.slide, message.tiling, models, message.model, top_k)
    return replace(request, bypass_cache=message.bypass_cache)


def extraction_request(
    message: prediction_pb2.ExtractFeaturesRequest, models: ModelTable
) -> SlideRequest:
    """Check a request for features; errors as :func:`prediction_request`."""
    problems = _slide_problems(message.slide, message.tiling) + _id_problems(message)
    if message.feature_type not in prediction_pb2.FeatureType.values():
        problems.append(FieldProblem("feature_type", "must be a FeatureType"))
    if problems:
        raise RequestInvalid(problems)
    request = _request(message.slide, message.tiling, models, message.model, 0)
    return replace(request, aggregate=False, bypass_cache=message.bypass_cache)


def inspection_request(message: slide_pb2.InspectSlideRequest, models: ModelTable) -> SlideRequest:
    """Check an inspection request; errors as :func:`prediction_request`."""
    problems = _slide_problems(message.slide, message.tiling)
    if problems:
        raise RequestInvalid(problems)
    return _request(message.slide, message.tiling, models, message.model, 0)


def slide_asked_for(slide: slide_pb2.SlideSource) -> str:
    """What a request calls its slide."""
    return slide.uri or slide.slide_id


def check_slide_id(slide_id: str, field: str) -> list[FieldProblem]:
    """What is wrong with the id of an uploaded slide."""
    if SLIDE_ID.fullmatch(slide_id):
        return []
    return [FieldProblem(field, "must be 64 hexadecimal digits in lower case")]


def request_id(message: _WithId) -> str:
    """The client's id of the request, or a new one."""
    return message.request_id or str(uuid.uuid4())


def fingerprint_of(request: prediction_pb2.PredictSlideRequest) -> str:
    """sha256 of a request but for its id, in hexadecimal."""
    same = prediction_pb2.PredictSlideRequest()
    same.CopyFrom(request)
    same.ClearField("request_id")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()


def _request(
    slide: slide_pb2.SlideSource,
    tiling: slide_pb2.TilingOptions,
    models: ModelTable,
    model: str,
    top_k: int,
) -> SlideRequest:
    return SlideRequest(
        uri=slide.uri,
        slide_id=slide.slide_id,
        expected_sha256=slide.expected_sha256,
        mpp=tiling.mpp_override if tiling.HasField("mpp_override") else None,
        model=models.find(model, field="model"),
        top_k=top_k,
    )


def _slide_problems(
    slide: slide_pb2.SlideSource, tiling: slide_pb2.TilingOptions
) -> list[FieldProblem]:
    problems = []
    if slide.WhichOneof("source") == "slide_id":
        problems += check_slide_id(slide.slide_id, "slide.slide_id")
    elif not slide.uri:
        problems.append(FieldProblem("slide.uri", "must name a slide, or slide.slide_id must"))
    elif len(slide.uri) > _MAX_URI_CHARACTERS:
        text = f"must be at most {_MAX_URI_CHARACTERS} characters long"
        problems.append(FieldProblem("slide.uri", text))
    if slide.expected_sha256 and not _SHA256.match(slide.expected_sha256):
        problems.append(FieldProblem("slide.expected_sha256", "must be 64 hexadecimal digits"))
    low, high = PLAUSIBLE_MPP
    mpp = tiling.mpp_override
    if tiling.HasField("mpp_override") and not (math.isfinite(mpp) and low <= mpp <= high):
        text = f"must be a number of microns per pixel from {low} to {high}"
        problems.append(FieldProblem("tiling.mpp_override", text))
    return problems


def _id_problems(message: _WithId) -> list[FieldProblem]:
    if message.request_id and not _is_uuid(message.request_id):
        return [FieldProblem("request_id", "must be a UUID")]
    return []


def _is_uuid(text: str) -> bool:
    if len(text) > _MAX_UUID_CHARACTERS:
        return False  # any number of hyphens would do for Python
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


__all__ = [
    "check_slide_id",
    "extraction_request",
    "fingerprint_of",
    "inspection_request",
    "parse",
    "prediction_request",
    "request_id",
    "slide_asked_for",
]
