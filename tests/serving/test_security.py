"""What an attacker tries, and where that is shown to fail; here by every way to a slide."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk._proto.inference import open_inference_pb2

from .uploading import reason_of

HERE = Path(__file__).parent

ELSEWHERE = {
    "traversal": ["test_paths::test_no_spelling_reaches_outside"],
    "symlink": [
        "test_paths::test_a_slide_that_became_a_link_is_refused",
        "test_errors::test_a_slide_replaced_by_a_link_between_requests",
    ],
    "device file": ["test_paths::test_a_character_device_is_forbidden"],
    "FIFO, NUL": ["test_paths::test_everything_else_is_forbidden"],
    "several files": ["test_errors::test_a_format_that_names_further_files_is_refused"],
    "upload's name": ["test_uploads::test_a_wrong_upload_is_refused_and_leaves_nothing"],
    "upload's id": [
        "test_uploads::test_what_is_no_id",
        "test_uploaded_slides::test_an_id_that_can_be_none",
    ],
    "another's upload": ["test_uploads::test_owners"],
    "oversized headers": [
        "test_access::test_headers_beyond_the_limit_are_refused_and_the_server_goes_on"
    ],
    "tokens": [
        "test_access::test_without_a_token_nothing_is_answered",
        "test_access::test_a_token_never_travels_in_the_clear",
        "test_access::test_a_token_stands_in_no_log",
    ],
    "wrong roles": [
        "test_access::test_roles",
        "test_access::test_a_service_that_has_no_rule_is_for_administrators",
    ],
    "expired certificates": [
        "test_tls::test_a_server_that_is_not_to_be_trusted",
        "test_tls::test_mutual_tls_lets_in_whom_the_authority_signed",
    ],
    "a worker taken over": ["test_faults::test_a_worker_cannot_make_the_server_run_code"],
    "whatever else": ["test_fuzz::test_five_hundred_cases"],
}
"""Kinds of attack, and the tests of other files that show them to fail."""


def test_the_others_are_there() -> None:
    for file, _, name in (test.partition("::") for tests in ELSEWHERE.values() for test in tests):
        assert f"def {name}(" in (HERE / f"{file}.py").read_text("utf-8")


def asking_for(uri: str) -> dict[str, bytes]:
    """A request for a slide by each method that takes one."""
    source = slide_pb2.SlideSource(uri=uri)
    prediction = prediction_pb2.PredictSlideRequest(slide=source)
    tensors = open_inference_pb2.ModelInferRequest(model_name="tiny-slide")
    given = tensors.inputs.add(name="slide_uri", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(uri.encode())
    messages: dict[str, Any] = {
        "cmamil.v1.SlidePredictionService/PredictSlide": prediction,
        "cmamil.v1.SlidePredictionService/StreamPredictSlide": (
            prediction_pb2.StreamPredictSlideRequest(request=prediction)
        ),
        "cmamil.v1.SlidePredictionService/ExtractFeatures": (
            prediction_pb2.ExtractFeaturesRequest(slide=source)
        ),
        "cmamil.v1.SlideService/InspectSlide": slide_pb2.InspectSlideRequest(slide=source),
        "inference.GRPCInferenceService/ModelInfer": tensors,
    }
    return {method: message.SerializeToString() for method, message in messages.items()}


@pytest.fixture(scope="module")
def traps(slides_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Links, a FIFO, a socket and a device beneath the root, in a folder of their own; yields outside."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.svs").write_bytes((slides_root / "a.svs").read_bytes())
    folder = slides_root / "traps"
    folder.mkdir()
    (folder / "link.svs").symlink_to(outside / "secret.svs")
    (folder / "inner.svs").symlink_to(slides_root / "a.svs")
    (folder / "process.svs").symlink_to("/proc/self/environ")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.svs")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.svs"))
    if os.geteuid() == 0:  # others may not make one
        os.mknod(folder / "device.svs", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    else:
        (folder / "device.svs").symlink_to("/dev/zero")
    yield outside
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "uri",
    [
        "../{outside.name}/secret.svs",
        "traps/../a.svs",
        "{outside}/secret.svs",
        "{root}/../{outside.name}/secret.svs",
        "file://{root}/%2e%2e/{outside.name}/secret.svs",
        "file:{root}/..%2f{outside.name}%2fsecret.svs",
        "/etc/passwd",
        "/proc/self/environ",
        "traps/link.svs",
        "traps/inner.svs",
        "traps/process.svs",
        "traps/linked/secret.svs",
        "traps/pipe.svs",
        "traps/socket.svs",
        "traps/device.svs",
        "traps",
        "a.svs\0",
        "a.svs\0.png",
        "file:{root}/a.svs%00",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_no_way_to_a_slide_leads_elsewhere(
    address: str, slides_root: Path, traps: Path, uri: str
) -> None:
    uri = uri.format(root=slides_root, outside=traps)
    with grpc.insecure_channel(address) as channel:
        for method, data in asking_for(uri).items():
            started_s = time.monotonic()
            streams = method.endswith(("StreamPredictSlide", "ExtractFeatures"))
            call: Callable[..., Any] = (
                channel.unary_stream(f"/{method}") if streams else channel.unary_unary(f"/{method}")
            )
            with pytest.raises(grpc.RpcError) as caught:
                answer = call(data, timeout=10)
                list(answer if streams else ())
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
            assert reason_of(caught.value) == "SLIDE_URI_FORBIDDEN"
            assert time.monotonic() - started_s < 5  # nobody waits at a pipe or reads a device
