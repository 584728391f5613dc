"""gRPC method handlers of all four kinds, with something of ours around them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


@dataclass(frozen=True)
class Method:
    """A method of a service.

    Attributes:
        behaviour: takes the bytes of a request, or an asynchronous iterator of them, and a context;
            returns its answer, or None of one that writes a stream of them.
        request_streaming, response_streaming: which side is a stream.
    """

    behaviour: Callable[[Any, Any], Awaitable[Any]]
    request_streaming: bool = False
    response_streaming: bool = False

    def handler(self, behaviour: Behaviour) -> grpc.RpcMethodHandler:
        """The handler of its kind that does ``behaviour``: its own with something around it."""
        _, build = _KINDS[self.request_streaming, self.response_streaming]
        return build(behaviour)


def wrapped(
    handler: grpc.RpcMethodHandler, around: Callable[[Behaviour], Behaviour]
) -> grpc.RpcMethodHandler:
    """The same handler, its behaviour put through ``around``, which returns a coroutine function.

    The behaviour is a coroutine function already, or an asynchronous generator of answers.
    """
    name, build = _KINDS[handler.request_streaming, handler.response_streaming]
    behaviour = getattr(handler, name)
    if inspect.isasyncgenfunction(behaviour):
        behaviour = _writing(behaviour)
    return build(around(behaviour), handler.request_deserializer, handler.response_serializer)


def _writing(behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Behaviour:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> None:
        async for message in behaviour(request, context):
            await context.write(message)

    return handle


__all__ = ["Behaviour", "Method", "wrapped"]
