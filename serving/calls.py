"""Every call as the log, the metrics and the trace see it.

An interceptor in front of all others makes a :class:`Call` for each, handlers add what they know through
:func:`current_call`, and when it is over it is shown to everybody who wants to know.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .handlers import Behaviour, wrapped
from .status import DETAILS_KEY

HEALTH = "grpc.health.v1.Health"
# A client gives up at its deadline, which passes here a journey of its message later.
_AT_THE_END_S = 0.25
_OF_FEATURES = ("open", "tissue", "decode", "encode")
_TRACE_HEADERS = ("traceparent", "tracestate")
_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class StageTime:
    """A stage of a call, from when to when, nanoseconds since 1970."""

    name: str
    started_ns: int
    ended_ns: int


@dataclass
class Call:
    """One call. What is not known, or not yet, is empty.

    Attributes:
        rpc: ``SERVICE/METHOD``.
        peer: the caller's address, as gRPC writes it.
        headers: W3C trace context, as it came.
        client: name of the caller's token.
        model: ``NAME/VERSION``.
        request_id, slide: as the client gave them.
        job: name of the prediction job that it is about.
        features: of a prediction: ``computed``, ``cached`` or ``coalesced``; ``remembered`` where the
            answer is one that was given before.
        seconds: of a prediction, by stage, as its answer says; only stages done for this call.
        stages: what was done one after the other.
        answered: the answer is made: who hangs up now has been served.
        code, reason: how it ended: gRPC status, and the leaf of the error tree.
    """

    rpc: str
    peer: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    client: str = ""
    model: str = ""
    request_id: str = ""
    slide: str = ""
    job: str = ""
    features: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    stages: list[StageTime] = field(default_factory=list)
    answered: bool = False
    code: str = ""
    reason: str = ""
    trace_id: str = ""
    started_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0

    def __post_init__(self) -> None:
        self._began_ns = time.perf_counter_ns()
        self._stage = ""
        self._stage_ns = self.started_ns
        if found := _TRACE_ID.fullmatch(self.headers.get("traceparent", "")):
            self.trace_id = found[1]

    @property
    def service(self) -> str:
        """Service of the method."""
        return self.rpc.partition("/")[0]

    @property
    def stage(self) -> str:
        """The stage that it is in, or ended in."""
        return self._stage

    @property
    def took_s(self) -> float:
        """Seconds from beginning to end."""
        return (self.ended_ns - self.started_ns) / 1e9

    def enter(self, stage: str) -> None:
        """Note that the next stage begins, unless it has."""
        if stage != self._stage:
            self._close_stage()
            self._stage, self._stage_ns = stage, self._now_ns()

    def note_features(self, source: str, seconds: Mapping[str, float]) -> None:
        """Note where features came from, and the stages as far as they were done for this call."""
        self.features = source
        self.seconds = dict(seconds)
        if source != "computed":
            for stage in _OF_FEATURES:
                self.seconds.pop(stage, None)

    def end(self, code: str, reason: str = "") -> None:
        """Note how it ended; the first time counts."""
        if not self.code:
            self.code, self.reason = code, reason
            self._close_stage()
            self.ended_ns = self._now_ns()

    def _close_stage(self) -> None:
        if self._stage:
            self.stages.append(StageTime(self._stage, self._stage_ns, self._now_ns()))

    def _now_ns(self) -> int:
        # The wall clock may be set meanwhile; a duration must not feel it.
        return self.started_ns + time.perf_counter_ns() - self._began_ns


ID_CHARACTERS, URI_CHARACTERS = 36, 200
"""Of what a client may write into the log."""

_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call that is being answered here; one that nobody sees where there is none."""
    return _CURRENT.get() or Call("")


def act_for(call: Call) -> None:
    """Let :func:`current_call` be ``call`` in this task: for work that no client waits for."""
    _CURRENT.set(call)


class CallObserver(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Watches every call that has a handler, and shows it to ``watchers`` when it is over."""

    def __init__(self, watchers: Sequence[Callable[[Call], None]]) -> None:
        self._watchers = watchers

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method's handler, watched."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        rpc = handler_call_details.method.lstrip("/")
        metadata = handler_call_details.invocation_metadata
        headers = {key: value for key, value in metadata if key in _TRACE_HEADERS}
        return wrapped(handler, lambda behaviour: self._watched(behaviour, rpc, headers))

    def _watched(self, behaviour: Behaviour, rpc: str, headers: dict[str, str]) -> Behaviour:
        async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
            call = Call(rpc, peer=context.peer(), headers=headers)
            _CURRENT.set(call)
            try:
                answer = await behaviour(request, _Overheard(context, call))
                call.end("OK")
                return answer
            except asyncio.CancelledError:
                call.end(_code_of_cancelled(call, context))
                raise
            except grpc.aio.AbortError as problem:  # overheard
                # gRPC keeps it with the call, and its frames would keep the call: until a collection the
                # connection would count it as open, and soon refuse others.
                problem.__traceback__ = None
                del request, context
                raise
            except Exception:
                call.end("UNKNOWN")
                raise
            finally:
                for watcher in self._watchers:
                    watcher(call)

        return handle


class _Overheard:
    """A context whose ``abort`` is noted: gRPC does not tell afterwards how a call was ended."""

    def __init__(self, context: grpc.aio.ServicerContext, call: Call) -> None:
        self._context, self._call = context, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        self._call.end(code.name, _reason(trailing_metadata))
        await self._context.abort(code, details, trailing_metadata)


def peer_class(peer: str) -> str:
    """What kind of place a peer's address is: ``loopback``, ``private``, ``public`` or ``local``."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "local"
    host = unquote(address).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return "local"
    if found.is_loopback:
        return "loopback"
    return "private" if found.is_private else "public"


def _code_of_cancelled(call: Call, context: grpc.aio.ServicerContext) -> str:
    """gRPC ends a handler in the same way when its client hangs up and when the time is over."""
    if call.answered:
        return "OK"
    left_s = context.time_remaining()
    return "CANCELLED" if left_s is None or left_s > _AT_THE_END_S else "DEADLINE_EXCEEDED"


def _reason(trailers: tuple[tuple[str, bytes], ...]) -> str:
    for key, value in trailers:
        if key == DETAILS_KEY:
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                return ""
            info = error_details_pb2.ErrorInfo()
            return next((str(info.reason) for each in details if each.Unpack(info)), "")
    return ""


__all__ = [
    "HEALTH",
    "ID_CHARACTERS",
    "URI_CHARACTERS",
    "Call",
    "CallObserver",
    "StageTime",
    "act_for",
    "current_call",
    "peer_class",
]
