"""A request id stands for one request and one answer, for a day and as far as memory goes."""

from __future__ import annotations

import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.errors import RequestIdReused
from cmamil_sdk.serving.remembered import REMEMBERED_S, RememberedAnswers

ID = "7e3e8d2b-0000-4000-8000-000000000001"
OTHER_ID = "7e3e8d2b-0000-4000-8000-000000000002"


def asked(uri: str = "a.svs", request_id: str = ID) -> prediction_pb2.PredictSlideRequest:
    return prediction_pb2.PredictSlideRequest(
        slide=slide_pb2.SlideSource(uri=uri), request_id=request_id
    )


def answered(label: str) -> prediction_pb2.PredictSlideResponse:
    return prediction_pb2.PredictSlideResponse(request_id=ID, label=label)


def test_the_same_request_has_the_first_answer() -> None:
    remembered = RememberedAnswers()
    with remembered.request("", asked()) as known:
        assert known.answer is None
        with remembered.request("", asked()) as twin:  # sent again meanwhile
            twin.settle(answered("first"))
        assert known.settle(answered("second")).label == "first"
    with remembered.request("", asked()) as known:
        assert known.answer == answered("first")


def test_an_answer_is_kept_as_bytes() -> None:
    """A message of many fields takes several times as much memory as the limit counts."""
    remembered = RememberedAnswers()
    with remembered.request("", asked()) as known, remembered.request("", asked()) as twin:
        twin.settle(answered("first"))
    kept = answered("first").SerializeToString()
    assert known.made is None and known.kept == kept
    assert remembered._bytes == known.size_bytes > len(kept)


def test_another_request_is_refused_at_work_and_after() -> None:
    remembered = RememberedAnswers()
    with remembered.request("clinic", asked()) as known:
        with pytest.raises(RequestIdReused), remembered.request("clinic", asked("b.svs")):
            pass
        with remembered.request("other clinic", asked("b.svs")) as theirs:
            assert theirs.answer is None
        known.settle(answered("first"))
    with pytest.raises(RequestIdReused), remembered.request("clinic", asked("b.svs")):
        pass


def test_an_answer_is_found_by_its_request() -> None:
    remembered = RememberedAnswers()
    assert remembered.answer("", asked()) is None
    with remembered.request("", asked()) as known:
        assert remembered.answer("", asked()) is None
        known.settle(answered("first"))
        assert remembered.answer("", asked()) == answered("first")
    assert remembered.answer("", asked(request_id=ID.upper())) == answered("first")
    assert remembered.answer("", asked("b.svs")) is None
    assert remembered.answer("clinic", asked()) is None


def test_an_error_is_not_remembered() -> None:
    remembered = RememberedAnswers()
    with pytest.raises(ValueError, match="failed"), remembered.request("", asked()):
        raise ValueError("failed")
    with remembered.request("", asked("b.svs")) as known:
        assert known.answer is None


def test_without_an_id_nothing_is_remembered() -> None:
    remembered = RememberedAnswers()
    for _ in range(2):
        with remembered.request("", asked(request_id="")) as known:
            assert known.answer is None
            known.settle(answered("x"))


def test_answers_are_forgotten_after_a_day_and_beyond_the_limit() -> None:
    now_s = 0.0
    remembered = RememberedAnswers(max_bytes=1500, now=lambda: now_s)

    def answer_of(request_id: str) -> str:
        with remembered.request("", asked(request_id=request_id)) as known:
            return known.settle(answered("x" * 60 + f"{now_s}")).label[60:]

    assert [answer_of(ID), answer_of(ID)] == ["0.0", "0.0"]
    now_s = REMEMBERED_S - 1
    assert answer_of(ID) == "0.0"
    now_s = REMEMBERED_S + 1
    assert answer_of(ID) == f"{now_s}"
    now_s += 1
    answer_of(OTHER_ID)  # each takes about 1,100 bytes
    now_s += 1
    assert answer_of(ID) == f"{now_s}"
