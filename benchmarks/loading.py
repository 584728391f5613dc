"""From a bundle's directory to a predictor that is ready: ``python -m ... BUNDLE`` times it once.

In a process of its own each time, because a runtime's first graph takes longer than its second. Imports
come before: they are Python's and the libraries' time, not the bundle's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import EngineMissing
from cmamil_sdk.predict import LocalPredictor

from .fresh_process import in_fresh_process
from .pairs import spread

_RUNTIMES = ("onnxruntime", "openvino")


def measure_loading(
    bundle: Path, runs: int, on_run: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Seconds of every run, and their median; hashes, both graphs and the golden test are in them."""
    report = on_run or (lambda _done, _total: None)
    found = []
    for number in range(runs):
        report(number, runs)
        found.append(in_fresh_process(__name__, str(bundle), what=f"Loading {bundle}"))
    ready = [run["ready_s"] for run in found]
    return {
        "engine": found[0]["engine"],
        "load_s": statistics.median(run["load_s"] for run in found),
        "ready_s": statistics.median(ready),
        "spread": spread(ready),
        "runs_s": ready,
    }


def _main(bundle: Path) -> None:
    for name in _RUNTIMES:
        with contextlib.suppress(EngineMissing):
            importlib.import_module(f"cmamil_sdk.engines.{name}")
    started = time.perf_counter()
    loaded = Bundle.load(bundle, device="cpu")
    load_s = time.perf_counter() - started
    predictor = LocalPredictor(loaded)
    ready_s = time.perf_counter() - started
    predictor.close()
    row = {"engine": loaded.engine_label, "load_s": load_s, "ready_s": ready_s}
    sys.stdout.write(json.dumps(row))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))


__all__ = ["measure_loading"]
