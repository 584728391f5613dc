"""The torch engine: every encoder's graph as onnxruntime runs it, and nothing that it does not know."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from cmamil_sdk.bundle import Bundle  # noqa: E402
from cmamil_sdk.bundle.golden import read_golden  # noqa: E402
from cmamil_sdk.engines import choose, load_engine  # noqa: E402
from cmamil_sdk.engines.parity import (  # noqa: E402
    ENCODER_GATES,
    feature_cosines,
    measure_encoder,
)
from cmamil_sdk.engines.torch_batches import RecordedBatches  # noqa: E402
from cmamil_sdk.engines.torch_graph import TorchGraph  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid  # noqa: E402
from cmamil_sdk.export.encoder import load_encoder  # noqa: E402
from cmamil_sdk.export.reference import probe_tiles  # noqa: E402

from ..device_double import CUPY  # noqa: E402
from .graphs import save_graph  # noqa: E402
from .torch_parity import (  # noqa: E402
    assert_looks_at_nothing_on_a_device,
    assert_torch_is_onnxruntime,
)

TIMM = (
    *("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_resnet", "test_byobnet"),
    *(
        "test_efficientnet",
        "test_efficientnet_gn",
        "test_efficientnet_ln",
        "test_efficientnet_evos",
    ),
    *("test_convnext", "test_convnext2", "test_convnext3", "test_nfnet", "test_mambaout"),
    *("mobilenetv3_small_050", "regnety_002", "swin_tiny_patch4_window7_224", "ghostnet_050"),
)

run_torch = partial(load_engine, engine="torch", device="cpu")


def test_efficientnet(tiny_bundle: Path) -> None:
    graph = tiny_bundle / "encoder.onnx"
    assert_torch_is_onnxruntime(graph, probe_tiles(224, count=5))
    assert_looks_at_nothing_on_a_device(graph)
    bundle = Bundle.load(tiny_bundle, engine="torch", device="cpu")
    assert bundle.engine_label == "torch-cpu-fp32"
    assert (
        bundle.encoder_info.reason
        == "asked for; fp32, torch computes in bf16 on CUDA devices of compute capability 8.0 alone"
    )
    assert bundle.aggregator_info.label == "onnxruntime-cpu-fp32"


@pytest.mark.long
def test_shufflenet_with_its_projection(shufflenet_weights: Path, tmp_path: Path) -> None:
    encoder = load_encoder("shufflenet_v2_x1_0", shufflenet_weights, projection=True)
    encoder.write_graph(tmp_path / "encoder.onnx")
    assert_torch_is_onnxruntime(tmp_path / "encoder.onnx", probe_tiles(224, count=3))
    assert_looks_at_nothing_on_a_device(tmp_path / "encoder.onnx")


@pytest.mark.long
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str, tmp_path: Path) -> None:
    from cmamil_sdk.encoders.torchvision_ops import import_torchvision

    import_torchvision()
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder(f"timm:{name}", tmp_path / "weights.pth")
    encoder.write_graph(tmp_path / "encoder.onnx")
    assert_torch_is_onnxruntime(
        tmp_path / "encoder.onnx", probe_tiles(encoder.info.tile_px, count=3)
    )
    assert_looks_at_nothing_on_a_device(tmp_path / "encoder.onnx")


def test_bf16_passes_its_gate(tiny_bundle: Path) -> None:
    """On the CPU, where no engine computes so, but with the same operators in the same types."""
    golden = read_golden(tiny_bundle, Bundle.load(tiny_bundle, device="cpu").manifest).encoder
    graph = TorchGraph(tiny_bundle / "encoder.onnx", torch.device("cpu"), torch.bfloat16)
    with torch.inference_mode():
        tiles = torch.from_numpy(golden.tiles[:12].copy())
        found = graph({"tiles": tiles})["features"].float().numpy()
    cosines = feature_cosines(golden.features[:12], found)
    assert all(cosines[name] >= least for name, least in ENCODER_GATES["bf16"].items())
    assert cosines["cosine_worst"] < ENCODER_GATES["fp32"]["cosine_worst"], "it is not fp32"


def test_the_gate_measures_it(tiny_bundle: Path) -> None:
    manifest = Bundle.load(tiny_bundle, device="cpu").manifest
    parity = measure_encoder(
        run_torch(tiny_bundle / "encoder.onnx"), read_golden(tiny_bundle, manifest).encoder
    )
    assert parity.passed and parity.label == "torch-cpu-fp32"


# --- what is refused -------------------------------------------------------------------------------


def test_files_that_are_no_graphs_for_it(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 99)
    for path in (tmp_path / "empty.onnx", tmp_path / "garbage.onnx", tmp_path, tmp_path / "none"):
        with pytest.raises(BundleUnsupported, match="export the model again"):
            run_torch(path)
    shape = ("FLOAT", ["n", 4])
    two = [("Add", ["x", "z"], ["y"], {})]
    save_graph(tmp_path / "two.onnx", two, {"x": shape, "z": shape}, {"y": shape})
    with pytest.raises(BundleUnsupported, match="has 2 inputs, torch here runs graphs of one"):
        run_torch(tmp_path / "two.onnx")
    with pytest.raises(BundleUnsupported, match="use --engine onnxruntime"):
        run_torch(tiny_bundle / "aggregator.onnx")
    relu = [("Relu", ["x"], ["y"], {})]
    old = save_graph(tmp_path / "old.onnx", relu, {"x": shape}, {"y": shape})
    model = onnx.load(old)
    model.opset_import[0].version = 9
    onnx.save(model, old)
    with pytest.raises(BundleUnsupported, match="is of opset 9, torch here runs 13 to"):
        run_torch(old)


def test_wrong_inputs_are_refused_and_it_still_works(tiny_bundle: Path) -> None:
    engine = run_torch(tiny_bundle / "encoder.onnx")
    tiles = probe_tiles(224, count=2)
    before = engine.infer({"tiles": tiles})["features"]
    for wrong in (
        {},
        {"tiles": tiles, "other": tiles},
        {"tiles": tiles.astype(np.float32)},
        {"tiles": tiles[:0]},
        {"tiles": tiles[:, :200]},
        {"tiles": CUPY.asarray(tiles)},
    ):
        with pytest.raises(FieldInvalid, match=r"encoder\.onnx"):
            engine.infer(wrong)
    tiles.flags.writeable = False
    np.testing.assert_array_equal(engine.infer({"tiles": tiles})["features"], before)
    engine.close()


def test_threads_at_once_get_the_same_bits(tiny_bundle: Path) -> None:
    engine = run_torch(tiny_bundle / "encoder.onnx")
    inputs = [probe_tiles(224, count=n, seed=n) for n in (1, 2, 3)]
    alone = [engine.infer({"tiles": tiles})["features"] for tiles in inputs]
    together: list[np.ndarray | None] = [None] * len(inputs)

    def run(position: int) -> None:
        together[position] = engine.infer({"tiles": inputs[position]})["features"]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(alone, together, strict=True):
        assert got is not None
        np.testing.assert_array_equal(got, expected)


# --- devices and precisions ------------------------------------------------------------------------


def test_what_is_not_here_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineMissing, match=r"8\.0 alone, not on cpu"):
        run_torch(tiny_bundle / "encoder.onnx", precision="bf16")
    if not torch.cuda.is_available():
        with pytest.raises(EngineMissing, match="finds 0 CUDA devices and not cuda:3"):
            run_torch(tiny_bundle / "encoder.onnx", device="cuda:3")


def test_auto_takes_torch_only_for_a_gpu_that_onnxruntime_has_no_provider_for(monkeypatch) -> None:
    def chosen(engine: str, device: str, *, onnxruntime: bool, torch: bool) -> tuple[str, str]:
        monkeypatch.setattr(choose, "_cuda", lambda: onnxruntime)
        monkeypatch.setattr(choose, "_torch_cuda", lambda: torch)
        choice = choose.choose_engine(engine, device)
        return choice.engine, choice.device

    assert chosen("auto", "auto", onnxruntime=False, torch=True) == ("torch", "cuda:0")
    assert chosen("auto", "cuda:1", onnxruntime=False, torch=True) == ("torch", "cuda:1")
    assert chosen("auto", "auto", onnxruntime=True, torch=True) == ("onnxruntime", "cuda:0")
    assert chosen("auto", "cpu", onnxruntime=False, torch=True)[0] != "torch"
    assert chosen("auto", "auto", onnxruntime=False, torch=False)[0] != "torch"
    assert chosen("onnxruntime", "auto", onnxruntime=False, torch=True) == ("onnxruntime", "cpu")
    assert chosen("torch", "auto", onnxruntime=False, torch=True) == ("torch", "cuda:0")
    assert chosen("torch", "auto", onnxruntime=True, torch=False) == ("torch", "cpu")
    assert chosen("torch", "cpu", onnxruntime=True, torch=True) == ("torch", "cpu")


def test_it_is_imported_only_when_it_is_chosen() -> None:
    program = (
        "import sys; from cmamil_sdk.engines import available_engines, available_precisions; "
        "found = available_engines(); available_precisions(); "
        "print(found['torch']['version'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[0] == torch.__version__
    assert done.stdout.split()[1] == "False" or torch.cuda.is_available()


def test_without_torch_the_extra_is_named(monkeypatch, tiny_bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "cmamil_sdk.engines.torch", raising=False)
    with pytest.raises(EngineMissing, match=r"install cmamil-sdk\[torch\]"):
        run_torch(tiny_bundle / "encoder.onnx")


# --- batches that are recorded ---------------------------------------------------------------------


class Recorder:
    """In place of CUDA graphs: does the work again; counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, work, device):
        assert device.type == "cpu"
        self.recorded += 1

        def replay():
            self.replayed += 1
            return work()

        return replay


def test_batches_are_filled_up_split_and_recorded_once() -> None:
    recorder, sizes = Recorder(), []

    def run(tiles: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(tiles))
        return {"double": tiles * 2, "sum": tiles.sum(1)}

    batches = RecordedBatches(run, torch.device("cpu"), recorder)
    rng = np.random.default_rng(0)
    for n, expected in ((3, [8]), (8, [8]), (9, [32]), (300, [128, 128, 64]), (5, [8])):
        sizes.clear()
        tiles = torch.from_numpy(rng.normal(size=(n, 4)))
        found = batches(tiles)
        assert sizes == expected
        torch.testing.assert_close(found["double"], tiles * 2)
        torch.testing.assert_close(found["sum"], tiles.sum(1))
    assert (recorder.recorded, recorder.replayed) == (4, 7)
    batches.close()
    batches(torch.zeros(1, 4, dtype=torch.float64))
    assert recorder.recorded == 5


def test_a_recorded_encoder_gives_the_same_features(tiny_bundle: Path) -> None:
    """As on CUDA, but for the device: filled up with black tiles, whose features are dropped."""
    engine = run_torch(tiny_bundle / "encoder.onnx")
    tiles = probe_tiles(224, count=3)
    expected = engine.infer({"tiles": tiles})["features"]
    engine._batches = RecordedBatches(engine._run, torch.device("cpu"), Recorder())
    for _ in range(2):
        got = engine.infer({"tiles": tiles})["features"]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
