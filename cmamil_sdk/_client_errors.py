"""A call that failed, as the typed error of the library."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from cmamil_sdk.errors import (
    CertificateRefused,
    CmamilError,
    DeadlineExceeded,
    MessageTooLarge,
    QueueFull,
    ServerUnreachable,
    UnexpectedError,
    error_from_reason,
)

_DOMAIN = "cmamil.dev"
_DETAILS_KEY = "grpc-status-details-bin"
_VERIFY_FAILED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([a-z ]+)")


class Refusal(Exception):
    """A call that failed: the typed error, and whether and when it may be tried again."""

    def __init__(self, error: CmamilError, again: bool, delay_s: float | None) -> None:
        super().__init__(error)
        self.error, self.again, self.delay_s = error, again, delay_s


def refusal_of(problem: Any, server: str, *, secure: bool) -> Refusal:
    """What a :class:`grpc.RpcError` of a call to ``server`` means; ``secure``: over TLS."""
    code, message = problem.code(), problem.details() or ""
    again = code is grpc.StatusCode.UNAVAILABLE
    reason, delay_s = _details(problem)
    if reason:
        return Refusal(error_from_reason(reason, message), again, delay_s)
    error: CmamilError
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            error = _unreachable(message, server, secure)
            again = not isinstance(error, CertificateRefused)
        case grpc.StatusCode.UNIMPLEMENTED:
            error = ServerUnreachable(
                f"What answers at {server} is no cmamil server of this version ({message});"
                " name another address."
            )
        case grpc.StatusCode.CANCELLED:
            # gRPC answers so to what reaches a server while it closes.
            error = ServerUnreachable(
                f"The call to {server} was cut off: the server stopped, or this client was closed; "
                "ask again when it is back."
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            error = DeadlineExceeded(
                f"The server at {server} was not done in time; allow more time."
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "message" in message.lower():
            error = MessageTooLarge(
                f"A message to or from {server} is too long ({message}); ask for less."
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            error = QueueFull(
                f"The server at {server} has as many calls as it takes ({message}); "
                "try again later."
            )
        case _:
            error = UnexpectedError(
                f"The call to {server} ended with {code.name} ({message}); see the server's log."
            )
    return Refusal(error, again, delay_s)


def _unreachable(message: str, server: str, secure: bool) -> CmamilError:
    """Why there is no connection, as far as gRPC's words tell."""
    if found := _VERIFY_FAILED.search(message):
        return CertificateRefused(
            f"The certificate of {server} is not to be trusted ({found[1].strip()}); name the "
            "authority that signed it, or have it renewed."
        )
    if "Hostname Verification Check failed" in message:
        return CertificateRefused(
            f"The certificate of what answers at {server} is for another host; use a name that "
            "stands in it."
        )
    if "WRONG_VERSION_NUMBER" in message:
        return ServerUnreachable(f"What answers at {server} does not speak TLS; ask without.")
    closed = message.startswith("failed to connect") and "Socket closed" in message
    if closed and secure:
        return CertificateRefused(
            f"The server at {server} ended the TLS handshake; it may want a client's certificate, or "
            "another than the one it got."
        )
    if closed:
        return ServerUnreachable(
            f"What answers at {server} ended the connection; it may want TLS: name its authority."
        )
    return ServerUnreachable(
        f"No server answers at {server}; start one with `cmamil serve`, or name another address."
    )


def _details(problem: Any) -> tuple[str, float | None]:
    """Reason and retry delay in the status details that our server adds; ``("", None)`` if none."""
    for key, value in problem.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return _reason_and_delay(status_pb2.Status.FromString(value))
            except DecodeError:
                break  # not ours, then: the code alone has to do
    return "", None


def error_in(status: status_pb2.Status) -> CmamilError:
    """The typed error of a status that our server made."""
    return error_from_reason(_reason_and_delay(status)[0], status.message)


def _reason_and_delay(status: status_pb2.Status) -> tuple[str, float | None]:
    reason, delay_s = "", None
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason = info.reason
        elif detail.Unpack(retry):
            delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    return reason, delay_s


__all__ = ["Refusal", "error_in", "refusal_of"]
