"""Stock clients of Triton, in the server's own process, call everything unchanged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cmamil_sdk import __version__
from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferResponse
from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden, read_golden
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.predictor import Predictor
from cmamil_sdk.serving.server import Server

from ..listening import listening
from .asking import INFER, request, slide, tiles

Triton = tritonclient.grpc.InferenceServerClient


@pytest.fixture
def triton(address: str) -> Iterator[Triton]:
    with Triton(address) as client:
        yield client


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path) -> Golden:
    return read_golden(tiny_bundle, read_manifest(tiny_bundle)[0])


@pytest.fixture
def predictor(server: Server) -> Predictor:
    found = server._services.predictor
    assert found is not None
    return found


def tensor(name: str, array: npt.NDArray[Any], kind: Any = tritonclient.grpc.InferInput) -> Any:
    made = kind(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def wanted(*names: str) -> list[Any]:
    return [tritonclient.grpc.InferRequestedOutput(name) for name in names]


def text(*values: bytes) -> npt.NDArray[Any]:
    return np.array(values, dtype=object)


def test_the_server_is_live_and_ready(triton: Triton) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    for part in ("encoder", "aggregator", "slide"):
        assert triton.is_model_ready(f"tiny-{part}")
        assert triton.is_model_ready(f"tiny-{part}", "1")
    with pytest.raises(InferenceServerException, match="tiny-encoder") as caught:
        triton.is_model_ready("absent")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_before_the_models_are_loaded_it_is_live_and_not_ready(config: ServerConfig) -> None:
    with listening(config) as address, Triton(address) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("tiny-encoder")
        for ask in (
            lambda: client.get_model_metadata("tiny-encoder"),
            lambda: client.infer("tiny-encoder", [tensor("tiles", tiles()["tiles"])]),
        ):
            with pytest.raises(InferenceServerException) as caught:
                ask()
            assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_a_server_that_shuts_down_is_live_and_not_ready(
    triton: Triton, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.admission, "draining", True)
    assert triton.is_server_live()
    assert not triton.is_server_ready() and not triton.is_model_ready("tiny-slide")
    with pytest.raises(InferenceServerException, match="shutting down") as caught:
        triton.infer("tiny-encoder", [tensor("tiles", tiles()["tiles"])])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_the_server_names_itself_and_promises_no_statistics(triton: Triton) -> None:
    found = triton.get_server_metadata()
    assert (found.name, found.version) == ("cmamil-sdk", __version__)
    assert list(found.extensions) == ["model_configuration"]
    with pytest.raises(InferenceServerException) as caught:
        triton.get_inference_statistics()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def tensors(described: Any) -> dict[str, tuple[str, list[int]]]:
    return {t.name: (t.datatype, list(t.shape)) for t in described}


def test_the_metadata_of_the_models(triton: Triton) -> None:
    encoder = triton.get_model_metadata("tiny-encoder")
    assert (encoder.name, list(encoder.versions)) == ("tiny-encoder", ["1"])
    assert encoder.platform == "onnx_onnxv1"
    assert tensors(encoder.inputs) == {"tiles": ("UINT8", [-1, 224, 224, 3])}
    assert tensors(encoder.outputs) == {"features": ("FP32", [-1, 1280])}
    aggregator = triton.get_model_metadata("tiny-aggregator", "1")
    assert tensors(aggregator.inputs) == {
        "features_5x": ("FP32", [-1, 1280]),
        "features_10x": ("FP32", [-1, 1280]),
        "features_20x": ("FP32", [-1, 1280]),
        "children_5x": ("INT64", [-1, 4]),
        "children_10x": ("INT64", [-1, 4]),
        "ancestor_20x": ("INT64", [-1, 1]),
    }
    outputs = tensors(aggregator.outputs)
    assert list(outputs)[:3] == ["logits", "bias", "probabilities"]
    assert outputs["probabilities"] == ("FP32", [1, 3])
    assert outputs["attention_5x"] == ("FP32", [1, -1])
    assert outputs["contribution_20x"] == ("FP32", [-1, 3])
    whole = triton.get_model_metadata("tiny-slide")
    assert whole.platform == "cmamil_slide"
    assert tensors(whole.inputs) == {"slide_uri": ("BYTES", [1]), "options": ("BYTES", [1])}
    assert tensors(whole.outputs) == {"label": ("BYTES", [1]), "probabilities": ("FP32", [3])}


def test_the_configuration_of_the_models(triton: Triton, tiny_bundle: Path) -> None:
    """What ``perf_analyzer`` reads: the axis of the batch, and which input may be left out."""
    encoder = triton.get_model_config("tiny-encoder").config
    assert encoder.max_batch_size == 64
    assert [(t.name, list(t.dims)) for t in encoder.input] == [("tiles", [224, 224, 3])]
    assert [(t.name, list(t.dims)) for t in encoder.output] == [("features", [1280])]
    assert encoder.parameters["cmamil_bundle_sha256"].string_value == read_manifest(tiny_bundle)[1]
    aggregator = triton.get_model_config("tiny-aggregator", as_json=True)["config"]
    assert aggregator.get("max_batch_size", 0) == 0
    assert "sequence_batching" not in aggregator and "ensemble_scheduling" not in aggregator
    assert aggregator["input"][0] == {
        "name": "features_5x",
        "data_type": "TYPE_FP32",
        "dims": ["-1", "1280"],
    }
    whole = triton.get_model_config("tiny-slide").config
    assert [(t.name, t.data_type, t.optional) for t in whole.input] == [
        ("slide_uri", 13, False),
        ("options", 13, True),
    ]
    labels = json.loads(whole.parameters["cmamil_labels"].string_value)
    assert labels == ["benign", "in_situ", "invasive"]


def test_tiles_are_encoded_in_their_order(triton: Triton, golden: Golden) -> None:
    """24 tiles are two tasks, which two workers may do in either order."""
    given, expected = golden.encoder.tiles, golden.encoder.features
    assert len(given) > 16
    found = triton.infer("tiny-encoder", [tensor("tiles", given)], request_id="a, b")
    assert found.get_response().id == "a, b"
    assert found.get_response().model_name == "tiny-encoder"
    assert found.get_response().model_version == "1"
    features = found.as_numpy("features")
    assert features.dtype == np.float32 and features.shape == expected.shape
    cosine = (features * expected).sum(1)
    cosine /= np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99  # the engine that was chosen may compute in bf16
    turned = triton.infer("tiny-encoder", [tensor("tiles", given[::-1].copy())])
    np.testing.assert_allclose(turned.as_numpy("features")[::-1], features, rtol=0, atol=1e-4)


def test_a_bag_is_aggregated_and_outputs_come_as_asked(triton: Triton, golden: Golden) -> None:
    inputs = [tensor(name, array) for name, array in golden.inputs.items()]
    everything = triton.infer("tiny-aggregator", inputs)
    names = [output.name for output in everything.get_response().outputs]
    assert names == [t.name for t in triton.get_model_metadata("tiny-aggregator").outputs]
    for name in names:
        difference = np.abs(everything.as_numpy(name) - golden.outputs[name]).max()
        assert difference <= GOLDEN_MAX_DIFFERENCE["fp32"]
    asked = ("probabilities", "attention_20x", "logits")
    some = triton.infer("tiny-aggregator", inputs[::-1], outputs=wanted(*asked))
    assert [output.name for output in some.get_response().outputs] == list(asked)
    assert len(some.get_response().raw_output_contents) == len(asked)
    for name in asked:
        np.testing.assert_array_equal(some.as_numpy(name), everything.as_numpy(name))
    assert some.as_numpy("bias") is None


def test_a_slide_is_predicted_as_by_our_own_api(triton: Triton, client: Client) -> None:
    expected = client.predict("a.svs")
    options = json.dumps({"mpp": 0.5, "expected_sha256": client.inspect("a.svs").sha256})
    for inputs in (
        [tensor("slide_uri", text(b"a.svs"))],
        [tensor("slide_uri", text(b"a.svs")), tensor("options", text(options.encode()))],
    ):
        found = triton.infer("tiny-slide", inputs, model_version="1")
        assert found.as_numpy("label").tolist() == [expected.label.encode()]
        values = np.array(list(expected.probabilities.values()), np.float32)
        np.testing.assert_array_equal(found.as_numpy("probabilities"), values)
    refused = [tensor("slide_uri", text(b"a.svs")), tensor("options", text(b'{"mpp": 40}'))]
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("tiny-slide", refused)
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


def test_the_asyncio_client_calls_them_as_well(address: str, golden: Golden) -> None:
    kind = tritonclient.grpc.aio.InferInput

    async def ask() -> list[Any]:
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            assert await client.is_server_live() and await client.is_model_ready("tiny-slide")
            return await asyncio.gather(
                client.infer("tiny-encoder", [tensor("tiles", tiles(2)["tiles"], kind)]),
                client.infer(
                    "tiny-aggregator",
                    [tensor(name, array, kind) for name, array in golden.inputs.items()],
                ),
                client.infer("tiny-slide", [tensor("slide_uri", text(b"a.svs"), kind)]),
            )

    encoded, aggregated, predicted = asyncio.run(ask())
    assert encoded.as_numpy("features").shape == (2, 1280)
    assert aggregated.as_numpy("probabilities").sum() == pytest.approx(1, abs=1e-5)
    assert predicted.as_numpy("label").tolist()[0] in (b"benign", b"in_situ", b"invasive")


def test_the_answer_does_not_depend_on_the_rest_of_the_load(triton: Triton, client: Client) -> None:
    """Slides and tiles share the workers."""
    given = tensor("tiles", tiles(4)["tiles"])
    alone = triton.infer("tiny-encoder", [given]).as_numpy("features")
    found: list[Any] = []
    calls = [
        triton.async_infer("tiny-encoder", [given], lambda result, error: found.append(result))
        for _ in range(4)
    ]
    assert client.predict("a.svs").label
    until = time.monotonic() + 20
    while len(found) < len(calls):
        assert time.monotonic() < until
        time.sleep(0.01)
    for result in found:
        np.testing.assert_array_equal(result.as_numpy("features"), alone)


def test_timeout_is_how_long_a_request_waits_for_its_turn(
    triton: Triton, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [tensor("tiles", tiles()["tiles"])]
    assert triton.infer("tiny-encoder", given, timeout=20_000_000).as_numpy("features").size
    monkeypatch.setattr(predictor.admission, "_max_active", 0)
    for model, inputs in (
        ("tiny-encoder", given),
        ("tiny-slide", [tensor("slide_uri", text(b"a.svs"))]),
    ):
        started_s = time.monotonic()
        with pytest.raises(InferenceServerException, match=r"begin within .* of 0\.05 s") as caught:
            triton.infer(model, inputs, timeout=50_000)
        assert time.monotonic() - started_s < 1.0
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("tiny-encoder", given, timeout=20_000_000, client_timeout=0.05)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    wait_until(lambda: not predictor.admission.waiting)


def test_overload_is_refused_at_once(
    address: str,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    raw_call: Callable[..., Any],
) -> None:
    monkeypatch.setattr(predictor.admission, "_max_active", 0)
    monkeypatch.setattr(predictor.admission, "_max_queued", 0)
    monkeypatch.setattr(predictor.admission, "retry_after_s", lambda: 3.0)
    for message in (request("tiny-encoder", tiles()), slide(b"a.svs")):
        code, reason, details = raw_call(address, INFER, message.SerializeToString())
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert details[1].retry_delay.seconds == 3


def test_a_cancelled_call_gives_its_place_back(triton: Triton, predictor: Predictor) -> None:
    given = [tensor("tiles", tiles(64)["tiles"])]
    ended: list[Any] = []
    call = triton.async_infer("tiny-encoder", given, lambda result, error: ended.append(error))
    wait_until(lambda: predictor.admission.active == 1)
    call.cancel()
    wait_until(lambda: predictor.admission.active == 0, timeout_s=0.5)
    wait_until(lambda: len(ended) == 1)
    assert ended[0].status() == "StatusCode.CANCELLED"
    assert triton.infer("tiny-encoder", [tensor("tiles", tiles()["tiles"])])


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.005)


def test_warnings_of_a_model_come_with_its_answers(
    address: str, server: Server, monkeypatch: pytest.MonkeyPatch, raw_call: Callable[..., Any]
) -> None:
    (model,) = server._services.models.all()
    monkeypatch.setattr(model.bundle, "warnings", ("The encoder misses its gate.",))
    for message in (request("tiny-encoder", tiles()), slide(b"a.svs")):
        data = raw_call(address, INFER, message.SerializeToString())
        warnings = ModelInferResponse.FromString(data).parameters["warnings"].string_param
        assert json.loads(warnings) == ["The encoder misses its gate."]


def test_an_answer_above_the_limit(
    address: str, server: Server, monkeypatch: pytest.MonkeyPatch, raw_call: Callable[..., Any]
) -> None:
    """The limit holds for both ways; an answer longer than its request is one of a small slide."""
    services = server._services
    message = slide(b"a.svs").SerializeToString()
    small = services._config.model_copy(update={"max_message_bytes": len(message)})
    monkeypatch.setattr(services._open_inference, "_config", small)
    code, reason, _ = raw_call(address, INFER, message)
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    code, reason, _ = raw_call(address, INFER, message + b" ")
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def test_several_versions_of_one_bundle(tiny_bundle: Path) -> None:
    from cmamil_sdk.serving.models import LoadedModel, ModelTable
    from cmamil_sdk.serving.open_inference import catalogue

    bundles = []
    for version in ("1", "2"):
        bundle = object.__new__(Bundle)
        manifest, _ = read_manifest(tiny_bundle)
        bundle.manifest = manifest.model_copy(update={"version": version})
        bundles.append(bundle)
    table = ModelTable()
    signature: Any = None
    table.fill([LoadedModel(n, bundle, signature) for n, bundle in enumerate(bundles)])
    for asked, version in (("", "2"), ("1", "1"), ("2", "2")):
        found = catalogue.find_model(table, "tiny-encoder", asked, field="name")
        assert found.version == version
    assert catalogue.versions(table, "tiny-encoder") == ["1", "2"]
