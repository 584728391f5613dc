"""Jobs as messages of ``cmamil.v1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2

from ..convert import progress_message
from .store import JobRow, JobState

if TYPE_CHECKING:
    from ..predictor import Stage

PREFIX = "jobs/"


def job_message(row: JobRow, stage: Stage | None) -> prediction_pb2.PredictionJob:
    """A job; ``stage`` says where it stands if it is at work."""
    message = prediction_pb2.PredictionJob(
        name=f"{PREFIX}{row.id}",
        state=f"STATE_{row.state.name}",
        request=prediction_pb2.PredictSlideRequest.FromString(row.request),
        create_time=_timestamp(row.created_ns),
        start_time=_timestamp(row.started_ns),
        end_time=_timestamp(row.ended_ns),
        expire_time=_timestamp(row.expires_ns),
        fingerprint=row.fingerprint,
        queue_position=row.position,
    )
    if stage is not None and row.state is JobState.RUNNING:
        message.progress.CopyFrom(progress_message(stage))
    if row.error is not None:
        message.error.CopyFrom(status_pb2.Status.FromString(row.error))
    if row.result is not None:
        message.result.CopyFrom(prediction_pb2.PredictSlideResponse.FromString(row.result))
    return message


def _timestamp(ns: int | None) -> Timestamp | None:
    if ns is None:
        return None
    message = Timestamp()
    message.FromNanoseconds(ns)
    return message


__all__ = ["PREFIX", "job_message"]
