"""Whatever is sent: the server lives, each answer is typed, and workers that die are replaced.

The cases are the same each time; the number in a failure names the one that was wrong.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk._proto.inference import open_inference_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import background_server

from .fuzzing import (
    SEED_WEIGHTS,
    SlideMutator,
    filled,
    parses,
    rngs,
    seed_slides,
    spoilt,
    tensor_request,
)
from .uploading import reason_of
from .waiting import wait_until

MODULES = (model_pb2, prediction_pb2, server_pb2, slide_pb2, open_inference_pb2)
INSPECT = "/cmamil.v1.SlideService/InspectSlide"
PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LEAST_SHARE = 1 / 3


class Target:
    """A server under fire, and what it answered."""

    def __init__(self, address: str, root: Path, seeds: list[Path]) -> None:
        self.address, self.root = address, root
        self.slides = [SlideMutator(path.read_bytes()) for path in seeds]
        self._channel = grpc.insecure_channel(address)

    def ask(self, method: str, data: Any, *, streams: tuple[bool, bool] = (False, False)) -> str:
        """``OK``, or the reason of the error; anything that is not typed fails the test."""
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }
        sent = iter([data, data]) if streams[0] else data
        try:
            answer = kinds[streams](method)(sent, timeout=60)
            if streams[1]:
                list(answer)
        except grpc.RpcError as problem:
            return self._typed(problem, method)
        return "OK"

    def _typed(self, problem: Any, method: str) -> str:
        reason = reason_of(problem)
        assert reason, f"{method} ended with {problem.code()}: {problem.details()}"
        assert reason != "UNEXPECTED_ERROR", f"{method}: {problem.details()}"
        assert problem.code() is not grpc.StatusCode.UNKNOWN
        return reason

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="module")
def target(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("fuzz")
    seeds = seed_slides(root)
    settings = config.model_copy(
        update={
            "slides_roots": (root,),
            "uploads": root.with_name("fuzz-uploads"),
            "workers": 1,
            "worker_memory_mib": 3072,
            "task_timeout_s": 30.0,
            "max_image_pixels": 4_000_000,
            "max_slide_pixels": 100_000_000,
        }
    )
    with background_server(settings) as server:
        made = Target(f"127.0.0.1:{server.port}", root, seeds)
        yield made
        made.close()


def still_well(target: Target) -> int:
    """The server predicts as ever; returns how many workers had to be replaced."""
    with Client(target.address, timeout_s=60.0) as client:
        wait_until(lambda: client.health() == "SERVING", timeout_s=60.0)
        assert client.predict("seed0.svs").label
        return sum(worker.restarts for worker in client.server_info().workers)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def slides(target: Target, count: int) -> float:
    """Inspect mutants of slides, predict some; the share of those that could be opened."""
    found: Counter[str] = Counter()
    for number, rng in enumerate(rngs("slide", count)):
        name = f"mutant{number}.svs"
        path = target.root / name
        path.write_bytes(rng.choices(target.slides, SEED_WEIGHTS)[0].mutant(rng))
        slide = slide_pb2.SlideSource(uri=name)
        request: Message = slide_pb2.InspectSlideRequest(slide=slide)
        answer = target.ask(INSPECT, request.SerializeToString())
        if answer == "OK" and rng.random() < 0.2:
            request = prediction_pb2.PredictSlideRequest(slide=slide)
            target.ask(PREDICT, request.SerializeToString())
        path.unlink()
        found[answer] += 1
    say(f"slides: {dict(found)}")
    return found["OK"] / count


def messages(target: Target, count: int) -> float:
    """Call every method with messages full of anything; the share of those that parse."""
    methods = [
        (f"/{service.full_name}/{method.name}", method)
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    parsed = 0
    for rng in rngs("message", count):
        path, method = rng.choice(methods)
        kind = message_factory.GetMessageClass(method.input_type)
        data = filled(kind, rng).SerializeToString()
        if rng.random() < 0.6:
            data = spoilt(data, rng)
        parsed += parses(kind, data)
        streams = method.client_streaming, method.server_streaming
        target.ask(path, data, streams=streams)
    return parsed / count


def tensors(target: Target, count: int) -> float:
    """Call the models with tensors of any shape; the share of those that are run."""
    with grpc.insecure_channel(target.address) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        models = [
            open_inference_pb2.ModelMetadataResponse.FromString(
                ask(open_inference_pb2.ModelMetadataRequest(name=name).SerializeToString())
            )
            for name in ("tiny-encoder", "tiny-aggregator", "tiny-slide")
        ]
    parsed, run = 0, 0
    for rng in rngs("tensor", count):
        data = tensor_request(rng.choice(models), rng).SerializeToString()
        if rng.random() < 0.2:
            data = spoilt(data, rng)
        parsed += parses(open_inference_pb2.ModelInferRequest, data)
        run += target.ask(INFER, data) == "OK"
    say(f"tensors: {run} of {count} were run")
    return parsed / count


KINDS = {"slides": slides, "messages": messages, "tensors": tensors}


def fuzz(target: Target, kind: str, count: int) -> None:
    share = KINDS[kind](target, count)
    restarts = still_well(target)
    say(f"{kind}: {share:.0%} of {count} opened or parsed, {restarts} workers replaced")
    assert share >= LEAST_SHARE


@pytest.mark.parametrize(("kind", "count"), [("slides", 120), ("messages", 230), ("tensors", 150)])
def test_five_hundred_cases(target: Target, kind: str, count: int) -> None:
    fuzz(target, kind, count)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "count"), [("slides", 2000), ("messages", 2000), ("tensors", 1500)]
)
def test_five_thousand_cases(target: Target, kind: str, count: int) -> None:
    fuzz(target, kind, count)


def test_cases_can_be_repeated(target: Target) -> None:
    one, other = (target.slides[0].mutant(random.Random(7)) for _ in range(2))
    assert one == other
