"""Every error as a gRPC status with ``google.rpc.ErrorInfo``: one leaf, one status, one reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from cmamil_sdk.errors import (
    CmamilError,
    FieldInvalid,
    JobsUnavailable,
    ModelNotReady,
    QueueFull,
    ServerDraining,
)

DOMAIN = "cmamil.dev"
DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_CHARACTERS = 1000  # HTTP/2 trailers are limited to 8 KiB in all
_FIELDS_BYTES = 2500  # of the wrong fields that are named in them
_FIELD_CHARACTERS = 600  # of the path of one, and of what is wrong with it
_BESIDE_BYTES = 8  # of one, beside those
_RETRY_AFTER_S: dict[type[CmamilError], float] = {
    JobsUnavailable: 5.0,
    ModelNotReady: 1.0,
    QueueFull: 2.0,
    ServerDraining: 1.0,
}


@dataclass(frozen=True)
class FieldProblem:
    """One wrong field of a request: its path, such as ``slide.uri``, and what is wrong."""

    field: str
    problem: str


class RequestInvalid(Exception):
    """A request with wrong fields; becomes :class:`FieldInvalid` with each of them named.

    Of very many only the first, as far as they go into the trailers of an answer.
    """

    def __init__(self, problems: list[FieldProblem]) -> None:
        named = _first(problems)
        super().__init__("; ".join(f"{p.field}: {p.problem}" for p in named))
        self.problems = named


@dataclass(frozen=True)
class GrpcStatus:
    """What a handler ends with: code, sentence, and the trailers that hold the details."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def status_of(
    error: CmamilError | RequestInvalid, *, retry_after_s: float | None = None
) -> GrpcStatus:
    """The status of an error; ``retry_after_s`` replaces the usual delay where one is sent."""
    problems: list[FieldProblem] = []
    if isinstance(error, RequestInvalid):
        problems = error.problems
        error = FieldInvalid(f"The request is wrong: {error}.")
    code = grpc.StatusCode[error.grpc_status]
    message = str(error)[:_MESSAGE_CHARACTERS]
    details = status_pb2.Status(code=code.value[0], message=message)
    details.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if problems:
        details.details.add().Pack(_bad_request(problems))
    usual = _RETRY_AFTER_S.get(type(error))
    if usual is not None:
        retry = error_details_pb2.RetryInfo(retry_delay=_duration(retry_after_s or usual))
        details.details.add().Pack(retry)
    return GrpcStatus(code, message, ((DETAILS_KEY, details.SerializeToString()),))


def _first(problems: Sequence[FieldProblem]) -> list[FieldProblem]:
    """The first, of a limited length together; one at least."""
    named: list[FieldProblem] = []
    room = _FIELDS_BYTES
    for each in problems:
        cut = FieldProblem(each.field[:_FIELD_CHARACTERS], each.problem[:_FIELD_CHARACTERS])
        room -= len(f"{cut.field}{cut.problem}".encode(errors="replace")) + _BESIDE_BYTES
        if named and room < 0:
            break
        named.append(cut)
    return named


def _bad_request(problems: list[FieldProblem]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for problem in problems:
        bad.field_violations.add(field=problem.field, description=problem.problem)
    return bad


def _duration(seconds: float) -> Duration:
    return Duration(seconds=math.ceil(seconds))


__all__ = ["DETAILS_KEY", "DOMAIN", "FieldProblem", "GrpcStatus", "RequestInvalid", "status_of"]
