"""The methods of prediction jobs."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import JobsDisabled, ModelNotReady, QueueFull

from ..admission import Ticket
from ..calls import Call, current_call
from ..config import ServerConfig
from ..handlers import Method
from ..logs import job_event
from ..metrics import Metrics
from ..models import ModelTable
from ..predictions import checked, note, written_answer
from ..predictor import Predictor, SlideRequest, Stage
from ..requests import fingerprint_of, parse
from ..status import FieldProblem, RequestInvalid
from ..streaming import CallContext, stream_progress
from ..tokens import CALLER
from .board import Report
from .keeper import JobKeeper
from .messages import PREFIX, job_message
from .store import JobRow, JobState

LOG = logging.getLogger(__name__)

_PAGE, _MAX_PAGE = 50, 200
_MAX_WATCHERS = 32  # half of the calls that the server keeps free for other things than slides
_LOADING_S = 0.5  # between two looks at a model that is loading
_ENVELOPE_BYTES = 1024  # what a job adds to its request and its result
_TOKEN = re.compile(r"[0-9]{1,18}")
_MessageT = TypeVar("_MessageT", bound=Message)


class PredictionJobs:
    """Runs jobs with the models of a table, by the predictor that ``predictor`` returns."""

    def __init__(
        self,
        config: ServerConfig,
        models: ModelTable,
        predictor: Callable[[], Predictor],
        metrics: Metrics,
    ) -> None:
        self._config, self._models, self._predictor = config, models, predictor
        self._metrics = metrics
        self._watchers = 0
        self._opened: JobKeeper | None = None

    def methods(self) -> dict[str, Method]:
        """Each method by its name."""
        return {
            "CreatePredictionJob": Method(self._create),
            "GetPredictionJob": Method(self._get),
            "ListPredictionJobs": Method(self._list),
            "WatchPredictionJob": Method(self._watch, response_streaming=True),
            "CancelPredictionJob": Method(self._cancel),
            "DeletePredictionJob": Method(self._delete),
        }

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """How many jobs wait and run."""
        counts = {} if self._opened is None else self._opened.counts
        states = (JobState.PENDING, JobState.RUNNING)
        return tuple((state.name.lower(), counts.get(state, 0)) for state in states)

    async def open(self) -> None:
        """Open the file of jobs, if the configuration names one.

        Raises:
            ConfigInvalid: it cannot be used.
        """
        if self._config.jobs_file is None:
            return
        keeper = JobKeeper(
            self._config.jobs_file,
            self._predict,
            on_end=self._on_end,
            max_active=self._config.max_active_jobs,
            max_waiting=self._config.max_waiting_jobs,
            keep_s=self._config.keep_jobs_s,
        )
        await keeper.open()
        self._opened = keeper

    def begin(self) -> None:
        """Begin to work on the jobs."""
        if self._opened is not None:
            self._opened.begin(self._predictor().admission)

    async def stop(self) -> None:
        """Stop working: the jobs go on when the server is started again."""
        if self._opened is not None:
            await self._opened.stop()

    async def close(self) -> None:
        """Let go of the file."""
        if self._opened is not None:
            await self._opened.close()

    async def _create(self, data: bytes, _context: CallContext) -> Message:
        message = self._parsed(prediction_pb2.CreatePredictionJobRequest, data).request
        keeper = self._keeper()
        message.DiscardUnknownFields()
        identity, owner, fingerprint = note(message), current_call().client, fingerprint_of(message)
        row = None
        if message.request_id:  # its job stays, though its model may be gone
            row = await keeper.known(owner, identity.lower(), fingerprint)
        if row is None:
            identity, request = checked(message, self._models)
            # A later version of the model must not answer what is asked today.
            message.request_id, message.model = identity, request.model.resource
            text = message.SerializeToString()
            row = await keeper.add(owner, identity.lower(), fingerprint, text)
        current_call().job = f"{PREFIX}{row.id}"
        job = job_message(row, keeper.stage(row.id))
        return prediction_pb2.CreatePredictionJobResponse(job=job)

    async def _get(self, data: bytes, _context: CallContext) -> Message:
        message = self._parsed(prediction_pb2.GetPredictionJobRequest, data)
        job, keeper = _named(message.name), self._keeper()
        row = await keeper.get(job, _owner(), with_result=True)
        return prediction_pb2.GetPredictionJobResponse(job=job_message(row, keeper.stage(job)))

    async def _list(self, data: bytes, _context: CallContext) -> Message:
        message = self._parsed(prediction_pb2.ListPredictionJobsRequest, data)
        state, before = _filter(message)
        keeper = self._keeper()
        size = min(message.page_size or _PAGE, _MAX_PAGE)
        rows = await keeper.page(_owner(), state, before, size + 1)
        return prediction_pb2.ListPredictionJobsResponse(
            jobs=[job_message(row, keeper.stage(row.id)) for row in rows[:size]],
            next_page_token=str(rows[size - 1].number) if len(rows) > size else "",
        )

    async def _watch(self, data: bytes, context: CallContext) -> None:
        message = self._parsed(prediction_pb2.WatchPredictionJobRequest, data)
        job, keeper, owner = _named(message.name), self._keeper(), _owner()
        await keeper.get(job, owner)
        if self._watchers >= _MAX_WATCHERS:
            raise QueueFull(
                f"{self._watchers} calls watch jobs, the server's limit; ask with GetPredictionJob."
            )
        sequence = 0

        async def write(row: JobRow) -> None:
            nonlocal sequence
            event = prediction_pb2.WatchPredictionJobResponse(
                sequence=sequence, job=job_message(row, keeper.stage(job))
            )
            sequence += 1
            await context.write(event.SerializeToString())

        async def write_progress(_: Stage) -> None:
            row = await keeper.get(job, owner)
            if not row.state.ended:  # else it comes at once, with its result
                await write(row)

        self._watchers += 1
        try:
            await stream_progress(
                lambda report: keeper.follow(job, report),
                write_progress,
                heartbeat_s=self._config.heartbeat_s,
            )
            ended = await keeper.get(job, owner, with_result=True)
            current_call().answered = True  # who has read the end of the job may hang up on it
            await write(ended)
        finally:
            self._watchers -= 1

    async def _cancel(self, data: bytes, _context: CallContext) -> Message:
        message = self._parsed(prediction_pb2.CancelPredictionJobRequest, data)
        row = await self._keeper().cancel(_named(message.name), _owner())
        return prediction_pb2.CancelPredictionJobResponse(job=job_message(row, None))

    async def _delete(self, data: bytes, _context: CallContext) -> Message:
        message = self._parsed(prediction_pb2.DeletePredictionJobRequest, data)
        await self._keeper().delete(_named(message.name), _owner())
        return prediction_pb2.DeletePredictionJobResponse()

    def _parsed(self, kind: type[_MessageT], data: bytes) -> _MessageT:
        return parse(kind, data, self._config.max_request_bytes)

    def _keeper(self) -> JobKeeper:
        if self._opened is None:
            raise JobsDisabled(
                "This server keeps no jobs; call PredictSlide, or have its administrator set "
                "jobs_file."
            )
        return self._opened

    async def _once_loaded(
        self, message: prediction_pb2.PredictSlideRequest
    ) -> tuple[str, SlideRequest]:
        """As :func:`checked`; a model that is loading just now is waited for."""
        while True:
            try:
                return checked(message, self._models)
            except ModelNotReady:
                await asyncio.sleep(_LOADING_S)

    async def _predict(self, row: JobRow, ticket: Ticket, report: Report) -> bytes:
        """The result of a job; runs in a task of its own."""
        message = prediction_pb2.PredictSlideRequest.FromString(row.request)
        identity, request = await self._once_loaded(message)
        predictor, call = self._predictor(), current_call()

        def enter(stage: Stage) -> None:
            call.enter(stage.name)  # this one's, though the work be another call's
            report(stage)

        answer = await predictor.predict(
            request, ticket, remaining_s=self._config.max_deadline_s, report=enter
        )
        limit = self._config.max_message_bytes - _ENVELOPE_BYTES - len(row.request)
        written = await written_answer(predictor, answer, request.model, message, identity, limit)
        return await predictor.in_thread(written.SerializeToString)

    def _on_end(self, call: Call, state: JobState) -> None:
        ended = state.name.lower()
        self._metrics.count_job(call, ended)
        LOG.info(job_event(call, ended, slides=self._config.log_slides))


def _named(name: str) -> str:
    """The UUID in a job's name, which is noted of the current call."""
    job = name.removeprefix(PREFIX)
    try:
        if name.startswith(PREFIX) and str(uuid.UUID(job)) == job:
            current_call().job = name
            return job
    except ValueError:
        pass  # said below
    raise RequestInvalid([FieldProblem("name", f"must read {PREFIX}UUID, as the server gave it")])


def _owner() -> str | None:
    """Whose jobs the caller may see; None: everybody's."""
    caller = CALLER.get()
    return None if "admin" in caller.roles else caller.name


def _filter(
    message: prediction_pb2.ListPredictionJobsRequest,
) -> tuple[JobState | None, int | None]:
    """The state and the page that a list is about."""
    problems = []
    if message.page_size < 0:
        problems.append(FieldProblem("page_size", "must not be negative"))
    if message.page_token and not _TOKEN.fullmatch(message.page_token):
        problems.append(FieldProblem("page_token", "must be one that the server gave"))
    if message.state not in (0, *JobState):
        problems.append(FieldProblem("state", "must be a state of jobs"))
    if problems:
        raise RequestInvalid(problems)
    state = JobState(message.state) if message.state else None
    return state, int(message.page_token) if message.page_token else None


__all__ = ["PredictionJobs"]
