"""The handlers of ``inference.GRPCInferenceService``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from google.protobuf.message import Message

from cmamil_sdk._proto.inference import open_inference_pb2 as pb
from cmamil_sdk.errors import MessageTooLarge, ModelNotReady

from ..admission import Ticket
from ..calls import ID_CHARACTERS, URI_CHARACTERS, current_call
from ..config import ServerConfig
from ..models import ModelTable
from ..predictor import Predictor, SlideRequest
from ..requests import parse
from ..streaming import CallContext
from .calls import Call, read_call
from .catalogue import find_model, versions
from .metadata import model_config, model_metadata, server_metadata
from .tensors import Arrays, write_outputs

OPEN_INFERENCE = "inference.GRPCInferenceService"


class OpenInference:
    """Answers with the models of a table, by the predictor that ``predictor`` returns.

    ``predictor`` raises :class:`ModelNotReady` while there is none.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: ModelTable,
        predictor: Callable[[], Predictor],
        is_ready: Callable[[], bool],
    ) -> None:
        self._config = config
        self._models = models
        self._predictor = predictor
        self._is_ready = is_ready

    def methods(self) -> dict[str, Callable[[bytes, CallContext], Awaitable[Message]]]:
        """Each method by its name."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelInfer": self._model_infer,
        }

    async def _server_live(self, data: bytes, _context: CallContext) -> Message:
        parse(pb.ServerLiveRequest, data, self._config.max_request_bytes)
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, data: bytes, _context: CallContext) -> Message:
        parse(pb.ServerReadyRequest, data, self._config.max_request_bytes)
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def _model_ready(self, data: bytes, _context: CallContext) -> Message:
        """Not ready while it loads; while the first ones do whatever the name, as none is known yet."""
        asked = parse(pb.ModelReadyRequest, data, self._config.max_request_bytes)
        try:
            find_model(self._models, asked.name, asked.version, field="name")
        except ModelNotReady:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready())

    async def _server_metadata(self, data: bytes, _context: CallContext) -> Message:
        parse(pb.ServerMetadataRequest, data, self._config.max_request_bytes)
        return server_metadata()

    async def _model_metadata(self, data: bytes, _context: CallContext) -> Message:
        asked = parse(pb.ModelMetadataRequest, data, self._config.max_request_bytes)
        model = find_model(self._models, asked.name, asked.version, field="name")
        return model_metadata(model, versions(self._models, model.name))

    async def _model_config(self, data: bytes, _context: CallContext) -> Message:
        asked = parse(pb.ModelConfigRequest, data, self._config.max_request_bytes)
        model = find_model(self._models, asked.name, asked.version, field="name")
        config = model_config(model, self._config.max_call_tiles)
        return pb.ModelConfigResponse(config=config)

    async def _model_infer(self, data: bytes, context: CallContext) -> Message:
        call = await self._read(data)
        _note(call)
        predictor = self._predictor()
        remaining_s = context.time_remaining()
        with predictor.admission.enter(timeout_s=call.queue_timeout_s) as ticket:
            if isinstance(call.work, SlideRequest):
                found = await _predict(call.work, predictor, ticket, remaining_s)
            else:
                loaded = call.model.loaded
                parts = await predictor.run_graph(
                    loaded, call.work, ticket, remaining_s=remaining_s
                )
                found = _joined(parts), call.model.loaded.bundle.warnings
        return self._answer(call, *found)

    async def _read(self, data: bytes) -> Call:
        """The call, for a model that is there."""
        while True:
            # In a thread: to read 16 MiB takes the event loop's time from every other call.
            call = await asyncio.to_thread(read_call, data, self._models, self._config)
            if not call.model.loaded.is_withdrawn:  # since it was found: another may be meant now
                return call

    def _answer(self, call: Call, arrays: Arrays, warnings: Sequence[str]) -> Message:
        """The response, refused if it is longer than a message may be."""
        response = pb.ModelInferResponse(
            model_name=call.model.name, model_version=call.model.version, id=call.id
        )
        if warnings:
            response.parameters["warnings"].string_param = json.dumps(list(warnings))
        write_outputs(response, call.outputs, arrays)
        size, limit = response.ByteSize(), self._config.max_message_bytes
        if size > limit:
            raise MessageTooLarge(
                f"The answer is {size} bytes long, the limit is {limit}; ask for fewer outputs, or "
                "raise the server's max_message_bytes."
            )
        return response


def _note(call: Call) -> None:
    """Tell those who watch the server's calls what this one asks for."""
    watched = current_call()
    watched.model, watched.request_id = call.model.loaded.bundle.label, call.id[:ID_CHARACTERS]
    if isinstance(call.work, SlideRequest):
        watched.slide = (call.work.uri or call.work.slide_id)[:URI_CHARACTERS]


async def _predict(
    request: SlideRequest, predictor: Predictor, ticket: Ticket, remaining_s: float | None
) -> tuple[Arrays, Sequence[str]]:
    """The outputs of a slide's model, and what it warns of."""
    watched = current_call()
    answer = await predictor.predict(
        request, ticket, remaining_s=remaining_s, report=lambda stage: watched.enter(stage.name)
    )
    prediction = answer.prediction
    seconds = {"queued": answer.seconds_queued, **prediction.seconds}
    watched.note_features(prediction.feature_source, seconds)
    label = np.array([prediction.label.encode()], dtype=object)
    probabilities = np.array(list(prediction.probabilities.values()), np.float32)
    return {"label": label, "probabilities": probabilities}, prediction.warnings


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """The outputs of all parts of a request, one below the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


__all__ = ["OPEN_INFERENCE", "OpenInference"]
