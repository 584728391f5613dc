"""PredictSlide and StreamPredictSlide."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import MessageTooLarge

from .calls import ID_CHARACTERS, URI_CHARACTERS, current_call
from .config import ServerConfig
from .convert import prediction_message
from .handlers import Method
from .models import LoadedModel, ModelTable
from .predictor import Answer, Predictor, SlideRequest, Stage
from .requests import parse, prediction_request, request_id
from .streaming import CallContext, stream_prediction

_ENVELOPE_BYTES = 256  # what a stream adds to a result


class Predictions:
    """Answers with the models of a table, by the predictor that ``predictor`` returns.

    ``predictor`` raises :class:`ModelNotReady` while there is none.
    """

    def __init__(
        self, config: ServerConfig, models: ModelTable, predictor: Callable[[], Predictor]
    ) -> None:
        self._config = config
        self._models = models
        self._predictor = predictor

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {
            "PredictSlide": Method(self._predict_slide),
            "StreamPredictSlide": Method(self._stream_predict_slide, response_streaming=True),
        }

    async def _predict_slide(self, data: bytes, context: CallContext) -> Message:
        kind = prediction_pb2.PredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes)
        identity, request = self._checked(message)
        predictor = self._predictor()
        with predictor.admission.enter() as ticket:
            answer = await predictor.predict(
                request, ticket, remaining_s=context.time_remaining(), report=_entering
            )
            return await self._written(predictor, answer, request.model, message, identity)

    async def _stream_predict_slide(self, data: bytes, context: CallContext) -> None:
        kind = prediction_pb2.StreamPredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes).request
        identity, request = self._checked(message)
        predictor = self._predictor()
        # The model from now on: to say that the request is in may take a while.
        with request.model.use(), predictor.admission.enter() as ticket:

            async def predict(
                report: Callable[[Stage], None],
            ) -> prediction_pb2.PredictSlideResponse:
                def enter(stage: Stage) -> None:
                    _entering(stage)
                    report(stage)

                answer = await predictor.predict(
                    request, ticket, remaining_s=context.time_remaining(), report=enter
                )
                written = await self._written(predictor, answer, request.model, message, identity)
                ticket.release()  # a client that takes its answer slowly keeps no place
                return written

            accepted = prediction_pb2.Accepted(
                queue_position=ticket.position, model=request.model.resource
            )
            async with predictor.deadlines.limit(context.time_remaining()):
                await stream_prediction(
                    predict, context, accepted, identity, heartbeat_s=self._config.heartbeat_s
                )

    def _checked(self, message: prediction_pb2.PredictSlideRequest) -> tuple[str, SlideRequest]:
        """The id of a prediction request, and what it asks for."""
        call, identity = current_call(), request_id(message)
        call.request_id, call.slide = identity[:ID_CHARACTERS], message.slide.uri[:URI_CHARACTERS]
        request = prediction_request(message, self._models)
        call.model = request.model.bundle.label
        return identity, request

    async def _written(
        self,
        predictor: Predictor,
        answer: Answer,
        model: LoadedModel,
        message: prediction_pb2.PredictSlideRequest,
        identity: str,
    ) -> prediction_pb2.PredictSlideResponse:
        """The answer to a prediction request, made in a thread."""
        call = current_call()
        call.enter("answering")
        call.seconds = {"queued": answer.seconds_queued, **answer.prediction.seconds}
        written = await predictor.in_thread(self._answer, answer, model, message, identity)
        call.answered = True  # the client may hang up on the answer, before the call's end
        return written

    def _answer(
        self,
        answer: Answer,
        model: LoadedModel,
        message: prediction_pb2.PredictSlideRequest,
        identity: str,
    ) -> prediction_pb2.PredictSlideResponse:
        """The answer, refused if it is longer than a message may be; runs in a thread."""
        written = prediction_message(answer, model, identity, attention=message.output.attention)
        size, limit = written.ByteSize(), self._config.max_message_bytes - _ENVELOPE_BYTES
        if size > limit:
            raise MessageTooLarge(
                f"The answer is {size} bytes long, the limit is {limit}; ask without attention, or "
                "raise the server's max_message_bytes and the client's limit."
            )
        return written


def _entering(stage: Stage) -> None:
    current_call().enter(stage.name)


__all__ = ["Predictions"]
