"""One line a call, as text and as JSON, without the slide's name."""

from __future__ import annotations

import json
import logging
import sys
import uuid
from typing import Any

import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.errors import ModelNotReady, SlideNotFound
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.logs import Event, JsonLines

from .listening import listening
from .waiting import wait_until

IDENTITY = str(uuid.uuid4())


def record(message: Any, **options: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, "", 0, message, (), None)
    vars(made).update(options)
    return made


def calls(caplog: pytest.LogCaptureFixture, rpc: str, wanted: int = 1) -> list[dict[str, Any]]:
    """What the log says of calls of ``rpc``; the server writes it after it has answered."""

    def found() -> list[logging.LogRecord]:
        return [
            one
            for one in caplog.records
            if isinstance(one.msg, Event) and one.msg.values.get("rpc", "").endswith(f"/{rpc}")
        ]

    wait_until(lambda: len(found()) >= wanted, timeout_s=5)
    assert len(found()) == wanted
    return [{"level": one.levelname, **one.msg.values} for one in found()]


def test_an_event_as_text_leaves_out_what_is_empty() -> None:
    event = Event(
        "call",
        rpc="a.B/C",
        code="OK",
        reason="",
        n=0,
        ok=False,
        none=None,
        at={"x": 0.5},
        q='a "b"',
    )
    assert str(event) == r'call rpc=a.B/C code=OK n=0 ok=False at.x=0.5 q="a \"b\""'
    assert "\n" not in str(Event("call", slide="a\nb"))


def test_a_line_of_json() -> None:
    line = JsonLines().format(record(Event("worker_died", worker=1, at={"x": 0.5}), created=0.5))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "a.b",
        "event": "worker_died",
        "worker": 1,
        "at": {"x": 0.5},
    }


def test_plain_messages_and_tracebacks_are_json_too() -> None:
    try:
        raise ZeroDivisionError("nothing")
    except ZeroDivisionError:
        line = JsonLines().format(record("two\nlines %d", args=(7,), exc_info=sys.exc_info()))
    assert "\n" not in line
    document = json.loads(line)
    assert (document["event"], document["message"]) == ("message", "two\nlines 7")
    assert "ZeroDivisionError: nothing" in document["traceback"]


def test_the_line_of_a_prediction(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cmamil_sdk"):
        prediction = client.predict("folder/b c.svs", request_id=IDENTITY)
        (line,) = calls(caplog, "StreamPredictSlide")
    assert line["code"] == "OK" and line["level"] == "INFO"
    assert (line["model"], line["request_id"]) == ("tiny/1", IDENTITY)
    assert line["peer_class"] == "loopback"
    assert set(line["seconds"]) == {"queued", *prediction.seconds}
    assert line["seconds"]["total"] <= line["duration_s"]
    assert not {"slide", "peer", "client", "reason", "stage"} & set(line)
    assert "b c" not in caplog.text


def test_the_line_of_a_refusal(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cmamil_sdk"):
        with pytest.raises(SlideNotFound):
            client.inspect("absent.svs")
        (line,) = calls(caplog, "InspectSlide")
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "SLIDE_NOT_FOUND")
    assert "absent" not in caplog.text


def test_health_is_quiet(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="cmamil_sdk"):
        assert client.health() == "SERVING"
        (line,) = calls(caplog, "Check")
    assert line["level"] == "DEBUG"


@pytest.mark.usefixtures("one_attempt")
def test_slides_are_named_on_demand(config: ServerConfig, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", logger="cmamil_sdk"),
        listening(config.model_copy(update={"log_slides": True})) as address,
        Client(address) as client,
    ):
        with pytest.raises(ModelNotReady):
            client.predict("a b.svs", request_id=IDENTITY)
        (line,) = calls(caplog, "StreamPredictSlide")
    assert (line["slide"], line["request_id"]) == ("a b.svs", IDENTITY)
    assert line["reason"] == "MODEL_NOT_READY"
