"""How much of an aggregator's time goes into matrix products, by onnxruntime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime as ort

from cmamil_sdk.engines.onnxruntime import session_options
from cmamil_sdk.export.probe_bags import Arrays

_PRODUCTS = frozenset(["FusedGemm", "FusedMatMul", "Gemm", "MatMul"])
_WARMUP, _RUNS = 3, 20

_Event = dict[str, Any]


def products_share(graph: Path, inputs: Arrays, threads: int) -> float:
    """Share of a run on a CPU in fp32 that matrix products take, with what is fused into them.

    The median of some runs. It is a little too small, for a run that is profiled also writes its
    profile.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        for _ in range(_WARMUP + _RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return median(list(_shares(events))[_WARMUP:])


def _shares(events: list[_Event]) -> Iterator[float]:
    """Of each run; the events of its operators come before its own."""
    products_us = 0
    for event in events:
        if event["name"] == "model_run":
            yield products_us / event["dur"]
            products_us = 0
        elif event.get("args", {}).get("op_name") in _PRODUCTS:
            products_us += event["dur"] if event["name"].endswith("_kernel_time") else 0


__all__ = ["products_share"]
