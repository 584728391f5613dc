"""ModelAdminService: load and unload models, and choose which version a name means."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import model_pb2
from cmamil_sdk.errors import ServerDraining

from .calls import current_call
from .config import ServerConfig
from .convert import model_message
from .handlers import Method
from .loading import ModelLoader
from .models import LoadedModel, ModelTable
from .predictor import Predictor
from .requests import parse
from .status import FieldProblem, RequestInvalid
from .streaming import CallContext

_MAX_PATH_CHARACTERS = 4096


class Administration:
    """Changes the models of a table, by the loader that ``loader`` returns.

    ``loader`` and ``predictor`` raise :class:`ModelNotReady` while there is none.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: ModelTable,
        loader: Callable[[], ModelLoader],
        predictor: Callable[[], Predictor],
    ) -> None:
        self._config = config
        self._models = models
        self._loader = loader
        self._predictor = predictor

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {
            "LoadModel": Method(self._load_model),
            "UnloadModel": Method(self._unload_model),
            "SetDefaultModelVersion": Method(self._set_default),
        }

    async def _load_model(self, data: bytes, context: CallContext) -> Message:
        asked = parse(model_pb2.LoadModelRequest, data, self._config.max_request_bytes)
        if not 0 < len(asked.bundle) <= _MAX_PATH_CHARACTERS:
            text = f"must be a path of 1 to {_MAX_PATH_CHARACTERS} characters"
            raise RequestInvalid([FieldProblem("bundle", text)])
        loader, predictor = self._loader(), self._predictor()
        if predictor.admission.draining:
            raise ServerDraining("The server is shutting down and loads no models; ask another.")
        async with predictor.deadlines.limit(context.time_remaining()):
            model = await loader.load(asked.bundle)
        return model_pb2.LoadModelResponse(model=self._noted(model))

    async def _unload_model(self, data: bytes, context: CallContext) -> Message:
        asked = parse(model_pb2.UnloadModelRequest, data, self._config.max_request_bytes)
        loader, predictor = self._loader(), self._predictor()
        async with predictor.deadlines.limit(context.time_remaining()):
            await loader.unload(asked.name)
        return model_pb2.UnloadModelResponse()

    async def _set_default(self, data: bytes, _context: CallContext) -> Message:
        kind = model_pb2.SetDefaultModelVersionRequest
        asked = parse(kind, data, self._config.max_request_bytes)
        model = self._models.find_version(asked.name, field="name")
        self._models.set_default(model)
        return model_pb2.SetDefaultModelVersionResponse(model=self._noted(model))

    def _noted(self, model: LoadedModel) -> model_pb2.Model:
        """The model as an answer shows it, noted for those who watch the server's calls."""
        current_call().model = model.bundle.label
        return model_message(self._models.shown(model))


__all__ = ["Administration"]
