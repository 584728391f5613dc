"""What the server's log, metrics and traces learn of a call of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cmamil_sdk.serving.calls import Call
from cmamil_sdk.serving.open_inference import service
from cmamil_sdk.serving.predictor import SlideRequest, Stage


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


def test_a_slide_tells_its_stages_and_where_its_features_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Call("inference.GRPCInferenceService/ModelInfer")
    monkeypatch.setattr(service, "current_call", lambda: watched)
    found = SimpleNamespace(
        label="old",
        probabilities={"old": 1.0},
        warnings=(),
        feature_source="cached",
        seconds={"decode": 0.0, "aggregate": 0.5, "total": 0.7},
    )

    class Predicting:
        async def predict(self, *_: Any, report: Callable[[Stage], None], **__: Any) -> Any:
            report(Stage("aggregating"))
            return SimpleNamespace(prediction=found, seconds_queued=0.2)

    nobody: Any = None
    predictor: Any = Predicting()
    asyncio.run(service._predict(nobody, predictor, nobody, None))
    assert (watched.stage, watched.features) == ("aggregating", "cached")
    assert watched.seconds == {"queued": 0.2, "aggregate": 0.5, "total": 0.7}
