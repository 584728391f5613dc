"""Limits of slides, answers and time, and what happens when a handler fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.errors import DeadlineExceeded, MessageTooLarge, SlideTooLarge, TooManyTiles
from cmamil_sdk.serving import predictions
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import background_server


@contextmanager
def limited(config: ServerConfig, **limits: Any) -> Iterator[Client]:
    settings = config.model_copy(update={"workers": 1, **limits})
    with (
        background_server(settings) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        yield client


def test_too_many_tiles(config: ServerConfig) -> None:
    with limited(config, max_tiles=51) as client:
        with pytest.raises(TooManyTiles, match="has 52 tiles, the limit is 51"):
            client.predict("a.svs")
        assert "52 tiles" in client.inspect("a.svs").warnings[0]


def test_too_many_pixels(config: ServerConfig) -> None:
    refusal = pytest.raises(SlideTooLarge, match="3000000 pixels")
    with limited(config, max_slide_pixels=2_999_999) as client, refusal:
        client.predict("a.svs")


def test_a_long_answer_and_the_default_deadline(config: ServerConfig) -> None:
    with limited(config, max_request_bytes=1600, max_message_bytes=1600) as client:
        assert client.predict("a.svs").label
        with pytest.raises(MessageTooLarge, match="without attention"):
            client.predict("a.svs", attention=True)


def test_a_request_without_deadline_has_the_servers(config: ServerConfig) -> None:
    request = prediction_pb2.PredictSlideRequest(slide=slide_pb2.SlideSource(uri="a.svs"))
    with limited(config, default_deadline_s=0.05) as client:
        with grpc.insecure_channel(client.server) as channel:
            method = channel.unary_unary("/cmamil.v1.SlidePredictionService/PredictSlide")
            with pytest.raises(grpc.RpcError) as caught:
                method(request.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 0.1 s" in caught.value.details()
        assert client.predict("a.svs", timeout_s=30.0).label
    with limited(config, max_deadline_s=0.05) as client, pytest.raises(DeadlineExceeded):
        client.predict("a.svs", timeout_s=30.0)


def test_an_unforeseen_error_is_typed_and_tells_nothing(
    address: str,
    raw_call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(predictions, "prediction_request", fail)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/cmamil.v1.SlidePredictionService/PredictSlide")(b"", timeout=5)
    assert "secret" not in caught.value.details()
    found = raw_call(address, "/cmamil.v1.SlidePredictionService/PredictSlide", b"")
    assert found[:2] == (grpc.StatusCode.INTERNAL, "UNEXPECTED_ERROR")
    assert "a secret of the server" in caplog.text


def test_global_attention_is_bounded(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the bundle's graph held all scores at once, which older ones do."""
    monkeypatch.setattr("cmamil_sdk.bundle.bags.scores_held", lambda _counts, _manifest: 2**20)
    refusal = pytest.raises(TooManyTiles, match="needs 10 MiB, the limit is 9")
    with limited(config, max_attention_mib=9) as client, refusal:
        client.predict("a.svs")


def test_no_slide_name_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    identity = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    with caplog.at_level("DEBUG", logger="cmamil_sdk"):
        client.predict("folder/b c.svs", request_id=identity)
        until = time.monotonic() + 5.0
        while identity not in caplog.text:  # the server writes it after it has answered
            assert time.monotonic() < until
            time.sleep(0.01)
    assert "b c" not in caplog.text
