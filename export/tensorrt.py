"""TensorRT plans of a bundle's graphs, built through the Python API; RTX plans need no GPU to build."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from cmamil_sdk.engines.base import Precision, RuntimeName
from cmamil_sdk.engines.plans import (
    BUILDER_SETTINGS,
    PlanDocument,
    PlanKey,
    Profile,
    Shape,
    TensorSpec,
    this_platform,
)
from cmamil_sdk.engines.tensorrt_library import load_library, make_logger
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid
from cmamil_sdk.files import write_atomic
from cmamil_sdk.tiling.recipe import Scale

from .graph import all_nodes

ENCODER_BATCHES = (8, 32, 64, 128)
"""Each has a profile of its own, of that very size: an engine fills batches up to the next."""
AGGREGATOR_FINEST_TILES = (2_048, 16_384, 65_536)
"""Largest bag of each profile, in tiles of the finest scale."""
_SHOWN_CHARACTERS = 300

OnProgress = Callable[[str, int, int], None]
ProfilesOf = Callable[[Mapping[str, TensorSpec]], tuple[Profile, ...]]


@dataclass(frozen=True)
class BuiltPlan:
    """A plan's bytes, and what they were built from."""

    data: bytes
    document: PlanDocument


def encoder_profiles(inputs: Mapping[str, TensorSpec]) -> tuple[Profile, ...]:
    """One profile per batch size, for ``tiles [B, px, px, 3]``."""
    return tuple(
        {name: (_sized(spec, batch),) * 3 for name, spec in inputs.items()}
        for batch in ENCODER_BATCHES
    )


def aggregator_profiles(
    inputs: Mapping[str, TensorSpec], scales: Sequence[Scale]
) -> tuple[Profile, ...]:
    """One profile per largest bag; each begins at one tile, so that an odd bag fits a later one.

    Where a tile of the finest scale has ``r * r`` in its parent, a profile is made best for bags in
    which all are tissue, and has room for bags in which only ``r`` are.
    """
    return tuple(_bag_profile(inputs, scales, limit) for limit in AGGREGATOR_FINEST_TILES)


def build_plan(
    graph: Path,
    profiles_of: ProfilesOf,
    *,
    runtime: RuntimeName,
    compute_capabilities: Sequence[str],
    precision: Precision = "fp32",
    timing_cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> BuiltPlan:
    """Build the plan of a graph.

    Args:
        graph: an ONNX file of a bundle.
        profiles_of: from the graph's inputs to its optimisation profiles.
        runtime: which TensorRT is going to run it.
        compute_capabilities: GPUs to build for, as in ``89``; of ``tensorrt``, that of this machine.
        precision: of the graph, whose types TensorRT takes as they are.
        timing_cache: file that keeps the times of kernels between builds; of no use to
            ``tensorrt-rtx``, which takes none.
        on_progress: told the phase, steps done and steps in all; called by TensorRT's threads.

    Raises:
        EngineMissing: the runtime is not installed.
        FieldInvalid: a compute capability that the runtime does not build for.
        BundleUnsupported: TensorRT does not take the graph; says at which nodes.
    """
    library = load_library(runtime)
    logger = make_logger(library)
    data = graph.read_bytes()
    model = onnx.load_model_from_string(data)
    builder = library.Builder(logger)
    flags = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(data):
        problems = [parser.get_error(number) for number in range(parser.num_errors)]
        raise _refused(graph, runtime, library, [_parser_error(e, model) for e in problems])
    inputs = _inputs(model)
    profiles = profiles_of(inputs)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(
        library.MemoryPoolType.WORKSPACE, int(BUILDER_SETTINGS["workspace_mib"]) * 2**20
    )
    if not BUILDER_SETTINGS["tf32"]:
        config.clear_flag(library.BuilderFlag.TF32)
    if runtime == "tensorrt-rtx":
        # The number of them first, or setting one fails.
        config.num_compute_capabilities = len(compute_capabilities)
        for number, value in enumerate(known_capabilities(library, compute_capabilities)):
            config.set_compute_capability(value, number)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in shapes.items():
            profile.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(profile)
    # TensorRT does not keep the monitor alive: this name does, until the plan is built.
    monitor = None if on_progress is None else _progress_monitor(library, on_progress)
    config.progress_monitor = monitor
    if timing_cache is not None:
        _read_timing_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _refused(graph, runtime, library, logger.errors)
    if timing_cache is not None:
        write_atomic(timing_cache, bytes(config.get_timing_cache().serialize()))
    key = PlanKey(
        graph_sha256=hashlib.sha256(data).hexdigest(),
        runtime=runtime,
        runtime_version=str(library.__version__),
        compute_capabilities=tuple(compute_capabilities),
        precision=precision,
        profiles=profiles,
        builder=BUILDER_SETTINGS,
        platform=this_platform(),
    )
    return BuiltPlan(bytes(serialized), PlanDocument(key=key, inputs=inputs))


def known_capabilities(library: Any, wanted: Sequence[str]) -> list[Any]:
    """The library's own values of compute capabilities such as ``89``.

    Raises:
        FieldInvalid: one for which tensorrt-rtx does not build.
    """
    prefix = "SM"
    known = {
        name.removeprefix(prefix): value
        for name, value in library.ComputeCapability.__members__.items()
        if name.startswith(prefix)
    }
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise FieldInvalid(
            f"--compute-capability {', '.join(unknown)}: tensorrt-rtx {library.__version__} builds for "
            f"{', '.join(known)}; name one or several of them."
        )
    return [known[name] for name in wanted]


def _inputs(model: onnx.ModelProto) -> dict[str, TensorSpec]:
    """Type and shape of each input of a graph."""
    specs = {}
    for port in model.graph.input:
        tensor = port.type.tensor_type
        specs[port.name] = TensorSpec(
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
            shape=tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim),
        )
    return specs


def _sized(spec: TensorSpec, rows: int) -> Shape:
    """The shape with its dynamic axes, all of which count rows, so long."""
    return tuple(axis if isinstance(axis, int) else rows for axis in spec.shape)


def _bag_profile(
    inputs: Mapping[str, TensorSpec], scales: Sequence[Scale], finest_tiles: int
) -> Profile:
    best, largest = {}, {}
    tiles, room = finest_tiles // 2, finest_tiles
    for scale, coarser in itertools.zip_longest(reversed(scales), list(reversed(scales))[1:]):
        best[scale.name], largest[scale.name] = tiles, room
        if coarser is not None:
            ratio = round(coarser.mpp / scale.mpp)
            tiles, room = max(1, tiles // ratio**2), max(1, room // ratio)
    profile = {}
    for name, spec in inputs.items():
        scale_name = name.partition("_")[2]
        profile[name] = (
            _sized(spec, 1),
            _sized(spec, best[scale_name]),
            _sized(spec, largest[scale_name]),
        )
    return profile


def _read_timing_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # One of another GPU is refused, and the build takes the times anew.
    config.set_timing_cache(cache, ignore_mismatch=False)


def _progress_monitor(library: Any, on_progress: OnProgress) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            on_progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            on_progress(phase, step + 1, self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            on_progress(phase, self.steps[phase], self.steps[phase])

    return Monitor()


def _parser_error(error: Any, model: onnx.ModelProto) -> str:
    """Operator and name of the node, and what the parser says of it."""
    operator, name = error.node_operator(), error.node_name()
    if not name:
        # Some importers do not say which node they were at, but have the operator in their name.
        operator = error.func().removeprefix("import")
        name = ", ".join(node.name for node in all_nodes(model.graph) if node.op_type == operator)
    return f"{operator} {name}: {error.desc()}"


def _refused(
    graph: Path, runtime: RuntimeName, library: Any, problems: Sequence[str]
) -> BundleUnsupported:
    lines = dict.fromkeys(" ".join(problem.split())[:_SHOWN_CHARACTERS] for problem in problems)
    said = "; ".join(lines) or "no reason given"
    return BundleUnsupported(
        f"{runtime} {library.__version__} builds no plan of {graph.name}: {said}; export without this "
        "target, or with another model."
    )


__all__ = [
    "AGGREGATOR_FINEST_TILES",
    "ENCODER_BATCHES",
    "BuiltPlan",
    "OnProgress",
    "ProfilesOf",
    "aggregator_profiles",
    "build_plan",
    "encoder_profiles",
    "known_capabilities",
]
