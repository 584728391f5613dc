"""Who may call what, and how much at a time: an interceptor in front of every method but health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from cmamil_sdk.errors import CmamilError, QueueFull, RoleMissing, TokenInvalid
from cmamil_sdk.wording import counted

from .calls import current_call
from .handlers import Behaviour, wrapped
from .status import status_of
from .tokens import CALLER, Caller, TokenFile

_OPEN = "grpc.health.v1.Health"
_ROLES = {
    "cmamil.v1.SlidePredictionService": ("predict",),
    "cmamil.v1.SlideService": ("predict",),
    "cmamil.v1.ModelService": ("predict", "admin"),
    "cmamil.v1.ModelAdminService": ("admin",),
    "cmamil.v1.ServerService": ("predict", "admin", "metrics"),
    "grpc.reflection.v1alpha.ServerReflection": ("predict", "admin", "metrics"),
    "inference.GRPCInferenceService": ("predict",),
    # Jobs outlive the callers that made them, so that somebody else has to be able to end them.
    "cmamil.v1.SlidePredictionService/GetPredictionJob": ("predict", "admin"),
    "cmamil.v1.SlidePredictionService/ListPredictionJobs": ("predict", "admin"),
    "cmamil.v1.SlidePredictionService/WatchPredictionJob": ("predict", "admin"),
    "cmamil.v1.SlidePredictionService/CancelPredictionJob": ("predict", "admin"),
    "cmamil.v1.SlidePredictionService/DeletePredictionJob": ("predict", "admin"),
}
"""Roles of which a caller needs one; a method's own count before its service's. A service that is not
named here is for administrators."""
_ANYBODY = frozenset({"predict", "metrics"})
_SCHEME = "bearer "

Continuation = Callable[[Any], Awaitable[grpc.RpcMethodHandler | None]]


class Access(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without token, role or free place.

    A client is the name of its token, or its address where there are no tokens: then everybody may
    do everything but administer.
    """

    def __init__(self, tokens: TokenFile | None, max_calls_per_client: int) -> None:
        self._tokens = tokens
        self._max_calls = max_calls_per_client
        self._calls: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """The method's handler, or one that refuses before a message is received."""
        method = handler_call_details.method.strip("/")
        if method.partition("/")[0] == _OPEN:
            return await continuation(handler_call_details)
        caller = None
        try:
            caller = self._caller(handler_call_details.invocation_metadata)
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            _check_role(caller, method)
        except (TokenInvalid, RoleMissing) as problem:
            return _refusing(problem, caller)
        return wrapped(handler, lambda behaviour: self._bounded(behaviour, caller))

    def _caller(self, metadata: Any) -> Caller:
        if self._tokens is None:
            return Caller("", _ANYBODY)
        given = [value for key, value in metadata if key == "authorization"]
        if not given:
            raise TokenInvalid("The server wants a token and the call has none; send one.")
        scheme, token = given[0][: len(_SCHEME)], given[0][len(_SCHEME) :]
        if len(given) == 1 and scheme.lower() == _SCHEME:
            caller = self._tokens.caller(token.strip())
            if caller is not None:
                return caller
        raise TokenInvalid("The server does not know this token; ask its administrator for one.")

    def _bounded(self, behaviour: Behaviour, caller: Caller) -> Behaviour:
        """The same, for at most so many calls of a client at a time."""

        async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
            current_call().client = caller.name
            CALLER.set(caller)
            client = caller.name or context.peer().rpartition(":")[0]
            if self._calls[client] >= self._max_calls:
                calls = counted(self._max_calls, "call")
                problem = QueueFull(f"This client has {calls} at work, its limit; wait for one.")
                await _refuse(problem, context)
            self._calls[client] += 1
            try:
                return await behaviour(request, context)
            finally:
                self._calls[client] -= 1
                if not self._calls[client]:
                    del self._calls[client]  # or each address that ever called would stay

        return handle


def _check_role(caller: Caller, method: str) -> None:
    needed = _ROLES.get(method) or _ROLES.get(method.partition("/")[0], ("admin",))
    if not caller.roles.isdisjoint(needed):
        return
    if not caller.name:
        raise RoleMissing("Only a server with tokens can be administered; start it with some.")
    raise RoleMissing(
        f"This is for callers with the role {' or '.join(needed)}, which {caller.name} does not have; "
        "ask the server's administrator."
    )


def _refusing(problem: CmamilError, caller: Caller | None) -> grpc.RpcMethodHandler:
    """A handler that refuses. It takes a stream, so that gRPC does not wait for a message."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
        if caller is not None:
            current_call().client = caller.name
        await _refuse(problem, context)

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _refuse(problem: CmamilError, context: grpc.aio.ServicerContext) -> None:
    status = status_of(problem)
    await context.abort(status.code, status.message, status.trailers)


__all__ = ["Access"]
