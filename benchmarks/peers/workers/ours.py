"""This package: one slide file to one feature file, as ``cmamil features`` does."""

from __future__ import annotations

from typing import Any

from cmamil_sdk.engines.gated import open_encoder
from cmamil_sdk.export.encoder import exported_encoder
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

PACKAGES = ["cmamil-sdk", "onnxruntime", "openvino", "numpy", "simplejpeg", "openslide-bin"]
FACTS: dict[str, str] = {}


def prepare(task: Any, _network: Any) -> Any:
    """``task.options``: ``precision`` as :func:`open_encoder`."""
    exported = exported_encoder("shufflenet_v2_x1_0", task.weights)
    engine = open_encoder(
        exported.graph,
        exported.parity,
        device="cpu",
        precision=task.options["precision"],
        callers=task.cores,
    ).engine
    FACTS["engine"] = engine.info.label
    FACTS["engine_reason"] = engine.info.reason
    recipe = TilingRecipe(scales=parse_scales("20x"))

    def run(slide: Any, _batch: int) -> tuple[int, Any]:
        done = extract_slide(
            slide,
            task.scratch,
            recipe=recipe,
            encoder=exported.info,
            engine=engine,
            workers=task.cores,
            resume=False,
        )

        def collect() -> tuple[Any, Any]:
            bag, _ = read_feature_file(done.path)
            return bag.coords["20x"], bag.features["20x"]

        return sum(done.tiles.values()), collect

    return run
