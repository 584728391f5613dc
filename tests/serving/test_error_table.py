"""The page's table of errors, row by row: through the wire, every error is what its row says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.errors import CmamilError, leaf_errors
from cmamil_sdk.serving import paths
from cmamil_sdk.serving.admission import Admission, Deadlines, Pace
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server
from cmamil_sdk.serving.status import FieldProblem, RequestInvalid

from .listening import listening_server

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "serving.md").read_text("utf-8")
PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"
REQUEST = prediction_pb2.PredictSlideRequest(
    slide=slide_pb2.SlideSource(uri="a.svs")
).SerializeToString()

# Where the cause of each row is brought about for real.
CAUSES = {
    "FIELD_INVALID": "test_errors.py::test_wrong_fields_are_named",
    "MESSAGE_TOO_LARGE": "test_limits.py::test_a_long_answer_and_the_default_deadline",
    "SLIDE_URI_FORBIDDEN": "test_errors.py::test_rows_of_the_table",
    "SLIDE_NOT_FOUND": "test_errors.py::test_rows_of_the_table",
    "SLIDE_UNREADABLE": "test_error_table.py::test_a_slide_that_the_system_does_not_give",
    "SLIDE_HASH_MISMATCH": "test_errors.py::test_rows_of_the_table",
    "UPLOAD_INCOMPLETE": "test_uploads.py::test_a_wrong_upload_is_refused_and_leaves_nothing",
    "UPLOADS_DISABLED": "test_uploads.py::test_a_server_without_a_folder_says_how_to_turn_it_on",
    "UPLOADS_FULL": "test_uploads.py::test_a_full_disk",
    "SLIDE_FORMAT_UNSUPPORTED": "test_errors.py::test_rows_of_the_table",
    "SLIDE_CORRUPT": "test_errors.py::test_rows_of_the_table",
    "SLIDE_TOO_LARGE": "test_limits.py::test_too_many_pixels",
    "TOO_MANY_TILES": "test_limits.py::test_too_many_tiles",
    "MPP_UNKNOWN": "test_errors.py::test_rows_of_the_table",
    "MPP_UNUSABLE": "test_errors.py::test_rows_of_the_table",
    "NO_TISSUE": "test_errors.py::test_rows_of_the_table",
    "TOKEN_INVALID": "test_access.py::test_without_a_token_nothing_is_answered",
    "ROLE_MISSING": "test_access.py::test_roles",
    "QUEUE_FULL": "test_faults.py::test_overload_is_refused_at_once",
    "MODEL_NOT_FOUND": "test_errors.py::test_rows_of_the_table",
    "MODEL_NOT_READY": "test_server.py::test_health_is_not_serving_until_the_models_are_there",
    "BUNDLE_PATH_FORBIDDEN": "test_administration.py::test_what_is_not_loaded",
    "BUNDLE_NOT_FOUND": "test_administration.py::test_what_is_not_loaded",
    "BUNDLE_CORRUPT": "test_administration.py::test_what_is_not_loaded",
    "BUNDLE_UNSUPPORTED": "test_administration.py::test_what_is_not_loaded",
    "PARITY_FAILED": "test_administration.py::test_what_is_not_loaded",
    "SELF_TEST_FAILED": (
        "test_administration.py::test_a_model_that_fails_its_golden_test_leaves_the_others"
    ),
    "ENGINE_MISSING": (
        "test_worker_models.py::test_a_worker_held_to_its_memory_takes_no_model_for_a_gpu"
    ),
    "MODEL_EXISTS": (
        "test_administration.py::"
        "test_the_same_bundle_is_loaded_once_and_another_of_its_version_refused"
    ),
    "MODEL_NEEDED": "test_administration.py::test_what_cannot_be_unloaded",
    "SERVER_DRAINING": "test_server.py::test_sigterm_drains",
    "DEADLINE_EXCEEDED": "test_limits.py::test_a_request_without_deadline_has_the_servers",
    "DEADLINE_TOO_SHORT": "test_error_table.py::test_a_deadline_that_no_slide_was_done_in",
    "READER_MISSING": "test_on_device.py::test_without_a_gpu_the_client_learns_what_is_missing",
    "GPU_OUT_OF_MEMORY": "open_inference/test_running.py::test_what_goes_wrong_is_typed",
    "DECODER_CRASHED": "test_faults.py::test_a_slide_that_ends_its_workers_fails_alone",
    "NON_FINITE_OUTPUT": "test_error_table.py::test_an_output_that_is_no_number",
    "REQUEST_TOO_LARGE": "open_inference/test_refusals.py::test_more_tiles_than_a_call_may_hold",
    "REQUEST_ID_REUSED": "test_feature_cache.py::test_a_request_id_is_one_request",
    "REQUEST_UNSUPPORTED": (
        "open_inference/test_refusals.py::test_what_triton_does_and_this_server_does_not"
    ),
    "JOB_NOT_FOUND": "test_jobs.py::test_unknown_jobs_are_not_found",
    "JOB_FINISHED": "test_jobs.py::test_a_job_may_fail",
    "JOBS_DISABLED": "test_jobs.py::test_without_a_file_there_are_no_jobs",
    "JOBS_UNAVAILABLE": "test_job_store.py::test_a_full_disk_is_typed_and_loses_nothing",
    "MEMORY_TOO_SMALL": "open_inference/test_running.py::test_what_goes_wrong_is_typed",
    "UNEXPECTED_ERROR": "test_limits.py::test_an_unforeseen_error_is_typed_and_tells_nothing",
}


def rows() -> list[tuple[str, str, str]]:
    """``(reason, status, also)`` of each line of the table."""
    table = PAGE.partition("\n## Errors\n")[2].partition("\n\nUNAVAILABLE means")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and re.fullmatch(r"[A-Z_]+", cells[1]):
            found += [(reason, cells[1], cells[3]) for reason in cells[2].split("; ")]
    return found


def test_every_row_has_a_test_that_brings_it_about() -> None:
    assert {reason for reason, _, _ in rows()} == set(CAUSES)
    for reason, test in CAUSES.items():
        file, _, name = test.partition("::")
        text = (HERE / file).read_text("utf-8")
        assert f"def {name}(" in text, test
        leaf = leaf_errors()[reason].__name__
        assert reason in text or leaf in text, f"{test} does not ask for {reason}"


def error_of(reason: str, also: str) -> CmamilError | RequestInvalid:
    if "BadRequest" in also:
        return RequestInvalid([FieldProblem("slide.uri", "must name a slide")])
    return leaf_errors()[reason]("what, where, how")


@pytest.fixture(scope="module")
def failing(config: ServerConfig) -> Iterator[Server]:
    """A server whose predictor raises what ``raised`` holds."""

    async def predict(*_: Any, **__: Any) -> None:
        raise server._services.raised  # type: ignore[attr-defined]

    model: Any = SimpleNamespace(
        resource="models/tiny/versions/1",
        bundle=SimpleNamespace(label="tiny/1", manifest=SimpleNamespace(name="tiny", version="1")),
    )
    predictor: Any = SimpleNamespace(
        predict=predict, admission=Admission(1, 1), deadlines=Deadlines(9, 9), close=lambda: None
    )
    with listening_server(config) as server:
        server._services.models.fill([model])
        server._services.predictor = predictor
        yield server


@pytest.mark.parametrize(("reason", "status", "also"), sorted(set(rows())), ids=str)
def test_an_error_is_what_its_row_says(
    failing: Server, raw_call: Callable[..., Any], reason: str, status: str, also: str
) -> None:
    failing._services.raised = error_of(reason, also)  # type: ignore[attr-defined]
    code, found, details = raw_call(f"127.0.0.1:{failing.port}", PREDICT, REQUEST)
    assert (code, found) == (grpc.StatusCode[status], reason)
    assert leaf_errors()[reason].grpc_status == status
    kinds = {type(detail) for detail in details} - {error_details_pb2.ErrorInfo}
    wanted = {name for name in ("BadRequest", "RetryInfo") if name in also}
    assert {kind.__name__ for kind in kinds} == wanted


def test_a_slide_that_the_system_does_not_give(
    address: str, raw_call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: int, name: str, _flags: int, shown: str) -> int:
        raise paths._refusal(PermissionError(13, "Permission denied"), folder, name, shown)

    monkeypatch.setattr(paths, "_open_part", refuse)
    found = raw_call(address, PREDICT, REQUEST)
    assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "SLIDE_UNREADABLE")


def test_an_output_that_is_no_number(
    server: Server, address: str, raw_call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = server._services.models.loaded()
    infer = model.bundle._aggregator.infer

    def spoilt(inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = infer(inputs)
        return outputs | {"logits": outputs["logits"] * np.float32(np.nan)}

    monkeypatch.setattr(model.bundle, "_aggregator", SimpleNamespace(infer=spoilt))
    found = raw_call(address, PREDICT, REQUEST)
    assert found[:2] == (grpc.StatusCode.INTERNAL, "NON_FINITE_OUTPUT")


def test_a_deadline_that_no_slide_was_done_in(
    server: Server, address: str, raw_call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = server._services.models.loaded()
    pace = Pace()
    for _ in range(8):
        pace.note(100.0)
    monkeypatch.setattr(model, "pace", pace)
    found = raw_call(address, PREDICT, REQUEST, timeout=30.0)
    assert found[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
