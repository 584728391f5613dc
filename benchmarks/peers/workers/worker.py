"""A tool under test as a child process: start everything, say so, then run whenever asked.

This file and the drivers beside it run in the tool's own environment, where this package is not
installed: they import nothing of it, apart from drivers of tools that run in its environment.

    python worker.py DRIVER '{"weights": ..., "scratch": ..., "cores": 2}'

One JSON document a line on standard input asks for a run, one on standard output answers it. Imports
and the network's weights are loaded before the first; opening the slide, finding tissue, reading,
encoding and handing over the features are in every run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

Collect = Callable[[], tuple[Any, Any]]
"""-> coordinates ``[N, 2]`` (x, y of the corner; level-0 pixels) and features ``[N, 1024]``."""

Run = Callable[[Path, int], tuple[int, Collect]]
"""Slide file and batch size -> how many tiles were encoded, and what fetches them, which is not timed."""


@dataclass(frozen=True)
class Task:
    """What a driver is told.

    Attributes:
        weights: state dict of torchvision's ``shufflenet_v2_x1_0`` without its last layer.
        scratch: a folder of its own.
        cores: how many it may use.
        options: of this driver alone.
        tile_px: edge of a tile, level-0 pixels.
        mean, std: the network sees ``(tile / 255 - mean) / std``.
    """

    weights: Path
    scratch: Path
    cores: int
    options: dict[str, Any] = field(default_factory=dict)
    tile_px: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def load_network(weights: Path) -> Any:
    """The network in eval mode: normalised images ``[B, 3, 224, 224]`` -> features ``[B, 1024]``."""
    import torch  # noqa: PLC0415

    declare_torchvision_operators()
    from torchvision.models import shufflenet_v2_x1_0  # noqa: PLC0415

    network = shufflenet_v2_x1_0(weights=None)
    network.fc = torch.nn.Identity()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


_declared: list[Any] = []  # an operator lives as long as its library


def declare_torchvision_operators() -> None:
    """Let a torchvision built for CUDA be imported beside a CPU build of torch."""
    import torch  # noqa: PLC0415

    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
        importlib.import_module("torchvision")


def serve(run: Run, requests: Iterator[str], answers: TextIO) -> None:
    """Run whenever a line asks, until the lines end."""
    for line in requests:
        request = json.loads(line)
        started = time.perf_counter()
        tiles, collect = run(Path(request["slide"]), request["batch"])
        seconds = time.perf_counter() - started
        if request.get("keep"):
            import numpy as np  # noqa: PLC0415

            coords, features = collect()
            np.savez(request["keep"], coords=coords, features=features)
        print(json.dumps({"tiles": tiles, "wall_s": seconds}), file=answers, flush=True)


def versions(packages: list[str]) -> dict[str, str]:
    """Python's version and those of installed ``packages``."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Prepare the driver that is named, then serve."""
    # What a tool prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, document = sys.argv[1], json.loads(sys.argv[2])
    task = Task(
        weights=Path(document["weights"]),
        scratch=Path(document["scratch"]),
        cores=document["cores"],
        options=document["options"],
    )
    declare_torchvision_operators()
    driver = importlib.import_module(name)
    run = driver.prepare(task, load_network(task.weights))
    facts = getattr(driver, "FACTS", {})  # what a driver learnt while it prepared
    ready = {"ready": True, "versions": versions(driver.PACKAGES) | facts}
    print(json.dumps(ready), file=answers, flush=True)
    serve(run, iter(sys.stdin.readline, ""), answers)


if __name__ == "__main__":
    main()
