"""Plans for a bundle: into the bundle while it is written, or into an engine cache afterwards."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH
from cmamil_sdk.bundle.plans import PLANS
from cmamil_sdk.engines.base import RuntimeName
from cmamil_sdk.engines.cuda import Cuda
from cmamil_sdk.engines.graphs import graph_in
from cmamil_sdk.engines.plans import MANIFEST, PLAN_PRECISIONS, PLAN_SUFFIX, PlanKey
from cmamil_sdk.engines.tensorrt_library import load_library
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import FileEntry, write_atomic, write_json
from cmamil_sdk.tiling.recipe import Scale

from .encoder_cache import cache_directory
from .tensorrt import (
    BuiltPlan,
    OnProgress,
    ProfilesOf,
    aggregator_profiles,
    build_plan,
    encoder_profiles,
    known_capabilities,
)


@dataclass(frozen=True)
class PlanTarget:
    """Which TensorRT is going to run the plans, on which GPUs."""

    runtime: RuntimeName
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class WrittenPlan:
    """A plan on disk; ``size`` in bytes."""

    path: Path
    key: PlanKey
    size: int
    seconds: float


def plan_target(runtime: RuntimeName, asked: Sequence[str]) -> PlanTarget:
    """The target for the GPUs asked for, else for that of this machine.

    Args:
        runtime: the library that is going to run the plans.
        asked: compute capabilities, of ``tensorrt-rtx`` alone: ``tensorrt`` builds for the GPU that it
            finds.

    Raises:
        EngineMissing: the runtime is not installed, or it is ``tensorrt`` and there is no GPU here.
        FieldInvalid: no GPU was named and there is none here, or ``tensorrt-rtx`` does not build for it.
    """
    library = load_library(runtime)
    if not asked and runtime == "tensorrt-rtx" and not Cuda.device_count():
        raise FieldInvalid(
            "--compute-capability is needed where there is no GPU; name those that will run the plans, "
            "for example 89 or 86,89."
        )
    capabilities = tuple(asked) or (Cuda(0).compute_capability,)
    if runtime == "tensorrt-rtx":
        known_capabilities(library, capabilities)
    return PlanTarget(runtime, capabilities)


def write_bundle_plans(
    root: Path,
    scales: Sequence[Scale],
    target: PlanTarget,
    on_progress: OnProgress | None = None,
) -> list[WrittenPlan]:
    """Build plans of both graphs into ``root/engines``, before the bundle's manifest is written.

    Raises:
        BundleUnsupported, EngineMissing, FieldInvalid: as
            :func:`~cmamil_sdk.export.tensorrt.build_plan`.
    """
    written = []
    for graph, plan, seconds in _plans(root, scales, target, on_progress):
        path, _ = _write_files(root / PLANS / plan.document.key.digest, graph, plan)
        written.append(WrittenPlan(path, plan.document.key, len(plan.data), seconds))
    return written


def cache_plans(
    root: Path,
    scales: Sequence[Scale],
    target: PlanTarget,
    cache: Path,
    on_progress: OnProgress | None = None,
) -> list[WrittenPlan]:
    """Build plans of a finished bundle into an engine cache; a plan of the same key is replaced.

    Raises:
        BundleUnsupported, EngineMissing, FieldInvalid: as
            :func:`~cmamil_sdk.export.tensorrt.build_plan`.
    """
    written = []
    for graph, plan, seconds in _plans(root, scales, target, on_progress):
        path = _write_cached(cache / plan.document.key.digest, graph, plan)
        written.append(WrittenPlan(path, plan.document.key, len(plan.data), seconds))
    return written


def _plans(
    root: Path, scales: Sequence[Scale], target: PlanTarget, on_progress: OnProgress | None
) -> Iterator[tuple[str, BuiltPlan, float]]:
    capability = "-".join(target.compute_capabilities)
    timing_cache = cache_directory() / "tensorrt" / f"{capability}.timing"
    profiles: dict[str, ProfilesOf] = {
        ENCODER_GRAPH: encoder_profiles,
        AGGREGATOR_GRAPH: partial(aggregator_profiles, scales=scales),
    }
    for graph, precision in itertools.product(profiles, PLAN_PRECISIONS):
        source = graph_in(root / graph, precision)
        if not source.is_file():  # not exported in it
            continue
        started = time.perf_counter()
        plan = build_plan(
            source,
            profiles[graph],
            precision=precision,
            runtime=target.runtime,
            compute_capabilities=target.compute_capabilities,
            timing_cache=timing_cache if target.runtime == "tensorrt" else None,
            on_progress=on_progress,
        )
        yield graph, plan, time.perf_counter() - started


def _write_files(folder: Path, graph: str, plan: BuiltPlan) -> tuple[Path, Path]:
    stem = folder / Path(graph).stem
    file, document = stem.with_suffix(PLAN_SUFFIX), stem.with_suffix(".json")
    write_atomic(file, plan.data)
    write_json(document, plan.document.model_dump(mode="json"))
    return file, document


def _write_cached(folder: Path, graph: str, plan: BuiltPlan) -> Path:
    """A folder with its own manifest, renamed when it is complete."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        files = _write_files(temporary, graph, plan)
        listing = {file.name: FileEntry.of(file).model_dump() for file in files}
        write_json(temporary / MANIFEST, {"files": listing})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / files[0].name


__all__ = [
    "PlanTarget",
    "WrittenPlan",
    "cache_plans",
    "plan_target",
    "write_bundle_plans",
]
