"""A client that does not take its answer keeps no place, and not beyond its deadline."""

from __future__ import annotations

import asyncio
import time

import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.errors import DeadlineExceeded
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server

DEADLINE_S = 8.0


class StuckContext:
    """Takes every event but the result."""

    def __init__(self) -> None:
        self.stuck = asyncio.Event()
        self._until_s = time.monotonic() + DEADLINE_S

    def time_remaining(self) -> float:
        return max(0.0, self._until_s - time.monotonic())

    async def write(self, message: bytes) -> None:
        event = prediction_pb2.StreamPredictSlideResponse.FromString(message)
        if event.WhichOneof("event") == "result":
            self.stuck.set()
            await asyncio.Event().wait()


def test_a_client_that_does_not_read_gives_its_place_up(config: ServerConfig) -> None:
    slide = slide_pb2.SlideSource(uri="a.svs")
    request = prediction_pb2.StreamPredictSlideRequest(
        request=prediction_pb2.PredictSlideRequest(slide=slide)
    )

    async def scenario() -> None:
        async with Server(config.model_copy(update={"workers": 1})) as server:
            services, context = server._services, StuckContext()
            call = asyncio.create_task(
                services._predictions._stream_predict_slide(request.SerializeToString(), context)
            )
            stuck = asyncio.create_task(context.stuck.wait())
            await asyncio.wait((call, stuck), return_when=asyncio.FIRST_COMPLETED)
            assert stuck.done(), call.exception()
            assert services.predictor is not None
            assert services.predictor.admission.active == 0
            with pytest.raises(DeadlineExceeded):
                await call

    asyncio.run(scenario())
