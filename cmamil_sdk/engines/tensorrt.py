"""TensorRT plans on a CUDA device. Nothing of this has run on a device yet (docs/tensorrt.md)."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs, Precision, RuntimeName
from cmamil_sdk.engines.cuda import Cuda
from cmamil_sdk.engines.device_array import ArrayView
from cmamil_sdk.engines.inputs import InputSpec, check_inputs, zeros
from cmamil_sdk.engines.plans import (
    PLAN_PRECISIONS,
    Here,
    ListedPlan,
    Profile,
    fitting_plan,
    known_plans,
)
from cmamil_sdk.engines.tensorrt_library import load_library, make_logger
from cmamil_sdk.engines.tensorrt_session import RUNS_TO_RECORD, Session
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid, TooManyTiles
from cmamil_sdk.files import sha256_of_file

Float32 = npt.NDArray[np.float32]

CONTEXTS = 2
"""Calls of ``infer`` that run at a time: one computes while another copies."""


class TensorRTEngine:
    """One plan, loaded on one device.

    Batches of an encoder are filled up to the size of a profile with black tiles, whose features are
    dropped, and split where they are larger than the largest. Inputs may lie on the device: anything with
    ``__cuda_array_interface__``.

    Args:
        graph: the graph the plan was built from, for messages.
        plan: as :func:`~cmamil_sdk.engines.plans.fitting_plan` chose it.
        library: the module ``tensorrt`` or ``tensorrt_rtx``.
        cuda: the device.
        reason: why this engine was chosen.

    Raises:
        BundleCorrupt: the plan's file changed.
        BundleUnsupported: TensorRT does not load the plan, or it is not what its document says.
        GpuOutOfMemory: the device has too little memory left.
    """

    def __init__(
        self, graph: Path, plan: ListedPlan, *, library: Any, cuda: Cuda, reason: str
    ) -> None:
        key = plan.document.key
        self._graph, self._library, self._cuda = graph, library, cuda
        self._profiles = key.profiles
        self._specs = {
            name: InputSpec(np.dtype(spec.dtype), spec.shape)
            for name, spec in plan.document.inputs.items()
        }
        # Of an encoder: the one axis counts tiles that know nothing of each other.
        self._is_batched = all(_is_fixed(profile) for profile in key.profiles)
        cuda.activate()
        self._logger = make_logger(library)
        self._runtime = library.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = False
        self._engine = self._deserialize(plan.path, plan.read())
        self._slots = threading.BoundedSemaphore(CONTEXTS)
        self._idle: dict[int, list[Session]] = {n: [] for n in range(len(self._profiles))}
        try:
            self._check_profiles(plan.path)
            # The first now, so that a device without the memory is found out here.
            self._idle[0].append(self._new_session(0))
        except BaseException:
            del self._engine  # the traceback keeps self, which would keep the device's memory
            raise
        self.info = EngineInfo(
            key.runtime,
            f"cuda:{cuda.index}",
            key.precision,
            key.runtime_version,
            reason,
            takes_device_arrays=True,
        )

    def infer(self, inputs: Inputs) -> dict[str, Float32]:
        """Run the plan; see :class:`~cmamil_sdk.engines.base.Engine`.

        Raises:
            TooManyTiles: a bag larger than every profile.
        """
        self._cuda.activate()
        views = {name: ArrayView.of(array) for name, array in inputs.items()}
        check_inputs(self._graph.name, self._specs, views)
        self._check_indices(views)
        if not self._is_batched:
            return self._run({name: views[name] for name in self._specs})
        (name,) = self._specs
        largest = max(profile[name][2][0] for profile in self._profiles)
        whole = views[name]
        parts = [
            self._run({name: whole.rows(start, start + largest)})
            for start in range(0, whole.shape[0], largest)
        ]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def warm_up(self, rows: int) -> None:
        """Make the contexts of all profiles up to that of ``rows``, and record those of one size.

        See :class:`~cmamil_sdk.engines.base.Engine`.
        """
        for profile in self._profiles:
            room = min(shape[0] for *_, shape in profile.values())
            for _ in range(RUNS_TO_RECORD):
                self.infer(zeros(self._specs, min(room, rows)))
            if room >= rows:
                return

    def memory_bytes(self) -> int:
        """Weights, and of the contexts that are not at work their own memory and that of tensors."""
        weights: int = self._engine.get_engine_stat(self._library.EngineStat.TOTAL_WEIGHTS_SIZE)
        contexts: int = sum(
            self._engine.get_device_memory_size_for_profile_v2(position) + session.tensor_bytes
            for position, sessions in self._idle.items()
            for session in tuple(sessions)
        )
        return weights + contexts

    def close(self) -> None:
        """Free the memory on the device."""
        self._cuda.activate()
        for sessions in self._idle.values():
            while sessions:
                sessions.pop().close()
        del self._engine

    def _run(self, inputs: Mapping[str, ArrayView]) -> dict[str, Float32]:
        shapes = {name: view.shape for name, view in inputs.items()}
        position = fitting_profile(self._profiles, shapes)
        if position is None:
            given = max(shape[0] for shape in shapes.values())
            largest = max(shape[0] for *_, shape in self._profiles[-1].values())
            raise TooManyTiles(
                f"{self._graph.name}: a bag of {given} tiles at a scale is larger than the plan's "
                f"profiles, which end at {largest} of the finest; use --engine onnxruntime."
            )
        fill = self._profiles[position] if self._is_batched else None
        with self._session(position) as session:
            return session.run(inputs, fill)

    @contextmanager
    def _session(self, position: int) -> Iterator[Session]:
        """A session of a profile for one caller; one that failed is not used again."""
        with self._slots:
            # list.pop and append are atomic.
            try:
                session = self._idle[position].pop()
            except IndexError:
                session = self._new_session(position)
            try:
                yield session
            except BaseException:
                session.close()
                raise
            self._idle[position].append(session)

    def _new_session(self, position: int) -> Session:
        return Session(
            self._library,
            self._engine,
            self._cuda,
            position,
            has_fixed_shapes=_is_fixed(self._profiles[position]),
        )

    def _deserialize(self, path: Path, plan: bytes) -> Any:
        # Through a reader, because this overload alone lets other threads run meanwhile.
        reader = _stream_reader(self._library, io.BytesIO(plan))
        try:
            engine = self._runtime.deserialize_cuda_engine(reader)
        except RuntimeError as problem:
            raise self._unloadable(path, str(problem)) from problem
        if engine is None:
            raise self._unloadable(path, "; ".join(self._logger.errors))
        return engine

    def _unloadable(self, path: Path, why: str) -> BundleUnsupported:
        return BundleUnsupported(
            f"TensorRT {self._library.__version__} does not load {path} ({why}); build the plan again "
            "with `cmamil plans`."
        )

    def _check_profiles(self, path: Path) -> None:
        engine = self._engine
        held = tuple(
            {n: tuple(tuple(s) for s in engine.get_tensor_profile_shape(n, i)) for n in self._specs}
            for i in range(engine.num_optimization_profiles)
        )
        if held != self._profiles:
            raise self._unloadable(path, "its profiles are not those of its key")
        modes = self._library.TensorIOMode
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = {name for name in names if engine.get_tensor_mode(name) == modes.INPUT}
        floats = all(
            engine.get_tensor_dtype(n) == self._library.float32 for n in set(names) - inputs
        )
        if inputs != set(self._specs) or not floats:
            raise self._unloadable(path, "its inputs and outputs are not those of our graphs")

    def _check_indices(self, views: Mapping[str, ArrayView]) -> None:
        """TensorRT would read whatever lies where an index points."""
        scales = [n.removeprefix("features_") for n in self._specs if n.startswith("features_")]
        for name in self._specs:
            kind, _, scale = name.partition("_")
            if kind not in ("children", "ancestor"):
                continue
            target = scales[scales.index(scale) + 1] if kind == "children" else scales[0]
            rows = views[f"features_{target}"].shape[0]
            indices = views[name].owner
            if not isinstance(indices, np.ndarray):
                raise FieldInvalid(
                    f"{self._graph.name}: {name} is on the device; give it on the host."
                )
            if indices.min() < -1 or indices.max() >= rows:
                raise FieldInvalid(
                    f"{self._graph.name}: {name} points outside of the {rows} rows of features_{target}; "
                    "give index arrays that point into the features."
                )


def open_tensorrt(
    graph: Path,
    *,
    runtime: RuntimeName,
    device: str,
    precision: Precision,
    engine_cache: Path | None,
    reason: str | None = None,
    hashes: Mapping[str, str] | None = None,
) -> TensorRTEngine:
    """Load the plan of a graph that fits this machine, from its bundle or an engine cache.

    Args:
        graph: the ``.onnx`` file in a bundle.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        device: ``auto`` (``cuda:0``), ``cuda`` or ``cuda:N``.
        precision: of the plan's arithmetic.
        engine_cache: directory that ``cmamil plans`` wrote.
        reason: why this engine was chosen; default: it was asked for, and which plan it is.
        hashes: of the bundle's manifest, for the graph and its plans; None: they are looked up.

    Raises:
        EngineMissing: library, device or a plan for them is missing; says which, and how to get it.
        BundleCorrupt: a listed plan is missing or changed.
        BundleUnsupported: there is no such graph, or TensorRT does not load the plan.
    """
    library = load_library(runtime)
    if precision not in PLAN_PRECISIONS:
        raise EngineMissing(
            f"There are no plans in {precision}; use --precision {' or '.join(PLAN_PRECISIONS)}."
        )
    if device == "cpu":
        raise EngineMissing(
            f"{runtime} runs on CUDA devices alone; use --device cuda:0, or --engine onnxruntime."
        )
    cuda = Cuda(int(device.partition(":")[2] or 0))
    digest = hashes[graph.name] if hashes is not None else _digest(graph)
    here = Here(digest, runtime, str(library.__version__), cuda.compute_capability, precision)
    plan = fitting_plan(known_plans(graph, engine_cache, hashes), here, graph)
    why = reason or f"asked for, plan {plan.document.key.digest}"
    return TensorRTEngine(graph, plan, library=library, cuda=cuda, reason=why)


def _digest(graph: Path) -> str:
    try:
        return sha256_of_file(graph)
    except OSError as problem:
        raise BundleUnsupported(
            f"There is no graph at {graph}; export the model again."
        ) from problem


def available(runtime: RuntimeName) -> dict[str, str | bool]:
    """``available``, ``version``, ``why`` and ``fix`` of a runtime on this machine."""
    try:
        version = str(load_library(runtime).__version__)
        devices = Cuda.device_count()
    except EngineMissing as problem:
        why, _, fix = str(problem).partition("; ")
        return {"available": False, "version": "", "why": why, "fix": fix}
    if not devices:
        return {
            "available": False,
            "version": version,
            "why": "builds plans, but CUDA finds no device to run them",
            "fix": "use a machine with an NVIDIA GPU and its driver",
        }
    return {"available": True, "version": version, "why": f"CUDA finds {devices}", "fix": ""}


def fitting_profile(
    profiles: tuple[Profile, ...], shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    """The first profile with room for all inputs; None if there is none.

    Of a profile of one size, rows can be filled up: it has room for any number up to its own.
    """
    for position, profile in enumerate(profiles):
        if all(
            have <= room
            for name, shape in shapes.items()
            for have, room in zip(shape, profile[name][2], strict=True)
        ):
            return position
    return None


def _is_fixed(profile: Profile) -> bool:
    return all(smallest == largest for smallest, _, largest in profile.values())


def _stream_reader(library: Any, file: io.BytesIO) -> Any:
    """TensorRT's view of a plan."""

    class Reader(library.IStreamReaderV2):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IStreamReaderV2.__init__(self)

        def read(self, size: int, _stream: int) -> bytes:
            return file.read(size)

        def seek(self, offset: int, where: Any) -> bool:
            origins = library.SeekPosition
            file.seek(offset, {origins.SET: 0, origins.CUR: 1, origins.END: 2}[where])
            return True

    return Reader()


__all__ = ["CONTEXTS", "TensorRTEngine", "available", "fitting_profile", "open_tensorrt"]
