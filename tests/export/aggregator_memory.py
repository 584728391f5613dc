"""The most memory of a process that runs one aggregator on one bag, in MiB (Linux).

A program of its own (``python aggregator_memory.py GRAPH FEATURE_DIM FINEST_TILES PRECISION INPUTS``),
so that nothing else counts: the bag itself does, whose tiles lie four and sixteen to a coarser one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from cmamil_sdk.engines import load_engine


def bag(names: list[str], dim: int, finest_tiles: int) -> dict[str, np.ndarray]:
    """Features and index arrays, as the graph's inputs are called."""
    counts = {"20x": finest_tiles, "10x": finest_tiles // 4, "5x": finest_tiles // 16}
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for name in names:
        kind, _, scale = name.partition("_")
        rows = np.arange(counts[scale])
        if kind == "features":
            made[name] = rng.standard_normal((counts[scale], dim), dtype=np.float32)
        elif kind == "children":
            made[name] = 4 * rows[:, None] + np.arange(4)
        else:
            made[name] = rows[:, None] // 16
    return made


if __name__ == "__main__":
    graph, dim, tiles = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    precision = sys.argv[4]
    name = "openvino" if precision == "bf16" else "onnxruntime"
    engine = load_engine(graph, engine=name, device="cpu", precision=precision, threads=2)
    outputs = engine.infer(bag(sys.argv[5:], dim, tiles))
    assert all(np.isfinite(values).all() for values in outputs.values())
    status = Path("/proc/self/status").read_text("ascii")
    sys.stdout.write(str(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024))
