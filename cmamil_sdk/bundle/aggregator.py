"""The aggregator of a bundle, in the precision of its encoder where that reproduces its answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, Manifest
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.base import TENSORRT, EngineInfo, Precision
from cmamil_sdk.engines.choose import choose_engine
from cmamil_sdk.engines.graphs import graph_in, is_split
from cmamil_sdk.engines.parity import missed_gates
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid, ParityFailed
from cmamil_sdk.machine import available_cores

_HAS_PARTS = 5
"""The schema version from which a bundle holds its aggregator for bf16 as well, where it would gain."""

_IN_BF16 = (
    "bf16 as the encoder: products of features by openvino, all else by onnxruntime in fp32; "
    "its golden values are reproduced"
)


def open_aggregator(
    root: Path,
    manifest: Manifest,
    encoder: EngineInfo,
    golden: Golden,
    *,
    engine_cache: Path | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Engine:
    """The aggregator that goes with an encoder; ``info.reason`` says why it is in fp32 beside bf16.

    ``engine_cache`` and ``hashes`` are those of :func:`~cmamil_sdk.engines.load_engine`.

    Raises:
        BundleCorrupt: a graph is not the one of ``hashes``.
        BundleUnsupported, EngineMissing: it cannot be run.
    """
    precision = "fp16" if encoder.precision == "fp16" else "fp32"
    reason = f"{precision}, with an encoder in {encoder.precision}"
    if encoder.precision == "bf16" and encoder.device == "cpu":
        try:
            return _in_bf16(root, manifest, golden, hashes)
        except (BundleUnsupported, EngineMissing, FieldInvalid, ParityFailed) as problem:
            why = str(problem).partition(";")[0].replace(f"{root}/", "")
            reason = f"fp32, in bf16 {why}"
    has_plan = encoder.name in TENSORRT  # and says which
    return load_engine(
        root / AGGREGATOR_GRAPH,
        engine=encoder.name if has_plan else "onnxruntime",
        device=_device(encoder),
        threads=available_cores(),  # it runs when the encoder has done its work
        engine_cache=engine_cache,
        precision=precision,
        reason=None if has_plan else reason,
        hashes=hashes,
    )


def aggregator_differences(
    root: Path, manifest: Manifest, golden: Golden, hashes: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Of the aggregator on each CPU engine of this machine, the largest from the golden outputs."""
    found: dict[str, float] = {}
    graph = root / AGGREGATOR_GRAPH
    stored: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in stored:
        if graph_in(graph, precision).name in manifest.files:
            engine = load_engine(
                graph, engine="onnxruntime", device="cpu", precision=precision, hashes=hashes
            )
            found[engine.info.label] = golden.aggregator_difference(engine.infer(golden.inputs))
            engine.close()
    # where it cannot be measured, :func:`open_aggregator` says why
    with suppress(EngineMissing, BundleUnsupported, FieldInvalid):
        engine, difference = _measured_in_bf16(root, manifest, golden, hashes)
        engine.close()
        found[engine.info.label] = difference
    return found


def _in_bf16(
    root: Path, manifest: Manifest, golden: Golden, hashes: Mapping[str, str] | None
) -> Engine:
    """Raises ParityFailed where it missed its gate at export, or does not reproduce ``golden``."""
    at_export = next((r.aggregator for r in manifest.precisions if r.precision == "bf16"), {})
    if missed_gates(at_export, "bf16"):
        raise ParityFailed(f"it missed its gate at export: {missed_gates(at_export, 'bf16')}")
    engine, difference = _measured_in_bf16(root, manifest, golden, hashes)
    most = GOLDEN_MAX_DIFFERENCE["bf16"]
    if not difference <= most:
        engine.close()
        raise ParityFailed(
            f"it differs from its golden values by {difference:.2e} (at most {most})"
        )
    return engine


def _measured_in_bf16(
    root: Path, manifest: Manifest, golden: Golden, hashes: Mapping[str, str] | None
) -> tuple[Engine, float]:
    """Golden bags are small, so they are rounded as large ones are."""
    graph, threads = root / AGGREGATOR_GRAPH, available_cores()
    if not is_split(graph, manifest.hashes):
        raise BundleUnsupported(_why_no_parts(manifest))
    from cmamil_sdk.engines.split import SplitEngine  # noqa: PLC0415 - needs openvino

    engine = SplitEngine(graph, threads=threads, reason=_IN_BF16, hashes=hashes)
    return engine, golden.aggregator_difference(engine.infer_rounded(golden.inputs))


def _why_no_parts(manifest: Manifest) -> str:
    if manifest.schema_version < _HAS_PARTS:
        return (
            f"it has no parts for it, as its bundle is of schema version {manifest.schema_version}; "
            "export the model again."
        )
    return "it would gain nothing, as it multiplies no wide features; use --precision fp32."


def _device(encoder: EngineInfo) -> str:
    """The encoder's; the CPU where that is a GPU of torch's, which runs no aggregators, alone."""
    if encoder.name == "torch" and choose_engine("onnxruntime", "auto").device == "cpu":
        return "cpu"
    return encoder.device


__all__ = ["aggregator_differences", "open_aggregator"]
