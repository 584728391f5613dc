"""TensorRT's engine: on a double of the device here, on a device where there is one."""

from __future__ import annotations

import inspect
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.engines import available_engines, load_engine
from cmamil_sdk.engines.cuda import Cuda
from cmamil_sdk.engines.plans import (
    BUILDER_SETTINGS,
    ListedPlan,
    PlanDocument,
    PlanKey,
    Profile,
    TensorSpec,
    this_platform,
)
from cmamil_sdk.engines.tensorrt import TensorRTEngine, fitting_profile
from cmamil_sdk.errors import (
    BundleUnsupported,
    EngineMissing,
    FieldInvalid,
    GpuOutOfMemory,
    TooManyTiles,
    UnexpectedError,
)
from cmamil_sdk.files import sha256_of_file

from .tensorrt_double import FakeCuda, FakeEngine, fake_library
from .test_onnxruntime import save_graph

BATCHES = (2, 4)
ENCODER: tuple[Profile, ...] = tuple({"tiles": ((b, 4, 4, 3),) * 3} for b in BATCHES)
TILES = {"tiles": TensorSpec(dtype="uint8", shape=("batch", 4, 4, 3))}
SPECS = {
    "features_5x": TensorSpec(dtype="float32", shape=("n_5x", 4)),
    "features_20x": TensorSpec(dtype="float32", shape=("n_20x", 4)),
    "children_5x": TensorSpec(dtype="int64", shape=("n_5x", 2)),
    "ancestor_20x": TensorSpec(dtype="int64", shape=("n_20x", 1)),
}


def bag_profile(coarse: int, fine: int) -> Profile:
    rows = {"n_5x": coarse, "n_20x": fine}
    return {
        name: ((1, spec.shape[1]), (1, spec.shape[1]), (rows[str(spec.shape[0])], spec.shape[1]))
        for name, spec in SPECS.items()
    }  # type: ignore[return-value]


AGGREGATOR = (bag_profile(2, 4), bag_profile(20, 40))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Path:
    """``encoder``: the mean colour of tiles. ``aggregator``: children's and ancestors' features."""
    folder = tmp_path_factory.mktemp("graphs")
    save_graph(
        folder / "encoder.onnx",
        [
            ("Cast", ["tiles"], ["float"], {"to": 1}),
            ("Flatten", ["float"], ["flat"], {"axis": 1}),
            ("Softmax", ["flat"], ["features"], {"axis": 1}),
        ],
        {"tiles": ("UINT8", ["batch", 4, 4, 3])},
        {"features": ("FLOAT", ["batch", 48])},
    )
    save_graph(
        folder / "aggregator.onnx",
        [
            ("Gather", ["features_20x", "children_5x"], ["inside"], {"axis": 0}),
            ("Gather", ["features_5x", "ancestor_20x"], ["around"], {"axis": 0}),
        ],
        {
            name: ("INT64" if spec.dtype == "int64" else "FLOAT", list(spec.shape))
            for name, spec in SPECS.items()
        },
        {"inside": ("FLOAT", ["n_5x", 2, 4]), "around": ("FLOAT", ["n_20x", 1, 4])},
    )
    return folder


def open_engine(
    graph: Path, cuda: FakeCuda, profiles: Any = None, held: Any = None, plan: Path | None = None
) -> TensorRTEngine:
    """The engine on the double; the "plan" is the graph itself and holds the profiles ``held``."""
    is_encoder = graph.stem == "encoder"
    profiles = profiles or (ENCODER if is_encoder else AGGREGATOR)
    key = PlanKey(
        graph_sha256="a" * 64,
        runtime="tensorrt-rtx",
        runtime_version="9.9",
        compute_capabilities=("89",),
        precision="fp32",
        profiles=profiles,
        builder=BUILDER_SETTINGS,
        platform=this_platform(),
    )
    file = plan or graph
    document = PlanDocument(key=key, inputs=TILES if is_encoder else SPECS)
    return TensorRTEngine(
        graph,
        ListedPlan(file, sha256_of_file(file), document),
        library=fake_library(cuda, held or profiles),
        cuda=cuda,  # type: ignore[arg-type]
        reason="asked for",
    )


def tiles(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (n, 4, 4, 3), dtype=np.uint8)


def bag(coarse: int, fine: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(coarse + fine)
    return {
        "features_5x": rng.normal(size=(coarse, 4)).astype(np.float32),
        "features_20x": rng.normal(size=(fine, 4)).astype(np.float32),
        "children_5x": rng.integers(-1, fine, (coarse, 2)),
        "ancestor_20x": rng.integers(-1, coarse, (fine, 1)),
    }


def test_batches_of_any_size_are_filled_or_split_and_come_out_alike(graphs):
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    expected = load_engine(graphs / "encoder.onnx", engine="onnxruntime", device="cpu")
    for n in (1, 2, 3, 4, 5, 11, 1, 3):
        got = engine.infer({"tiles": tiles(n, n)})["features"]
        np.testing.assert_array_equal(got, expected.infer({"tiles": tiles(n, n)})["features"])
    assert (engine.info.label, engine.info.device) == ("tensorrt-rtx-cuda-fp32", "cuda:0")


def test_what_fills_a_batch_does_not_depend_on_the_batch_before(graphs):
    """After a full batch of other tiles, memory behind a smaller one is cleared again."""
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    seen = []
    engine._engine.session, session = None, engine._engine.session

    class Watch:
        def get_outputs(self):
            return session.get_outputs()

        def run(self, names, feeds):
            seen.append(feeds["tiles"].copy())
            return session.run(names, feeds)

    engine._engine.session = Watch()
    engine.infer({"tiles": tiles(4) + 1})
    engine.infer({"tiles": tiles(3)})
    assert (seen[-1][3] == 0).all()
    assert (seen[-1][:3] == tiles(3)).all()


def test_batch_sizes_are_recorded_once_and_launched_again(graphs):
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    for _ in range(5):
        engine.infer({"tiles": tiles(4)})
    assert (len(cuda.graphs), cuda.launches) == (1, 4)  # the first runs without
    engine.infer({"tiles": tiles(8)})
    assert (len(cuda.graphs), cuda.launches) == (1, 6)
    bags = open_engine(graphs / "aggregator.onnx", bag_cuda := FakeCuda())
    for _ in range(3):
        bags.infer(bag(2, 3))
    assert bag_cuda.launches == 0  # their sizes change


def test_bags_take_the_first_profile_with_room(graphs):
    engine = open_engine(graphs / "aggregator.onnx", FakeCuda())
    expected = load_engine(graphs / "aggregator.onnx", engine="onnxruntime", device="cpu")
    for coarse, fine in ((1, 1), (2, 4), (3, 4), (2, 5), (20, 40), (1, 30), (2, 4)):
        inputs = bag(coarse, fine)
        got, wanted = engine.infer(inputs), expected.infer(inputs)
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            np.testing.assert_array_equal(got[name], value)
    with pytest.raises(TooManyTiles, match="41 tiles"):
        engine.infer(bag(20, 41))
    shapes = {name: array.shape for name, array in bag(2, 4).items()}
    assert fitting_profile(AGGREGATOR, shapes) == 0
    assert fitting_profile(AGGREGATOR, shapes | {"children_5x": (3, 2)}) == 1
    assert fitting_profile(AGGREGATOR, shapes | {"features_20x": (41, 4)}) is None


def bad_inputs() -> dict[str, tuple[dict[str, Any], str]]:
    good = bag(2, 4)
    return {
        "missing": ({"features_5x": good["features_5x"]}, "missing"),
        "dtype": (good | {"features_5x": good["features_5x"].astype(np.float64)}, "float64"),
        "int32": (good | {"children_5x": good["children_5x"].astype(np.int32)}, "int32"),
        "width": (good | {"features_20x": good["features_20x"][:, :3]}, r"\[4, 3\]"),
        "no tiles": (good | {"features_20x": good["features_20x"][:0]}, "no empty axis"),
        "unequal": (good | {"children_5x": good["children_5x"][:1]}, "equally long"),
        "child": (good | {"children_5x": np.full((2, 2), 4)}, "4 rows of features_20x"),
        "ancestor": (good | {"ancestor_20x": np.full((4, 1), 2)}, "2 rows of features_5x"),
        "below": (good | {"ancestor_20x": np.full((4, 1), -2)}, "2 rows of features_5x"),
        "unknown": (good | {"z": good["features_5x"]}, "no input z"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_refused_and_the_engine_still_works(graphs, case):
    engine = open_engine(graphs / "aggregator.onnx", FakeCuda())
    inputs, said = bad_inputs()[case]
    before = engine.infer(bag(2, 4))
    with pytest.raises(FieldInvalid, match=said):
        engine.infer(inputs)
    np.testing.assert_array_equal(engine.infer(bag(2, 4))["inside"], before["inside"])


class OnDevice:
    """Speaks of an array as CuPy does."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__array_interface__ | {"strides": strides}


def test_arrays_on_the_device_are_taken_as_they_lie(graphs):
    engine = open_engine(graphs / "encoder.onnx", FakeCuda())
    got = engine.infer({"tiles": OnDevice(tiles(5))})["features"]  # type: ignore[dict-item]
    np.testing.assert_array_equal(got, engine.infer({"tiles": tiles(5)})["features"])
    with pytest.raises(FieldInvalid, match="not contiguous"):
        engine.infer({"tiles": OnDevice(tiles(5), (1, 2, 3, 4))})  # type: ignore[dict-item]
    bags = open_engine(graphs / "aggregator.onnx", FakeCuda())
    with pytest.raises(FieldInvalid, match="ancestor_20x is on the device"):
        bags.infer(bag(2, 4) | {"ancestor_20x": OnDevice(bag(2, 4)["ancestor_20x"])})


def test_views_are_read_right(graphs):
    engine = open_engine(graphs / "encoder.onnx", FakeCuda())
    wide = np.repeat(tiles(3), 2, axis=0)
    np.testing.assert_array_equal(
        engine.infer({"tiles": wide[::2]})["features"],
        engine.infer({"tiles": tiles(3)})["features"],
    )


def test_several_callers_have_contexts_of_their_own(graphs):
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    sizes = [1, 4, 3, 9, 2, 7]
    alone = [engine.infer({"tiles": tiles(n, n)})["features"] for n in sizes]
    together: list[np.ndarray | None] = [None] * len(sizes)

    def call(position: int) -> None:
        n = sizes[position]
        together[position] = engine.infer({"tiles": tiles(n, n)})["features"]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(alone, together, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert len(cuda.streams) <= 4  # two callers at a time, two profiles


def test_closing_gives_everything_back(graphs):
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    for n in (1, 4, 4, 9):
        engine.infer({"tiles": tiles(n)})
    assert cuda.memory
    assert cuda.graphs
    engine.close()
    assert (cuda.memory, cuda.streams, cuda.graphs) == ({}, set(), [])


def test_work_that_fails_leaves_nothing_behind(graphs, monkeypatch):
    cuda = FakeCuda()
    engine = open_engine(graphs / "encoder.onnx", cuda)
    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "takes_work", False)
        with pytest.raises(UnexpectedError, match="did not take"):
            engine.infer({"tiles": tiles(2)})
    assert (cuda.memory, cuda.streams) == ({}, set())
    assert engine.infer({"tiles": tiles(2)})["features"].shape == (2, 48)
    cuda.room = 10
    with pytest.raises(GpuOutOfMemory):
        engine.infer({"tiles": tiles(4)})
    cuda.room = 2**30
    assert engine.infer({"tiles": tiles(4)})["features"].shape == (4, 48)


def test_a_constructor_that_fails_leaves_nothing_behind(graphs, monkeypatch, tmp_path):
    cuda = FakeCuda()
    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "create_execution_context", lambda *_: None)
        with pytest.raises(GpuOutOfMemory, match="no memory for profile 0"):
            open_engine(graphs / "encoder.onnx", cuda)
    assert cuda.streams == set()
    with pytest.raises(BundleUnsupported, match="profiles are not those of its key"):
        open_engine(graphs / "encoder.onnx", cuda, held=ENCODER[:1])
    (tmp_path / "encoder.plan").write_bytes(b"no plan")
    with pytest.raises(BundleUnsupported, match="this is no plan"):
        open_engine(graphs / "encoder.onnx", cuda, plan=tmp_path / "encoder.plan")
    with pytest.raises(BundleUnsupported, match="not those of our graphs"):
        monkeypatch.setattr(FakeEngine, "get_tensor_dtype", lambda *_: "float16")
        open_engine(graphs / "encoder.onnx", cuda)
    assert (cuda.memory, cuda.streams) == ({}, set())


def public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def test_the_double_has_the_calls_of_the_real_one():
    assert public(FakeCuda) == public(Cuda)


CALLS: dict[str, tuple[Any, ...]] = {
    "activate": (),
    "new_stream": (),
    "destroy_stream": (7,),
    "synchronize": (7,),
    "allocate": (64,),
    "free": (64,),
    "copy": (64, 128, 8, 7),
    "clear": (64, 8, 7),
    "begin_capture": (7,),
    "end_capture": (7,),
}


def without_device() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if Cuda.device_count():
        pytest.skip("this machine has a CUDA device")


@pytest.mark.parametrize("name", CALLS)
def test_cuda_takes_our_arguments_and_says_that_there_is_no_driver(name):
    """Without a driver each call fails with CUDA's own error, and with no other."""
    without_device()
    cuda = object.__new__(Cuda)
    cuda._runtime = pytest.importorskip("cuda.bindings.runtime")
    cuda.index = 0
    with pytest.raises(EngineMissing, match=r"cuda:0 failed in cuda\w+ \(CUDA driver version"):
        getattr(cuda, name)(*CALLS[name])
    with pytest.raises(EngineMissing, match="cudaDeviceGetAttribute"):
        _ = cuda.compute_capability


def test_asking_for_tensorrt_says_what_is_missing(graphs, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    without_device()
    graph = graphs / "encoder.onnx"
    with pytest.raises(EngineMissing, match="no device cuda:0"):
        load_engine(graph, engine="tensorrt-rtx")
    with pytest.raises(EngineMissing, match="--engine onnxruntime"):
        load_engine(graph, engine="tensorrt-rtx", device="cpu")
    about = available_engines()["tensorrt-rtx"]
    assert about["available"] is False
    assert about["version"]
    assert "no device" in str(about["why"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineMissing, match=r"install cmamil-sdk\[tensorrt-rtx\]"):
        load_engine(graph, engine="tensorrt-rtx")
    assert "cmamil-sdk[tensorrt-rtx]" in str(available_engines()["tensorrt-rtx"]["fix"])


def test_tensorrt_itself_tells_where_its_libraries_are(graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineMissing, match="NVIDIA's own package index"):
        load_engine(graphs / "encoder.onnx", engine="tensorrt")
