"""A worker on a double of a GPU: it decodes where its engine is, part by part, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.errors import ReaderMissing
from cmamil_sdk.features import encode
from cmamil_sdk.features.encode import EncodedBatch, batch_tiles
from cmamil_sdk.serving import server, worker
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.messages import (
    EncoderSpec,
    EncodeTiles,
    Failed,
    MakePlan,
    ModelSpec,
    Planned,
    WorkerSetup,
    frame,
    parse_reply,
)
from cmamil_sdk.serving.paths import resolve
from cmamil_sdk.slides.cucim_cuda import why_no_cuda_decoding
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from ..device_double import put_in_place
from ..features.conftest import DeviceEngine, MeanEngine

pytestmark = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")

RECIPE = TilingRecipe(scales=parse_scales("5x,10x,20x"))
SPEC = EncoderSpec("encoder.onnx", {"encoder.onnx": "0" * 64}, DeviceEngine.info, RECIPE)
SETUP = WorkerSetup(0, (ModelSpec(0, SPEC, SPEC),), "cucim", 0, 1, 1000, 2**40, 2**20, 32)


def worker_with(engine: MeanEngine, monkeypatch: pytest.MonkeyPatch) -> worker.Worker:
    monkeypatch.setattr(worker, "_load", lambda _encoder: engine)
    return worker.Worker(SETUP)


def encoded_by(engine: MeanEngine, slide: Path, monkeypatch: pytest.MonkeyPatch) -> EncodedBatch:
    ref = resolve(slide.name, [slide.parent])
    made = worker_with(engine, monkeypatch)
    planned = made.answer(MakePlan(ref, None, 0))
    assert isinstance(planned, Planned)
    (batch,) = planned.plan.batches(batch_tiles("cuda:0"))
    encoded = made.answer(EncodeTiles(ref, None, 0, batch))
    assert isinstance(encoded, EncodedBatch)
    return encoded


def test_a_worker_decodes_on_the_device_of_its_engine(
    synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "DEVICE_CALL_TILES", 20)
    images = put_in_place(monkeypatch)
    encoded = encoded_by(DeviceEngine(), synthetic_slide, monkeypatch)
    assert sum(map(len, [image.asked for image in images])) > 3, "in parts"
    on_host = encoded_by(MeanEngine(), synthetic_slide, monkeypatch)
    np.testing.assert_array_equal(encoded.features, on_host.features)
    assert encoded.ok.all()
    assert isinstance(parse_reply(frame(encoded)[4:]), EncodedBatch)


def test_it_says_where_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    (info,) = worker_with(DeviceEngine(), monkeypatch).ready().engines.values()
    assert info.reason == "test; cuCIM decodes on cuda:0"
    (info,) = worker_with(MeanEngine(), monkeypatch).ready().engines.values()
    assert info.reason == "test"


@pytest.mark.skipif(why_no_cuda_decoding() is None, reason="slides can be decoded on a GPU here")
def test_without_a_gpu_the_client_learns_what_is_missing(
    synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = resolve(synthetic_slide.name, [synthetic_slide.parent])
    failed = worker_with(DeviceEngine(), monkeypatch).answer(MakePlan(ref, None, 0))
    assert isinstance(failed, Failed)
    assert failed.reason == ReaderMissing("").reason
    assert str(synthetic_slide.parent) not in failed.message


@pytest.mark.parametrize(
    ("reader", "info", "given", "expected"),
    [
        ("cucim", DeviceEngine.info, {}, 1),
        ("cucim", DeviceEngine.info, {"workers": 3}, 3),
        ("auto", DeviceEngine.info, {}, None),
        ("cucim", MeanEngine.info, {}, None),
    ],
)
def test_one_process_has_the_device(
    tmp_path: Path, reader: str, info: Any, given: dict[str, int], expected: int | None
) -> None:
    settings = {"bundles": [tmp_path], "slides_roots": [tmp_path], "reader": reader, **given}
    config = ServerConfig.parse(settings)
    model: Any = SimpleNamespace(bundle=SimpleNamespace(encoder_info=replace(info)))
    assert server._worker_count(config, [model]) == (expected or config.workers)
