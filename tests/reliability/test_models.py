"""Every bad bundle and every bad bag that was thought of ends in a typed error, and the rest goes on.

The answers are compared with docs/reliability.md; ``make reliability-tables`` writes them there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.bags import MAX_TILES
from cmamil_sdk.bundle.manifest import SCHEMA_VERSION
from cmamil_sdk.errors import CmamilError
from cmamil_sdk.features.bag import Bag

from .table import check_section

OURS = {"UNEXPECTED_ERROR"}
"""Reasons that would mean that a bad model or bag was not foreseen."""

DIM = 1280


class Damaged:
    """A copy of a bundle whose files are links, to be replaced one by one."""

    def __init__(self, bundle: Path, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        for file in bundle.iterdir():
            (root / file.name).symlink_to(file)

    def write(self, name: str, data: bytes, *, listed: bool = False) -> None:
        """Replace a file; ``listed`` makes the manifest agree with it."""
        path = self.root / name
        path.unlink()
        path.write_bytes(data)
        if listed:
            entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            self.change_manifest(lambda document: document["files"].update({name: entry}))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def change_manifest(self, change: Callable[[dict[str, Any]], Any]) -> None:
        document = json.loads(self.read("manifest.json"))
        change(document)
        self.write("manifest.json", json.dumps(document).encode())


def flip(name: str) -> Callable[[Damaged], None]:
    def damage(copy: Damaged) -> None:
        data = bytearray(copy.read(name))
        data[len(data) // 2] ^= 1
        copy.write(name, bytes(data))

    return damage


def relocate(location: str) -> Callable[[Damaged], None]:
    def damage(copy: Damaged) -> None:
        model = onnx.load(copy.root / "aggregator.onnx")
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        (copy.root / location).write_bytes(tensor.raw_data)
        set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        copy.write("aggregator.onnx", model.SerializeToString(), listed=True)

    return damage


def replace_graph(name: str, operator: str, shape: list[int | str]) -> Callable[[Damaged], None]:
    """A graph of one node from ``x`` to ``y``, or from ``tiles``."""

    def damage(copy: Damaged) -> None:
        kind = TensorProto.UINT8 if name == "encoder.onnx" else TensorProto.FLOAT
        source = "tiles" if name == "encoder.onnx" else "x"
        graph = helper.make_graph(
            [helper.make_node(operator, [source], ["y"])],
            "g",
            [helper.make_tensor_value_info(source, kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
        )
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        copy.write(name, model.SerializeToString(), listed=True)

    return damage


def other_golden(copy: Damaged) -> None:
    with np.load(copy.root / "golden.npz") as stored:
        golden = {name: stored[name] for name in stored.files}
    golden["aggregator/out/logits"] = golden["aggregator/out/logits"] + 1.0
    path = copy.root / "changed.npz"
    np.savez(path, **golden)
    copy.write("golden.npz", path.read_bytes(), listed=True)


TILES = ["n", 224, 224, 3]
BUNDLES: dict[str, Callable[[Damaged], Any]] = {
    "a byte of `encoder.onnx` changed": flip("encoder.onnx"),
    "a byte of `aggregator.onnx` changed": flip("aggregator.onnx"),
    "a byte of `golden.npz` changed": flip("golden.npz"),
    "half of `encoder.onnx` left": lambda c: c.write(
        "encoder.onnx", c.read("encoder.onnx")[: len(c.read("encoder.onnx")) // 2]
    ),
    "`golden.npz` missing": lambda c: (c.root / "golden.npz").unlink(),
    "`manifest.json` missing": lambda c: (c.root / "manifest.json").unlink(),
    "`manifest.json` cut short": lambda c: c.write("manifest.json", b'{"name": '),
    "a manifest of a newer version": lambda c: c.change_manifest(
        lambda d: d.update(schema_version=SCHEMA_VERSION + 1)
    ),
    "a manifest that lists a file outside": lambda c: c.change_manifest(
        lambda d: d["files"].update({"../x": d["files"]["golden.npz"]})
    ),
    "a manifest with an unknown field": lambda c: c.change_manifest(lambda d: d.update(code="x")),
    "`aggregator.onnx` is a text": lambda c: c.write("aggregator.onnx", b"text" * 99, listed=True),
    "weights of `aggregator.onnx` in a file outside": relocate("../weights.bin"),
    "weights of `aggregator.onnx` in a file beside it": relocate("weights.bin"),
    "an unknown operator in `aggregator.onnx`": replace_graph("aggregator.onnx", "Magic", ["n"]),
    "an unknown operator in `encoder.onnx`": replace_graph("encoder.onnx", "Magic", TILES),
    "`aggregator.onnx` is another's": replace_graph("aggregator.onnx", "Identity", ["n"]),
    "`encoder.onnx` is another's": replace_graph("encoder.onnx", "Identity", TILES),
    "`golden.npz` is of another model": other_golden,
}


def good_bag() -> Bag:
    rng = np.random.default_rng(4)
    counts = {"5x": 2, "10x": 6, "20x": 20}
    parent = {"5x": np.full(2, -1), "10x": np.arange(6) // 4, "20x": np.arange(20) // 4}
    return Bag(
        slide_id="s",
        scales=(),
        features={n: rng.normal(size=(c, DIM)).astype(np.float32) for n, c in counts.items()},
        coords={n: np.zeros((c, 2), np.int64) for n, c in counts.items()},
        parent=parent,
        tissue={n: np.ones(c, np.float32) for n, c in counts.items()},
    )


def with_features(change: Callable[[np.ndarray], np.ndarray], *scales: str) -> Callable[[Bag], Bag]:
    def made(bag: Bag) -> Bag:
        changed = {n: change(x) if n in scales else x for n, x in bag.features.items()}
        return replace(bag, features=changed)

    return made


def without_rows(bag: Bag, scales: tuple[str, ...]) -> Bag:
    def cut(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {n: x[:0] if n in scales else x for n, x in arrays.items()}

    parts = {part: cut(getattr(bag, part)) for part in ("features", "coords", "parent", "tissue")}
    return replace(bag, **parts)


def with_value(value: float) -> Callable[[Bag], Bag]:
    def change(features: np.ndarray) -> np.ndarray:
        changed = features.copy()
        changed[3, 5] = value
        return changed

    return with_features(change, "20x")


def with_parent(row: int) -> Callable[[Bag], Bag]:
    def made(bag: Bag) -> Bag:
        return replace(bag, parent={**bag.parent, "20x": np.full(20, row)})

    return made


ALL = ("5x", "10x", "20x")
BAGS: dict[str, Callable[[Bag], Bag]] = {
    "no tile at any scale": lambda bag: without_rows(bag, ALL),
    "no tile at 5x": lambda bag: without_rows(bag, ("5x",)),
    "one scale missing": lambda bag: replace(bag, scales=bag.scales[1:]),
    "features of another width": with_features(lambda x: x[:, :512], *ALL),
    "features in float16": with_features(lambda x: x.astype(np.float16), *ALL),
    "features in float64, at one scale": with_features(lambda x: x.astype(np.float64), "10x"),
    "a feature that is NaN": with_value(np.nan),
    "a feature that is infinite": with_value(np.inf),
    "more tiles than a graph takes": with_features(
        lambda _: np.broadcast_to(np.float32(0), (MAX_TILES + 1, DIM)), "20x"
    ),
    "a parent that is not there": with_parent(99),
    "more tiles in a parent than fit": with_parent(0),
}


def answer_of(work: Callable[[], object], folder: Path) -> str:
    """Reason and message of the error that must come, without what differs between machines."""
    with pytest.raises(CmamilError) as caught:
        work()
    reason = caught.value.reason
    assert reason not in OURS, caught.value
    text = str(caught.value).replace(f"{folder}/", "")
    text = re.sub(r"\b[0-9a-f]{12}…", "…", text)
    text = re.sub(r"run by onnxruntime .*? on cpu \(.*?\);", "run by onnxruntime (…);", text)
    text = re.sub(r"aggregator difference \S+", "aggregator difference …", text)
    return f"{reason}: {text}"


def test_models_and_bags(tiny_bundle: Path, tmp_path: Path) -> None:
    def load(root: Path) -> Bundle:
        return Bundle.load(root, engine="onnxruntime", device="cpu")

    lines = ["| bundle | `Bundle.load` |", "|---|---|"]
    for number, (what, damage) in enumerate(BUNDLES.items()):
        copy = Damaged(tiny_bundle, tmp_path / str(number) / "tiny" / "1")
        damage(copy)
        said = answer_of(lambda root=copy.root: load(root), copy.root.parents[1])
        lines.append(f"| {what} | {said} |")
    bundle = load(tiny_bundle)
    good = replace(good_bag(), scales=bundle.manifest.recipe.scales)
    before = bundle.aggregate(good)
    lines += ["", "| bag | `Bundle.aggregate` |", "|---|---|"]
    for what, change in BAGS.items():
        bad = change(good)
        lines.append(f"| {what} | {answer_of(lambda bag=bad: bundle.aggregate(bag), tmp_path)} |")
        assert (bundle.aggregate(good).logits == before.logits).all()
    check_section("models", lines)
