"""What was verified is what is used: a file exchanged after the check is never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle, load
from cmamil_sdk.bundle.verify import verify_files
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import BundleCorrupt, EngineMissing
from cmamil_sdk.files import FileEntry


def overwrite(path: Path, data: bytes) -> None:
    """In place where it is a file of its own: whoever has it open reads the new bytes."""
    if path.is_symlink():
        path.unlink()
    path.write_bytes(data)


def list_again(root: Path) -> None:
    """Have the manifest list all files that are there."""
    path = root / "manifest.json"
    document = json.loads(path.read_bytes())
    for file in root.glob("*.*"):
        if file != path:
            document["files"][file.name] = FileEntry.of(file).model_dump()
    overwrite(path, json.dumps(document).encode())


@pytest.fixture
def exchange_after_verify(copy_of_bundle, monkeypatch):
    """Have a file exchanged between the check of the whole bundle and its load."""

    def exchange(name: str, data: bytes) -> None:
        def verify(path, manifest) -> None:
            verify_files(path, manifest)
            overwrite(copy_of_bundle / name, data)

        monkeypatch.setattr(load, "verify_files", verify)

    return exchange


@pytest.mark.parametrize("name", ["encoder.onnx", "aggregator.onnx", "golden.npz"])
def test_a_file_exchanged_between_verify_and_load(
    copy_of_bundle, tiny_bundle, exchange_after_verify, name
):
    exchange_after_verify(name, (tiny_bundle / name).read_bytes() + b"\0")
    with pytest.raises(BundleCorrupt, match=rf"{name} is not the file that its manifest lists"):
        Bundle.load(copy_of_bundle, engine="onnxruntime", device="cpu")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_in_a_lower_precision(
    copy_of_bundle, tiny_bundle, exchange_after_verify, precision
):
    name = f"encoder.{precision}.onnx"
    graph = (tiny_bundle / "encoder.onnx").read_bytes()
    options = {"engine": "onnxruntime", "device": "cpu", "precision": precision}
    overwrite(copy_of_bundle / name, graph)
    with pytest.raises(EngineMissing, match=rf"no graph in {precision}.*{name}"):
        Bundle.load(copy_of_bundle, **options)  # it is there, but no manifest vouches for it
    list_again(copy_of_bundle)
    exchange_after_verify(name, graph + b"\0")
    with pytest.raises(BundleCorrupt, match=rf"{name} is not the file"):
        Bundle.load(copy_of_bundle, **options)


def test_later_loads_of_a_bundle_that_is_open(copy_of_bundle, tiny_bundle):
    bundle = Bundle.load(copy_of_bundle, engine="onnxruntime", device="cpu", callers=1)
    graph = tiny_bundle / "encoder.onnx"
    overwrite(copy_of_bundle / graph.name, graph.read_bytes() + b"\0")
    bundle.open_encoder(callers=1).close()  # the one that was tested, which holds the old bytes
    for use in (bundle.open_encoder, bundle.self_test, bundle.parity_table):
        with pytest.raises(BundleCorrupt, match=r"encoder\.onnx is not the file"):
            use()
    overwrite(copy_of_bundle / graph.name, graph.read_bytes())
    bundle.open_encoder(callers=1).close()
    (copy_of_bundle / "aggregator.onnx").unlink()
    with pytest.raises(BundleCorrupt, match=r"aggregator\.onnx is missing"):
        bundle.aggregator_differences()
    overwrite(copy_of_bundle / "golden.npz", b"")
    with pytest.raises(BundleCorrupt, match=r"golden\.npz is not the file"):
        bundle.self_test()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_every_engine_runs_the_bytes_that_were_compared(tiny_bundle, tmp_path, engine):
    """It has no need of the file any more, and keeps no second copy of it."""
    pytest.importorskip(engine)
    graph = tmp_path / "encoder.onnx"
    shutil.copyfile(tiny_bundle / "encoder.onnx", graph)
    hashes = {graph.name: FileEntry.of(graph).sha256}
    loaded = load_engine(graph, engine=engine, device="cpu", callers=1, hashes=hashes)
    graph.unlink()
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    assert loaded.infer({"tiles": tiles})["features"].shape == (2, 1280)
    if engine == "onnxruntime":
        assert loaded._session._model_bytes is None  # type: ignore[attr-defined]
    loaded.close()
    with pytest.raises(BundleCorrupt, match="missing"):
        load_engine(graph, engine=engine, device="cpu", hashes=hashes)
