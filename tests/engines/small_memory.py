"""Engines in a process with little memory: ``python -m tests.engines.small_memory GRAPH``.

Writes, as JSON, what each answers for so many rows: the sum, or the reason of the error.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.errors import CmamilError

NAMES = ("onnxruntime", "torch")
LIMIT_BYTES = 6 * 2**30
ROWS = (3, 60_000, 3, 3, 2_000, 60_000, 4_000, 3)
"""The scores of 60,000 rows take 14 GB."""


def answers(engine: Engine) -> list[float | str]:
    found: list[float | str] = []
    for rows in ROWS:
        try:
            found.append(float(engine.infer({"x": np.ones((rows, 4), np.float32)})["y"].sum()))
        except CmamilError as problem:
            found.append(problem.reason)
    return found


if __name__ == "__main__":
    graph = Path(sys.argv[1])
    engines = {name: load_engine(graph, engine=name, device="cpu", callers=1) for name in NAMES}
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    json.dump({name: answers(engine) for name, engine in engines.items()}, sys.stdout)
