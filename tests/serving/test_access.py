"""Tokens, roles, and how many calls one client may have at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cmamil_sdk.client import Client
from cmamil_sdk.errors import (
    ConfigInvalid,
    FieldInvalid,
    ModelNotReady,
    RoleMissing,
    TokenInvalid,
)
from cmamil_sdk.serving import tokens as tokens_module
from cmamil_sdk.serving.access import Access
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.tokens import TokenFile

from .listening import listening, on_a_loop
from .waiting import wait_until

PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"
STREAM = "/cmamil.v1.SlidePredictionService/StreamPredictSlide"
INSPECT = "/cmamil.v1.SlideService/InspectSlide"
MODELS = "/cmamil.v1.ModelService/ListModels"
INFO = "/cmamil.v1.ServerService/GetServerInfo"
INFER = "/inference.GRPCInferenceService/ModelInfer"
ADMINISTER = "/cmamil.v1.ModelAdminService/LoadModel"


def line(name: str, roles: str, token: str) -> str:
    return f"{name} {roles} {hashlib.sha256(token.encode()).hexdigest()}\n"


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [
        "# who may call\n\n",
        line("clinic", "predict", "clinic-token"),
        line("grafana", "metrics", "grafana-token"),
        line("root", "admin", "root-token"),
        line("both", "predict,metrics", "both-token").replace("\n", "  # two roles\n"),
    ]
    return write(tmp_path_factory.mktemp("tokens") / "tokens.txt", "".join(lines))


@pytest.fixture(scope="module")
def address(config: ServerConfig, token_file: Path) -> Iterator[str]:
    with listening(config.model_copy(update={"tokens": token_file})) as address:
        yield address


def ask(
    address: str, method: str, *metadata: tuple[str, str], data: bytes = b""
) -> tuple[str, str]:
    """Status and reason of a call."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(data, timeout=10, metadata=metadata)
        except grpc.RpcError as problem:
            return problem.code().name, _reason(problem)
    return "OK", ""


def _reason(problem: Any) -> str:
    status = rpc_status.from_call(problem)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == "cmamil.dev"
            return str(info.reason)
    return ""


NOBODY = ("UNAUTHENTICATED", "TOKEN_INVALID")


@pytest.mark.parametrize(
    "method", [PREDICT, STREAM, INSPECT, MODELS, INFO, INFER, ADMINISTER, "/a.B/C"]
)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer clinic-toke"),),
        (("authorization", "Bearer clinic-token2"),),
        (("authorization", "clinic-token"),),
        (("authorization", "Basic clinic-token"),),
        (("x-authorization", "Bearer clinic-token"),),
        (("authorization", "Bearer wrong"), ("authorization", "Bearer clinic-token")),
        (("authorization", "Bearer clinic-token"), ("authorization", "Bearer wrong")),
    ],
    ids=str,
)
def test_without_a_token_nothing_is_answered(
    address: str, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert ask(address, method, *metadata) == NOBODY


def test_the_hash_is_not_the_token(address: str, token_file: Path) -> None:
    for entry in token_file.read_text().splitlines()[2:]:
        assert ask(address, INFO, ("authorization", f"Bearer {entry.split()[2]}")) == NOBODY


NOT_READY = ("UNAVAILABLE", "MODEL_NOT_READY")  # past the gate: this server has no models
NOT_FOR_YOU = ("PERMISSION_DENIED", "ROLE_MISSING")
INVALID = ("INVALID_ARGUMENT", "FIELD_INVALID")


@pytest.mark.parametrize(
    ("who", "method", "expected"),
    [
        ("clinic", PREDICT, INVALID),
        ("clinic", INSPECT, INVALID),
        ("clinic", MODELS, NOT_READY),
        ("clinic", INFER, INVALID),
        ("grafana", INFER, NOT_FOR_YOU),
        ("root", INFER, NOT_FOR_YOU),
        ("clinic", INFO, ("OK", "")),
        ("clinic", ADMINISTER, NOT_FOR_YOU),
        ("grafana", ADMINISTER, NOT_FOR_YOU),
        ("root", ADMINISTER, INVALID),
        ("clinic", "/a.B/C", ("UNIMPLEMENTED", "")),
        ("grafana", PREDICT, NOT_FOR_YOU),
        ("grafana", STREAM, NOT_FOR_YOU),
        ("grafana", INSPECT, NOT_FOR_YOU),
        ("grafana", MODELS, NOT_FOR_YOU),
        ("grafana", INFO, ("OK", "")),
        ("root", PREDICT, NOT_FOR_YOU),
        ("root", INSPECT, NOT_FOR_YOU),
        ("root", MODELS, NOT_READY),
        ("root", INFO, ("OK", "")),
        ("both", PREDICT, INVALID),
        ("both", INFO, ("OK", "")),
    ],
)
def test_roles(address: str, who: str, method: str, expected: tuple[str, str]) -> None:
    assert ask(address, method, ("authorization", f"bearer {who}-token")) == expected


def test_a_refusal_does_not_wait_for_the_message(address: str) -> None:
    answered = threading.Event()

    def nothing() -> Iterator[bytes]:
        answered.wait(10)
        yield from ()

    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(PREDICT)(nothing(), timeout=5)
        answered.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_health_is_open(address: str) -> None:
    with Client(address) as client:
        assert client.health() == "NOT_SERVING"


@pytest.mark.usefixtures("one_attempt")
def test_the_client_sends_its_token_with_every_call(address: str) -> None:
    with Client(address, token="clinic-token") as client:
        assert client.server_info().version
        for call in (lambda: client.predict("a.svs"), lambda: client.inspect("a.svs")):
            with pytest.raises(ModelNotReady):
                call()
    with Client(address) as client, pytest.raises(TokenInvalid, match="has none"):
        client.predict("a.svs")
    with (
        Client(address, token="grafana-token") as client,
        pytest.raises(RoleMissing, match="role predict, which grafana does not have"),
    ):
        client.predict("a.svs")


@pytest.mark.parametrize("token", ["", "two words", "line\n", "umläut", "x" * 5000])
def test_a_token_that_cannot_be_one(token: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        Client(token=token)
    assert not token or token not in str(caught.value)


def test_a_token_never_travels_in_the_clear() -> None:
    for server in ("10.0.0.7:50051", "example.org:50051", "127.0.0.1.example.org:50051"):
        with pytest.raises(FieldInvalid, match="in the clear"):
            Client(server, token="clinic-token")
    Client("example.org:50051", token="clinic-token", tls=True).close()
    Client("[::1]:50051", token="clinic-token").close()


def test_a_token_stands_in_no_log(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for token in ("clinic-token", "a-secret-of-another-server"):
        ask(address, PREDICT, ("authorization", f"Bearer {token}"))
    wait_until(lambda: caplog.text.count("reason=TOKEN_INVALID") == 1)  # after the answer
    assert " peer=ipv4:127.0.0.1:" in caplog.text and " client=clinic " in caplog.text
    assert "clinic-token" not in caplog.text and "a-secret" not in caplog.text


def test_headers_beyond_the_limit_are_refused_and_the_server_goes_on(address: str) -> None:
    for size in (9_000, 100_000):
        code, _ = ask(address, INFO, ("authorization", "Bearer " + "x" * size))
        assert code == "RESOURCE_EXHAUSTED"
    assert ask(address, INFO, ("authorization", "Bearer clinic-token")) == ("OK", "")


def test_without_tokens_everybody_may_predict_and_nobody_administers(config: ServerConfig) -> None:
    with listening(config) as address:
        assert ask(address, MODELS) == NOT_READY
        assert ask(address, INFO) == ("OK", "")
        assert ask(address, ADMINISTER) == NOT_FOR_YOU
        assert ask(address, MODELS, ("authorization", "Bearer anything")) == NOT_READY


def answering(tokens: TokenFile | None, **methods: Any) -> Any:
    """A server of the administrators' service and of predictions, behind ``Access``."""

    async def start() -> int:
        nonlocal server
        server = grpc.aio.server(interceptors=[Access(tokens, 2)])
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        for service in ("ModelAdminService", "SlidePredictionService"):
            generic = grpc.method_handlers_generic_handler(f"cmamil.v1.{service}", handlers)
            server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return int(port)

    async def stop() -> None:
        await server.stop(0)

    server: Any = None
    return on_a_loop(start, stop)


def test_a_service_that_has_no_rule_is_for_administrators(token_file: Path) -> None:
    async def load(_data: bytes, _context: Any) -> bytes:
        return b""

    with answering(None, LoadModel=load) as port:
        assert ask(f"127.0.0.1:{port}", ADMINISTER) == NOT_FOR_YOU
    with answering(TokenFile(token_file), LoadModel=load) as port:
        for who, expected in (("both", NOT_FOR_YOU), ("root", ("OK", ""))):
            token = ("authorization", f"Bearer {who}-token")
            assert ask(f"127.0.0.1:{port}", ADMINISTER, token) == expected


def test_one_client_has_so_many_calls_at_a_time(token_file: Path) -> None:
    waiting: list[asyncio.Event] = []

    async def predict(data: bytes, _context: Any) -> bytes:
        if data == b"quick":
            return b""
        waiting.append(asyncio.Event())
        await waiting[-1].wait()
        return b""

    def call(channel: grpc.Channel, who: str, data: bytes = b"") -> Any:
        metadata = (("authorization", f"Bearer {who}-token"),)
        return channel.unary_unary(PREDICT).future(data, timeout=10, metadata=metadata)

    with (
        answering(TokenFile(token_file), PredictSlide=predict) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        grpc.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
        ) as second,
    ):
        held = [call(channel, "clinic"), call(second, "clinic")]
        while len(waiting) < 2:
            assert not any(one.done() for one in held)
        for each in (channel, second):  # a name counts over all its connections
            refused = call(each, "clinic").exception()
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert _reason(refused) == "QUEUE_FULL" and "its limit" in refused.details()
        assert call(channel, "both", b"quick").result() == b""
        held[0].cancel()
        while (again := call(channel, "clinic", b"quick")).exception() is not None:
            pass  # until the server has noticed
        assert again.result() == b""
        held[1].cancel()


def test_without_tokens_an_address_is_a_client() -> None:
    held: list[asyncio.Event] = []

    async def predict(_data: bytes, context: Any) -> bytes:
        held.append(asyncio.Event())
        await held[-1].wait()
        return b""

    with answering(None, PredictSlide=predict) as port, ThreadPoolExecutor(2) as threads:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            calls = [channel.unary_unary(PREDICT).future(b"", timeout=10) for _ in range(2)]
            while len(held) < 2:
                assert not any(one.done() for one in calls)
            refused = threads.submit(ask, address, PREDICT)
            assert refused.result() == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            for one in calls:
                one.cancel()


@pytest.mark.usefixtures("one_attempt")
def test_a_place_is_given_back_after_each_call(config: ServerConfig) -> None:
    with (
        listening(config.model_copy(update={"max_calls_per_client": 1})) as address,
        Client(address) as client,
    ):
        for _ in range(3):
            assert client.server_info().version
            with pytest.raises(ModelNotReady):
                client.predict("a.svs")


GOOD = line("clinic", "predict", "clinic-token")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token"),
        ("# nobody\n", "holds no token"),
        ("clinic predict\n", "line 1: not NAME"),
        ("clinic predict secret-in-the-clear\n", "line 1: not NAME"),
        (GOOD + "x predict " + "A" * 64, "line 2: not NAME"),
        ("clinic predict x " + "0" * 64, "line 1: not NAME"),
        (line("clinic", "predict,owner", "t"), "roles are predict, admin, metrics"),
        (line("clinic", "", "t"), "not NAME"),
        (line("clinic", "predict,", "t"), "roles are"),
        (line("a:b", "predict", "t"), "the name must be"),
        (GOOD + line("clinic", "admin", "other"), "line 2: this name or token is there already"),
        (GOOD + line("other", "admin", "clinic-token"), "there already"),
        ("clinic predict ümlaut", "plain ASCII"),
    ],
)
def test_a_token_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said) as caught:
        TokenFile(write(tmp_path / "tokens.txt", text))
    assert "secret-in-the-clear" not in str(caught.value)


def test_a_token_file_that_others_may_touch(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.txt", GOOD)
    for mode, fine in ((0o600, 1), (0o640, 1), (0o644, 0), (0o660, 0), (0o602, 0)):
        path.chmod(mode)
        if fine:
            assert TokenFile(path).caller("clinic-token")
        else:
            with pytest.raises(ConfigInvalid, match="chmod 640"):
                TokenFile(path)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        TokenFile(tmp_path / "absent.txt")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_token_file_of_another_user(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.txt", GOOD)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigInvalid, match="another user"):
        TokenFile(path)


def test_a_changed_file_counts_and_a_spoilt_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens_module, "_LOOK_EVERY_S", 0.0)
    path = write(tmp_path / "tokens.txt", GOOD)
    known = TokenFile(path)

    def may(*tokens: str) -> list[bool]:
        return [known.caller(token) is not None for token in tokens]

    replace(path, GOOD + line("second", "admin", "second-token"))
    assert may("clinic-token", "second-token") == [True, True]
    replace(path, "half a li")
    assert may("clinic-token", "second-token") == [True, True]
    assert "the tokens stay as they were" in caplog.text
    path.unlink()
    assert may("clinic-token") == [True]
    replace(path, line("second", "admin", "second-token"))
    assert may("clinic-token", "second-token") == [False, True]


def replace(path: Path, text: str) -> None:
    write(path.with_suffix(".new"), text).replace(path)


def test_looking_at_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tokens.txt", GOOD)
    known = TokenFile(path)
    looks: list[int] = []
    mark: Callable[[], Any] = known._mark
    monkeypatch.setattr(known, "_mark", lambda: (looks.append(1), mark())[1])
    for _ in range(100):
        known.caller("clinic-token")
    assert len(looks) <= 1
