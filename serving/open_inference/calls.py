"""A request for inference: read and checked as a whole, before any work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cmamil_sdk._client_results import UPLOAD_SCHEME
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest
from cmamil_sdk.features.encode import CPU_CALL_TILES

from ..config import ServerConfig
from ..messages import RunGraph
from ..models import ModelTable
from ..predictor import SlideRequest
from ..requests import parse, prediction_request
from ..status import FieldProblem, RequestInvalid
from .catalogue import ServedModel, find_model
from .length import check_length
from .limits import check_bag, check_tiles
from .parameters import check_parameters
from .signatures import Tensor
from .tensors import Arrays, read_inputs, wanted_outputs

_OPTIONS = {"mpp": float, "expected_sha256": str}
"""Keys of the options of a slide, and their types; whole numbers are read as float."""
_OPTIONS_CHARACTERS = 4096


@dataclass(frozen=True)
class Call:
    """A checked request.

    Attributes:
        model: which model.
        id: the client's, which comes back.
        outputs: those asked for, in that order.
        queue_timeout_s: how long it may wait for its turn; None: as long as its deadline allows.
        work: a slide to predict, or tasks for the workers.
    """

    model: ServedModel
    id: str
    outputs: tuple[Tensor, ...]
    queue_timeout_s: float | None
    work: SlideRequest | tuple[RunGraph, ...]


def read_call(data: bytes, models: ModelTable, config: ServerConfig) -> Call:
    """Read a request; takes milliseconds for one of many MiB.

    Raises:
        FieldInvalid, RequestInvalid: it is malformed, or wrong.
        RequestUnsupported: it asks for what this server does not do.
        RequestTooLarge: it holds too many tiles.
        MessageTooLarge: it is longer than a message may be, or as :func:`check_length`.
        ModelNotFound, ModelNotReady: as :func:`find_model`.
    """
    check_length(data)
    request = parse(ModelInferRequest, data, config.max_message_bytes)
    model = find_model(models, request.model_name, request.model_version, field="model_name")
    queue_timeout_s = check_parameters(request)
    inputs = read_inputs(request, model.signature.inputs)
    return Call(
        model=model,
        id=request.id,
        outputs=wanted_outputs(request, model.signature.outputs),
        queue_timeout_s=queue_timeout_s,
        work=_work(model, inputs, config),
    )


def _work(
    model: ServedModel, inputs: Arrays, config: ServerConfig
) -> SlideRequest | tuple[RunGraph, ...]:
    number = model.loaded.number
    if model.part == "slide":
        return _slide_request(model, inputs)
    if model.part == "encoder":
        check_tiles(inputs, config)
        tiles = inputs["tiles"]
        starts = range(0, len(tiles), CPU_CALL_TILES)
        return tuple(
            RunGraph(number, "encoder", {"tiles": tiles[start : start + CPU_CALL_TILES]}, part)
            for part, start in enumerate(starts)
        )
    check_bag(inputs, model.loaded.bundle.manifest, config)
    return (RunGraph(number, "aggregator", inputs),)


def _slide_request(model: ServedModel, inputs: Arrays) -> SlideRequest:
    """The same as our own API would make of it."""
    models = ModelTable()  # of the one that was found, which may be withdrawn by now
    models.fill([model.loaded])
    message = prediction_pb2.PredictSlideRequest(model=model.loaded.resource)
    message.output.top_k = 0
    uri = _text("slide_uri", inputs)
    if uri.startswith(UPLOAD_SCHEME):
        message.slide.slide_id = uri.removeprefix(UPLOAD_SCHEME)
    else:
        message.slide.uri = uri
    options = _options(_text("options", inputs)) if "options" in inputs else {}
    if "expected_sha256" in options:
        message.slide.expected_sha256 = options["expected_sha256"]
    if "mpp" in options:
        message.tiling.mpp_override = options["mpp"]
    return prediction_request(message, models)


def _text(name: str, inputs: Arrays) -> str:
    try:
        return str(inputs[name].item().decode())
    except UnicodeDecodeError as problem:
        raise RequestInvalid([FieldProblem(name, "must be UTF-8")]) from problem


def _options(text: str) -> dict[str, Any]:
    """The options of a slide, a JSON object; empty text has none."""
    if len(text) > _OPTIONS_CHARACTERS:  # JSON of megabytes would hold the interpreter
        problem = f"must be at most {_OPTIONS_CHARACTERS} characters long"
        raise RequestInvalid([FieldProblem("options", problem)])
    try:
        options = json.loads(text or "{}", parse_int=float)
    except (ValueError, RecursionError) as problem:
        raise RequestInvalid([FieldProblem("options", "must be JSON")]) from problem
    if not isinstance(options, dict):
        raise RequestInvalid([FieldProblem("options", "must be a JSON object")])
    problems = []
    for key, value in options.items():
        if key not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            problems.append(FieldProblem("options", f"{key[:80]!r} is unknown; there are {known}"))
        elif not isinstance(value, _OPTIONS[key]) or not str(value).isascii():
            kind = "a number" if key == "mpp" else "a string of hexadecimal digits"
            problems.append(FieldProblem("options", f"{key} must be {kind}"))
    if problems:
        raise RequestInvalid(problems)
    return options


__all__ = ["Call", "read_call"]
