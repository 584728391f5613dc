"""From slide to features through a double of a GPU: pixels stay on it, and nothing else changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.engines.parity import feature_cosines
from cmamil_sdk.engines.torch import TorchEngine
from cmamil_sdk.errors import EngineMissing, NonFiniteOutput
from cmamil_sdk.features import encode
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.encode import decoding_device, encode_batch
from cmamil_sdk.features.extract import Cancelled, extract_bag
from cmamil_sdk.features.file import read_provenance
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.cucim_cuda import why_no_cuda_decoding
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.cuda_reader import CudaReader
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

from ..device_double import Image, OnnxSession, put_in_place
from .conftest import DeviceEngine, MeanEngine

pytestmark = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")

EVERYWHERE = TilingRecipe(scales=parse_scales("5x,10x,20x"), tissue=TissueRecipe(method="none"))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Image]]:
    # So that a small slide has several parts, one decoded while another is encoded.
    monkeypatch.setattr(encode, "DEVICE_CALL_TILES", 40)
    yield put_in_place(monkeypatch)


def plan_of(path: Path, recipe: TilingRecipe = EVERYWHERE) -> TilePlan:
    with open_slide(path, reader="cucim") as reader:
        return make_plan(reader, recipe)


def assert_same(a: Bag, b: Bag, tolerance: float = 0.0) -> None:
    assert a.counts() == b.counts()
    for name in a.counts():
        np.testing.assert_allclose(a.features[name], b.features[name], rtol=0, atol=tolerance)
        for part in ("coords", "parent", "tissue"):
            np.testing.assert_array_equal(getattr(a, part)[name], getattr(b, part)[name])


@pytest.mark.parametrize("source", ["finest", "stored"])
def test_a_bag_is_the_cpus_to_the_bit(synthetic_slide: Path, images, source) -> None:
    plan = plan_of(synthetic_slide, EVERYWHERE.model_copy(update={"scale_source": source}))
    engine = DeviceEngine()
    bag = extract_bag(plan, engine, engine.dim).finish()
    assert_same(bag, extract_bag(plan, MeanEngine(), engine.dim).finish())
    assert engine.tiles == plan.total_tiles()
    assert len(engine.threads) == 1, "one worker a device"
    assert sum(map(sum, (image.asked for image in images))) > 2, "more than the comparison"


@pytest.mark.parametrize("mpp", [0.25, 0.31])
def test_blocks_are_reduced_on_the_device(tmp_path: Path, images, mpp) -> None:
    """By a whole factor to the bit, by a fraction to one grey level."""
    pixels = np.random.default_rng(5).integers(60, 200, (110, 120, 3)).repeat(20, 0).repeat(20, 1)
    path = tmp_path / "s.svs"
    write_svs(pixels.astype(np.uint8), path, mpp=mpp, objective_power=40.0)
    plan, engine = plan_of(path), DeviceEngine()
    bag = extract_bag(plan, engine, engine.dim).finish()
    expected = extract_bag(plan, MeanEngine(), engine.dim).finish()
    assert_same(bag, expected, 0.0 if mpp == 0.25 else 0.05)
    assert sum(map(sum, (image.asked for image in images))) > 2


def test_a_feature_file_says_what_decoded(synthetic_slide: Path, tmp_path: Path, images) -> None:
    encoder = EncoderInfo(
        id="mean", weights_sha256="0" * 64, dim=48, tile_px=224, mean=(0, 0, 0), std=(1, 1, 1)
    )
    done = extract_slide(
        synthetic_slide,
        tmp_path,
        recipe=EVERYWHERE,
        encoder=encoder,
        engine=DeviceEngine(),
        reader="cucim",
    )
    provenance = read_provenance(done.path)
    assert provenance.engine == "mean-cuda-fp32"
    assert "; decoded on cuda:0, where " in provenance.reader
    assert provenance.reader.endswith("by 0.00 grey levels on average and 0 at most")


def test_damaged_tiles_are_counted_as_on_the_cpu(
    textured_slide: Path, with_zeroed: Callable[..., Path], images
) -> None:
    plan, engine = plan_of(with_zeroed(textured_slide, (5, 6))), DeviceEngine()
    builder = extract_bag(plan, engine, engine.dim)
    expected = extract_bag(plan, MeanEngine(), engine.dim)
    assert builder.tiles_failed == expected.tiles_failed == 3
    assert_same(builder.finish(), expected.finish())


def test_a_server_encodes_a_batch_part_by_part(synthetic_slide: Path, images) -> None:
    plan, engine = plan_of(synthetic_slide), DeviceEngine()
    (batch,) = plan.batches(encode.batch_tiles("cuda:0"))
    assert len(batch.parts(40)) > 1
    assert sum(map(len, batch.parts(40))) == len(batch)
    with open_slide(synthetic_slide, reader="cucim", device="cuda:0") as reader:
        assert isinstance(reader, CudaReader)
        together = encode_batch(reader, batch, engine)
        on_host = encode_batch(reader, batch, MeanEngine())
    np.testing.assert_array_equal(together.features, on_host.features)
    assert together.ok.all() and together.batch is batch
    assert together.seconds_decode > 0 and together.seconds_encode > 0


def test_the_next_part_is_decoded_meanwhile(textured_slide: Path, images, monkeypatch) -> None:
    """The encoder waits for a decoding that begins after its own call did."""
    plan, engine = plan_of(textured_slide), DeviceEngine()
    begun: list[int] = []
    calls: list[int] = []
    real, infer = encode.read_device_tiles, engine.infer

    def read(reader, batch):
        begun.append(len(batch))
        return real(reader, batch)

    def wait_and_infer(inputs):
        calls.append(len(inputs["tiles"]))
        deadline = time.monotonic() + 20
        while sum(calls) < plan.total_tiles() and len(begun) <= len(calls):
            assert time.monotonic() < deadline, "nothing is decoded ahead"
            time.sleep(0.001)
        return infer(inputs)

    monkeypatch.setattr(encode, "read_device_tiles", read)
    monkeypatch.setattr(engine, "infer", wait_and_infer)
    extract_bag(plan, engine, engine.dim).finish()
    assert len(calls) > 2


def test_an_error_of_the_encoder_and_a_cancellation_end_both_threads(
    textured_slide: Path, images, monkeypatch
) -> None:
    plan, engine = plan_of(textured_slide), DeviceEngine()
    nothing = np.full((40, engine.dim), np.nan, np.float32)
    monkeypatch.setattr(
        engine, "infer", lambda inputs: {"features": nothing[: len(inputs["tiles"])]}
    )
    with pytest.raises(NonFiniteOutput, match=r"textured\.svs"):
        extract_bag(plan, engine, engine.dim)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        extract_bag(plan, DeviceEngine(), engine.dim, cancel=cancel)
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def torch_engine(graph: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """It computes on the host, whose memory is the device's."""
    engine = TorchEngine(graph, device="cpu", precision="fp32", threads=1, reason="test")
    engine.info = replace(engine.info, device="cuda:0", takes_device_arrays=True)
    return engine


def onnxruntime_engine(graph: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    session = OnnxSession(graph)
    monkeypatch.setattr("cmamil_sdk.engines.onnxruntime._session", lambda *_: session)
    return OnnxRuntimeEngine(graph, device="cuda:0", threads=1, reason="test")


@pytest.mark.parametrize("make", [torch_engine, onnxruntime_engine])
def test_engines_take_the_tiles_where_they_lie(
    synthetic_slide: Path, tiny_bundle: Path, images, monkeypatch, make
) -> None:
    plan = plan_of(synthetic_slide, EVERYWHERE.model_copy(update={"scales": parse_scales("10x")}))
    on_cpu = load_engine(tiny_bundle / "encoder.onnx", engine="onnxruntime", device="cpu")
    expected = extract_bag(plan, on_cpu, 1280, workers=1).finish()
    engine = make(tiny_bundle / "encoder.onnx", monkeypatch)
    assert_same(extract_bag(plan, engine, 1280).finish(), expected, 1e-3)


def test_where_tiles_are_decoded() -> None:
    on_device, on_cpu = DeviceEngine.info, MeanEngine.info
    assert decoding_device("cucim", on_device) == "cuda:0"
    assert decoding_device("cucim", on_cpu) == "cpu"
    for reader in ("auto", "direct", "openslide", "image", "plugin"):
        assert decoding_device(reader, on_device) == "cpu"


GPU_ENGINES = ("torch", "onnxruntime")


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda_decoding() is not None, reason=str(why_no_cuda_decoding()))
@pytest.mark.parametrize("name", GPU_ENGINES)
def test_on_a_gpu_features_are_those_of_the_cpu(
    textured_slide: Path, tiny_bundle: Path, name: str, record_property
) -> None:
    """From file to features on the device, against the same slide read and encoded by the CPU."""
    try:
        engine = load_engine(tiny_bundle / "encoder.onnx", engine=name, device="cuda:0")
    except EngineMissing as problem:
        pytest.skip(str(problem))
    plan = plan_of(textured_slide)
    started = time.perf_counter()
    bag = extract_bag(plan, engine, 1280).finish()
    record_property("tiles_per_s", round(plan.total_tiles() / (time.perf_counter() - started)))
    cpu = load_engine(tiny_bundle / "encoder.onnx", engine="onnxruntime", device="cpu")
    expected = extract_bag(plan, cpu, 1280).finish()
    for scale in ("5x", "10x", "20x"):
        cosines = feature_cosines(expected.features[scale], bag.features[scale])
        record_property(f"centred_cosine_worst_{scale}", round(cosines["centred_cosine_worst"], 5))
        assert cosines["cosine_worst"] >= 0.99
