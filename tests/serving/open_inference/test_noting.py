"""What the server's log, metrics and traces learn of a call of the protocol."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cmamil_sdk.serving.calls import Call
from cmamil_sdk.serving.open_inference import service
from cmamil_sdk.serving.predictor import SlideRequest


def test_a_call_tells_its_model_its_id_and_its_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Call("inference.GRPCInferenceService/ModelInfer")
    monkeypatch.setattr(service, "current_call", lambda: watched)
    loaded: Any = SimpleNamespace(bundle=SimpleNamespace(label="tiny/1"))
    asked: Any = SimpleNamespace(
        model=SimpleNamespace(loaded=loaded),
        id="x" * 99,
        work=SlideRequest("a" * 999, "", None, loaded),
    )
    service._note(asked)
    assert (watched.model, watched.request_id, watched.slide) == ("tiny/1", "x" * 36, "a" * 200)
    asked.work = ()
    watched.slide = ""
    service._note(asked)
    assert watched.slide == ""
