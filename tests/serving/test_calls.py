"""What is seen of a call, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from cmamil_sdk.errors import SlideNotFound
from cmamil_sdk.serving.calls import Call, CallObserver, current_call, peer_class
from cmamil_sdk.serving.status import status_of

from .listening import on_a_loop
from .waiting import wait_until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def answer(_request: bytes, _context: Any) -> bytes:
    call = current_call()
    call.enter("planning")
    call.enter("planning")
    call.enter("tiles")
    call.model = "tiny/1"
    return b"answer"


async def refuse(_request: bytes, context: Any) -> bytes:
    current_call().enter("planning")
    status = status_of(SlideNotFound("nowhere"))
    await context.abort(status.code, status.message, status.trailers)
    return b""


async def refuse_barely(_request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.NOT_FOUND)
    return b""


async def fail(_request: bytes, _context: Any) -> bytes:
    raise ZeroDivisionError


async def wait(_request: bytes, context: Any) -> None:
    current_call().enter("tiles")
    await context.write(b"begun")
    await asyncio.sleep(20)


async def wait_answered(_request: bytes, context: Any) -> None:
    current_call().answered = True
    await wait(_request, context)


async def generate(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%s %d" % (request, number)


UNARY = {"Answer": answer, "Refuse": refuse, "RefuseBarely": refuse_barely, "Fail": fail}
STREAM = {"Wait": wait, "WaitAnswered": wait_answered, "Generate": generate}


def serving(calls: list[Call]) -> Any:
    async def start() -> int:
        nonlocal server
        server = grpc.aio.server(interceptors=[CallObserver([calls.append])])
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in UNARY.items()
        } | {name: grpc.unary_stream_rpc_method_handler(method) for name, method in STREAM.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return int(port)

    async def stop() -> None:
        await server.stop(0)

    server: Any = None
    return on_a_loop(start, stop)


def observed(use: Callable[[grpc.Channel], None]) -> list[Call]:
    """The calls that ``use`` makes."""
    calls: list[Call] = []
    with serving(calls) as port:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            use(channel)
        wait_until(lambda: bool(calls), timeout_s=5)
    return calls


def code_of(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    return str(caught.value.code().name)


def test_an_answered_call() -> None:
    metadata = (("traceparent", TRACE), ("tracestate", "a=b"), ("x-other", "no"))
    (call,) = observed(lambda channel: channel.unary_unary("/a.B/Answer")(b"", metadata=metadata))
    assert (call.rpc, call.service, call.code, call.reason) == ("a.B/Answer", "a.B", "OK", "")
    assert call.model == "tiny/1" and call.peer.startswith("ipv4:127.0.0.1:")
    assert call.headers == {"traceparent": TRACE, "tracestate": "a=b"}
    assert call.trace_id == TRACE.split("-")[1]
    assert [stage.name for stage in call.stages] == ["planning", "tiles"]
    planning, tiles = call.stages
    assert call.started_ns <= planning.started_ns <= planning.ended_ns <= tiles.started_ns
    assert tiles.ended_ns <= call.ended_ns and 0 <= call.took_s < 5


@pytest.mark.parametrize(
    ("method", "code", "reason"),
    [
        ("Refuse", "NOT_FOUND", "SLIDE_NOT_FOUND"),
        ("RefuseBarely", "NOT_FOUND", ""),
        ("Fail", "UNKNOWN", ""),
    ],
)
def test_a_call_that_ends_in_a_status(method: str, code: str, reason: str) -> None:
    def use(channel: grpc.Channel) -> None:
        assert code_of(lambda: channel.unary_unary(f"/a.B/{method}")(b"")) == code

    (call,) = observed(use)
    assert (call.code, call.reason) == (code, reason)


@pytest.mark.parametrize(("method", "code"), [("Wait", "CANCELLED"), ("WaitAnswered", "OK")])
def test_a_call_whose_client_hangs_up(method: str, code: str) -> None:
    def use(channel: grpc.Channel) -> None:
        call = channel.unary_stream(f"/a.B/{method}")(b"")
        assert next(call) == b"begun"
        call.cancel()

    (call,) = observed(use)
    assert (call.code, call.stage) == (code, "tiles")


def test_a_call_that_runs_out_of_time() -> None:
    def use(channel: grpc.Channel) -> None:
        assert code_of(channel.unary_stream("/a.B/Wait")(b"", timeout=0.2)) == "DEADLINE_EXCEEDED"

    (call,) = observed(use)
    assert call.code == "DEADLINE_EXCEEDED"


def test_asynchronous_generators_are_watched_too() -> None:
    def use(channel: grpc.Channel) -> None:
        assert list(channel.unary_stream("/a.B/Generate")(b"x")) == [b"x 0", b"x 1", b"x 2"]

    (call,) = observed(use)
    assert call.code == "OK"


def test_unknown_methods_are_grpcs_own_business() -> None:
    def use(channel: grpc.Channel) -> None:
        assert code_of(lambda: channel.unary_unary("/a.B/None")(b"")) == "UNIMPLEMENTED"
        channel.unary_unary("/a.B/Answer")(b"")

    assert [call.rpc for call in observed(use)] == ["a.B/Answer"]


def test_outside_of_a_call_notes_go_nowhere() -> None:
    current_call().model = "tiny/1"
    assert current_call().model == ""


@pytest.mark.parametrize("header", ["", "00-xyz", TRACE.upper(), TRACE + "-more"])
def test_a_malformed_trace_has_no_id(header: str) -> None:
    assert Call("a.B/C", headers={"traceparent": header}).trace_id == ""


@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        ("ipv4:127.0.0.1:4242", "loopback"),
        ("ipv6:%5B::1%5D:4242", "loopback"),
        ("ipv6:[::1]:4242", "loopback"),
        ("ipv4:10.1.2.3:4242", "private"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4242", "private"),
        ("ipv4:8.8.8.8:4242", "public"),
        ("unix:/tmp/socket", "local"),
        ("", "local"),
    ],
)
def test_where_a_caller_is(peer: str, kind: str) -> None:
    assert peer_class(peer) == kind
