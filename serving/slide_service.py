"""InspectSlide, UploadSlide and DeleteSlide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import slide_pb2

from .calls import URI_CHARACTERS, current_call
from .config import ServerConfig
from .convert import inspection_message
from .handlers import Method
from .models import ModelTable
from .predictor import Predictor
from .requests import check_slide_id, inspection_request, parse, slide_asked_for
from .status import RequestInvalid
from .streaming import CallContext
from .tokens import CALLER
from .uploads.request import UploadRequest
from .uploads.uploads import Uploads


class SlideService:
    """Looks at slides with the models of a table, by the predictor that ``predictor`` returns.

    ``predictor`` raises :class:`ModelNotReady` while there is none.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: ModelTable,
        predictor: Callable[[], Predictor],
        uploads: Uploads,
    ) -> None:
        self._config = config
        self._models = models
        self._predictor = predictor
        self._uploads = uploads

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {
            "InspectSlide": Method(self._inspect_slide),
            "UploadSlide": Method(self._upload_slide, request_streaming=True),
            "DeleteSlide": Method(self._delete_slide),
        }

    async def _inspect_slide(self, data: bytes, context: CallContext) -> Message:
        message = parse(slide_pb2.InspectSlideRequest, data, self._config.max_request_bytes)
        call = current_call()
        call.slide = slide_asked_for(message.slide)[:URI_CHARACTERS]
        request = inspection_request(message, self._models)
        call.model = request.model.bundle.label
        predictor = self._predictor()
        with predictor.admission.enter() as ticket:
            found = await predictor.inspect(request, ticket, remaining_s=context.time_remaining())
        return inspection_message(found)

    async def _upload_slide(self, messages: AsyncIterator[bytes], context: CallContext) -> Message:
        request = UploadRequest(aiter(messages), self._config.upload_idle_s)
        async with self._uploads.deadlines.limit(context.time_remaining()):
            upload = await request.metadata()
            current_call().slide = upload.filename
            receipt = await self._uploads.receive(upload, request.chunks(), CALLER.get().name)
        answer = slide_pb2.UploadSlideResponse(slide_id=receipt.slide_id)
        answer.expire_time.FromNanoseconds(round(receipt.expires_s * 1e9))
        return answer

    async def _delete_slide(self, data: bytes, _context: CallContext) -> Message:
        message = parse(slide_pb2.DeleteSlideRequest, data, self._config.max_request_bytes)
        current_call().slide = message.slide_id[:URI_CHARACTERS]
        if problems := check_slide_id(message.slide_id, "slide_id"):
            raise RequestInvalid(problems)
        await self._uploads.delete(message.slide_id, CALLER.get())
        return slide_pb2.DeleteSlideResponse()


__all__ = ["SlideService"]
