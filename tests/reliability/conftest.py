"""The files to try, the encoder they are tried with, and what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

from .files import TILE_PX

READERS = ("direct", "openslide")
MEMORY_MIB = 4096
PROBE = Path(__file__).with_name("probe.py")


def write_encoder(path: Path) -> None:
    """Mean colour of each sixteenth of a tile of 64 px: 48 features, without weights."""
    pooled = helper.make_node(
        "AveragePool", ["tiles"], ["pooled"], kernel_shape=[TILE_PX // 4] * 2,
        strides=[TILE_PX // 4] * 2,
    )  # fmt: skip
    flat = helper.make_node("Reshape", ["pooled", "shape"], ["features"])
    shape = numpy_helper.from_array(np.array([-1, 48], np.int64), "shape")
    graph = helper.make_graph(
        [pooled, flat],
        "means",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["n", 3, TILE_PX, TILE_PX])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 48])],
        [shape],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    facts = {"mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0], "mpp": None}
    path.with_name(f"{path.name}.json").write_text(json.dumps(facts))


class Meddler:
    """An engine that does something to the world before its second batch."""

    def __init__(self, engine: Engine, meddle: Callable[[], object]) -> None:
        self.info, self._engine, self._meddle = engine.info, engine, meddle
        self.batches = 0

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches += 1
        if self.batches == 2:
            self._meddle()
        return self._engine.infer(inputs)

    def close(self) -> None:
        self._engine.close()


def extract_in_process(
    slide: Path,
    folder: Path,
    *,
    tissue: str = "otsu",
    meddle: Callable[[], object] = lambda: None,
    **options: Any,
) -> Bag:
    """The features of a slide by the same encoder and scales, without a process of their own."""
    from cmamil_sdk.export.encoder import exported_encoder

    folder.mkdir(exist_ok=True)
    write_encoder(folder / "means.onnx")
    exported = exported_encoder(f"onnx:{folder / 'means.onnx'}", None)
    recipe = TilingRecipe(
        scales=parse_scales("10x,20x"), tile_px=TILE_PX, tissue=TissueRecipe(method=tissue)
    )
    result = extract_slide(
        slide,
        folder,
        recipe=recipe,
        encoder=exported.info,
        engine=Meddler(load_engine(exported.graph, device="cpu"), meddle),
        workers=1,
        **options,
    )
    return read_feature_file(result.path)[0]


def run_probe(folder: Path, slides: Sequence[Path], arguments: Sequence[Path]) -> dict[str, Any]:
    """Inspect ``slides`` and extract the features of all that ``arguments`` name, per reader."""
    encoder, plan, results = (folder / name for name in ("means.onnx", "plan.json", "results.json"))
    write_encoder(encoder)
    scales = ["--scales", "10x,20x"]
    document = {
        "slides": [str(slide) for slide in slides],
        "arguments": [str(argument) for argument in arguments],
        "readers": READERS,
        "out": str(folder / "features"),
        "inspect_options": scales,
        "features_options": [*scales, "--encoder", f"onnx:{encoder}", "--workers", "2"],
        "memory_mib": MEMORY_MIB,
    }
    plan.write_text(json.dumps(document), "utf-8")
    ended = subprocess.run(
        [sys.executable, str(PROBE), str(plan), str(results)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"the process died ({ended.returncode}): {ended.stderr[-2000:]}"
    return json.loads(results.read_text("utf-8"))
