"""What the clients ask a server about prediction jobs, and how they read its answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cmamil_sdk._client_calls import OnProgress, Question, Stream, slide_named
from cmamil_sdk._client_errors import error_in
from cmamil_sdk._client_results import prediction_from, progress_from
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import CmamilError, FieldInvalid
from cmamil_sdk.predict import Prediction, ProgressEvent

_SERVICE = "/cmamil.v1.SlidePredictionService"
_STATES = prediction_pb2.PredictionJob.State
_PREFIX = "STATE_"
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True)
class PredictionJob:
    """A prediction that a server keeps.

    Attributes:
        name: ``jobs/UUID``.
        state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``CANCELLED``.
        slide, model, request_id: what it is of, the version that answers, and the id that it has.
        progress: where a job at work stands; None of others.
        queue_position: of a job that waits: how many were created before it and wait, too.
        created, started, ended, expires: in UTC; None as long as it is not so. The server forgets a job
            when it expires.
        prediction: of a job that succeeded, but not in lists.
        error: of a job that failed.
    """

    name: str
    state: str
    slide: str
    model: str
    request_id: str
    progress: ProgressEvent | None
    queue_position: int
    created: datetime
    started: datetime | None
    ended: datetime | None
    expires: datetime | None
    prediction: Prediction | None = None
    error: CmamilError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in _ENDED

    def to_json(self) -> dict[str, Any]:
        """The document that ``cmamil client jobs show --json`` prints."""
        times = ("created", "started", "ended", "expires")
        found, error = self.prediction, self.error
        return (
            vars(self)
            | {name: _iso(getattr(self, name)) for name in times}
            | {
                "progress": self.progress and vars(self.progress),
                "prediction": found and found.to_json(),
                "error": error and {"reason": error.reason, "message": str(error)},
            }
        )


def ask_new_job(request: prediction_pb2.PredictSlideRequest) -> Question[PredictionJob]:
    """A new job."""
    return Question(
        f"{_SERVICE}/CreatePredictionJob",
        prediction_pb2.CreatePredictionJobRequest(request=request),
        prediction_pb2.CreatePredictionJobResponse,
        lambda reply: job_from(reply.job),
    )


def ask_job(name: str) -> Question[PredictionJob]:
    """A job as it stands."""
    return Question(
        f"{_SERVICE}/GetPredictionJob",
        prediction_pb2.GetPredictionJobRequest(name=name),
        prediction_pb2.GetPredictionJobResponse,
        lambda reply: job_from(reply.job),
    )


def ask_jobs(
    state: str | None, token: str
) -> Question[tuple[tuple[PredictionJob, ...], str | None]]:
    """A page of jobs, and the token of the next one; None on the last.

    Raises:
        FieldInvalid: there is no such state.
    """
    return Question(
        f"{_SERVICE}/ListPredictionJobs",
        prediction_pb2.ListPredictionJobsRequest(page_token=token, state=_state(state)),
        prediction_pb2.ListPredictionJobsResponse,
        lambda reply: (tuple(map(job_from, reply.jobs)), reply.next_page_token or None),
    )


def ask_watch(name: str, on_progress: OnProgress | None) -> Stream[PredictionJob]:
    """A job until it has ended."""
    report = on_progress or (lambda _event: None)

    def read(event: prediction_pb2.WatchPredictionJobResponse) -> PredictionJob | None:
        job = job_from(event.job)
        if job.has_ended:
            return job
        report(job.progress or ProgressEvent("queued", 0, 1))
        return None

    return Stream(
        f"{_SERVICE}/WatchPredictionJob",
        prediction_pb2.WatchPredictionJobRequest(name=name),
        prediction_pb2.WatchPredictionJobResponse,
        read,
    )


def ask_cancellation(name: str) -> Question[PredictionJob]:
    """The end of a job."""
    return Question(
        f"{_SERVICE}/CancelPredictionJob",
        prediction_pb2.CancelPredictionJobRequest(name=name),
        prediction_pb2.CancelPredictionJobResponse,
        lambda reply: job_from(reply.job),
    )


def ask_job_deletion(name: str) -> Question[None]:
    """That a job be forgotten."""
    return Question(
        f"{_SERVICE}/DeletePredictionJob",
        prediction_pb2.DeletePredictionJobRequest(name=name),
        prediction_pb2.DeletePredictionJobResponse,
        lambda _reply: None,
    )


def job_from(message: prediction_pb2.PredictionJob) -> PredictionJob:
    """A job."""
    return PredictionJob(
        name=message.name,
        state=_STATES.Name(message.state).removeprefix(_PREFIX),
        slide=slide_named(message.request.slide),
        model=message.request.model,
        request_id=message.request.request_id,
        progress=progress_from(message.progress) if message.HasField("progress") else None,
        queue_position=message.queue_position,
        created=message.create_time.ToDatetime(UTC),
        started=_time(message, "start_time"),
        ended=_time(message, "end_time"),
        expires=_time(message, "expire_time"),
        prediction=prediction_from(message.result) if message.HasField("result") else None,
        error=error_in(message.error) if message.HasField("error") else None,
    )


def _time(message: prediction_pb2.PredictionJob, field: str) -> datetime | None:
    found: Timestamp = getattr(message, field)
    return found.ToDatetime(UTC) if message.HasField(field) else None


def _state(name: str | None) -> str:
    if name is None:
        return "STATE_UNSPECIFIED"
    known = [state.removeprefix(_PREFIX) for state in _STATES.keys()[1:]]
    if name.upper() not in known:
        raise FieldInvalid(f"{name!r} is no state of jobs; name one of {', '.join(known)}.")
    return _PREFIX + name.upper()


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="milliseconds")


__all__ = [
    "PredictionJob",
    "ask_cancellation",
    "ask_job",
    "ask_job_deletion",
    "ask_jobs",
    "ask_new_job",
    "ask_watch",
    "job_from",
]
