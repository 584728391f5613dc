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
from .remembered import RememberedAnswers
from .requests import parse, prediction_request, request_id, slide_asked_for
from .streaming import CallContext, Events, with_progress

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
        self._remembered = RememberedAnswers()

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {
            "PredictSlide": Method(self._predict_slide),
            "StreamPredictSlide": Method(self._stream_predict_slide, response_streaming=True),
        }

    async def _predict_slide(self, data: bytes, context: CallContext) -> Message:
        kind = prediction_pb2.PredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes)
        if (given := self._given_before(message)) is not None:
            return given
        identity, request = checked(message, self._models)
        predictor, call = self._predictor(), current_call()
        with (
            self._remembered.request(call.client, message) as known,
            predictor.admission.enter() as ticket,
        ):
            answer = await predictor.predict(
                request,
                ticket,
                remaining_s=context.time_remaining(),
                report=lambda stage: call.enter(stage.name),
            )
            written = await self._written(predictor, answer, request.model, message, identity)
            return known.settle(written)

    async def _stream_predict_slide(self, data: bytes, context: CallContext) -> None:
        kind = prediction_pb2.StreamPredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes).request
        if (given := self._given_before(message)) is not None:
            await self._send_again(given, message.request_id, context)
            return
        identity, request = checked(message, self._models)
        predictor, call = self._predictor(), current_call()
        with (
            # The model from now on: to say that the request is in may take a while.
            request.model.use(),
            self._remembered.request(call.client, message) as known,
            predictor.admission.enter() as ticket,
        ):

            async def predict(
                report: Callable[[Stage], None],
            ) -> prediction_pb2.PredictSlideResponse:
                def enter(stage: Stage) -> None:
                    call.enter(stage.name)  # this one's, though the work be another call's
                    report(stage)

                answer = await predictor.predict(
                    request, ticket, remaining_s=context.time_remaining(), report=enter
                )
                written = await self._written(predictor, answer, request.model, message, identity)
                ticket.release()  # a client that takes its answer slowly keeps no place
                return known.settle(written)

            accepted = prediction_pb2.Accepted(
                queue_position=ticket.position, model=request.model.resource
            )
            async with predictor.deadlines.limit(context.time_remaining()):
                events = Events(prediction_pb2.StreamPredictSlideResponse, context, identity)
                heartbeat_s = self._config.heartbeat_s
                result = await with_progress(predict, events, accepted, heartbeat_s=heartbeat_s)
                await events.write(result=result)

    def _given_before(
        self, message: prediction_pb2.PredictSlideRequest
    ) -> prediction_pb2.PredictSlideResponse | None:
        """The answer that this request had before, whatever became of its slide and its model."""
        call = current_call()
        answer = self._remembered.answer(call.client, message)
        if answer is not None:
            note(message)
            call.model, call.features, call.answered = answer.bundle, "remembered", True
        return answer

    async def _send_again(
        self,
        answer: prediction_pb2.PredictSlideResponse,
        identity: str,
        context: CallContext,
    ) -> None:
        """Give an answer that was given before as a stream, as long as the client has time."""
        async with self._predictor().deadlines.limit(context.time_remaining()):
            events = Events(prediction_pb2.StreamPredictSlideResponse, context, identity)
            await events.write(accepted=prediction_pb2.Accepted(model=answer.model))
            await events.write(result=answer)

    async def _written(
        self,
        predictor: Predictor,
        answer: Answer,
        model: LoadedModel,
        message: prediction_pb2.PredictSlideRequest,
        identity: str,
    ) -> prediction_pb2.PredictSlideResponse:
        limit = self._config.max_message_bytes - _ENVELOPE_BYTES
        written = await written_answer(predictor, answer, model, message, identity, limit)
        current_call().answered = True  # the client may hang up on it, before the call's end
        return written


def checked(
    message: prediction_pb2.PredictSlideRequest, models: ModelTable
) -> tuple[str, SlideRequest]:
    """The id of a prediction request, and what it asks for; both are noted of the current call.

    Errors as :func:`prediction_request`.
    """
    identity = note(message)
    request = prediction_request(message, models)
    current_call().model = request.model.bundle.label
    return identity, request


async def written_answer(
    predictor: Predictor,
    answer: Answer,
    model: LoadedModel,
    message: prediction_pb2.PredictSlideRequest,
    identity: str,
    max_bytes: int,
) -> prediction_pb2.PredictSlideResponse:
    """The answer to a prediction request, made in a thread; its times are noted of the current call.

    Raises:
        MessageTooLarge: longer than ``max_bytes``.
    """
    call = current_call()
    call.enter("answering")
    found = answer.prediction
    call.note_features(found.feature_source, {"queued": answer.seconds_queued, **found.seconds})

    def write() -> prediction_pb2.PredictSlideResponse:
        written = prediction_message(answer, model, identity, attention=message.output.attention)
        size = written.ByteSize()
        if size > max_bytes:
            raise MessageTooLarge(
                f"The answer is {size} bytes long, the limit is {max_bytes}; ask without attention, "
                "or raise the server's max_message_bytes and the client's limit."
            )
        return written

    return await predictor.in_thread(write)


def note(message: prediction_pb2.PredictSlideRequest) -> str:
    """Note of the current call what it is about; returns the request's id, or a new one."""
    call, identity = current_call(), request_id(message)
    call.request_id = identity[:ID_CHARACTERS]
    call.slide = slide_asked_for(message.slide)[:URI_CHARACTERS]
    return identity


__all__ = ["Predictions", "checked", "note", "written_answer"]
