"""A bundle as a Triton model repository: its two graphs, each with a ``config.pbtxt``.

Triton's onnxruntime backend runs the graphs as they are. Reading slides, the grid and the warnings stay
with our own server: a Triton client sends tiles, or a bag of features with its index arrays.
The format of ``config.pbtxt`` is the message ``ModelConfig`` of triton-inference-server/common.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from cmamil_sdk.bundle.load import read_manifest, verify_files
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid, OutputExists

ENCODER_MAX_BATCH = 64
"""Most tiles in one of Triton's batches; it gathers them from several requests."""

_PREFERRED_BATCHES = (16, 32, ENCODER_MAX_BATCH)
_QUEUE_DELAY_US = 2000
_GRAPH = "model.onnx"
_DATA_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}


@dataclass(frozen=True)
class _Tensor:
    """An input or output of a graph: Triton's name of its type, and -1 for a dynamic axis."""

    name: str
    data_type: str
    shape: tuple[int, ...]


def export_triton(bundle: Path, repository: Path) -> tuple[Path, Path]:
    """Write the models ``<name>_encoder`` and ``<name>_aggregator`` of a bundle into ``repository``.

    Each gets the version that the bundle has, which must be a whole number: Triton counts versions.

    Args:
        bundle: the directory that holds ``manifest.json``; every file is verified first.
        repository: Triton's ``--model-repository``; other models in it are left alone.

    Returns:
        The directories of the two models.

    Raises:
        BundleCorrupt, BundleUnsupported: as :func:`~cmamil_sdk.bundle.load.read_manifest`.
        FieldInvalid: the bundle's version is no whole number above 0.
        OutputExists: a model of that name is there already.
    """
    manifest, sha256 = read_manifest(bundle)
    verify_files(bundle, manifest)
    encoder, aggregator = new_models(repository, manifest.name, manifest.version)
    notes = {
        "cmamil_bundle": f"{manifest.name}/{manifest.version}",
        "cmamil_bundle_sha256": sha256,
        "cmamil_recipe": manifest.recipe.model_dump_json(),
    }
    if manifest.parity_failed:
        notes["cmamil_parity_failed"] = manifest.parity_failed
    version = int(manifest.version)
    _write_model(encoder, version, bundle / ENCODER_GRAPH, notes, labels={}, batched=True)
    _write_model(
        aggregator,
        version,
        bundle / AGGREGATOR_GRAPH,
        notes,
        labels=_labels(manifest),
        batched=False,
    )
    return encoder, aggregator


def new_models(repository: Path, name: str, version: str) -> tuple[Path, Path]:
    """Where the encoder and the aggregator of the bundle ``name/version`` go, before there is one.

    Raises:
        FieldInvalid: the version is no whole number above 0.
        OutputExists: a model of that name is there already.
    """
    if not (version.isascii() and version.isdecimal() and int(version)):
        raise FieldInvalid(
            f"Triton counts versions, and {version!r} of bundle {name} is no whole number above 0; "
            "export the run with such a --version."
        )
    encoder, aggregator = (repository / f"{name}_{part}" for part in ("encoder", "aggregator"))
    for model in (encoder, aggregator):
        if model.exists():
            raise OutputExists(
                f"{model} exists already; remove it, or name another --model-repository."
            )
    return encoder, aggregator


def _labels(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Outputs whose columns have names, and the names."""
    labels = {"probabilities": manifest.labels}
    if manifest.hierarchy is not None and manifest.has_coarse_level:
        labels["coarse_probabilities"] = tuple(manifest.hierarchy.coarse_labels)
    return labels


def _write_model(
    model: Path,
    version: int,
    graph: Path,
    notes: Mapping[str, str],
    *,
    labels: Mapping[str, Sequence[str]],
    batched: bool,
) -> None:
    """One model's directory; it appears under its name when it is complete."""
    inputs, outputs = _tensors(graph)
    temporary = model.with_name(f".{model.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / str(version)).mkdir(parents=True)
    try:
        shutil.copyfile(graph, temporary / str(version) / _GRAPH)
        files = {output: f"{output}.txt" for output in labels}
        config = _config(model.name, inputs, outputs, notes, files, batched=batched)
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")
        for output, names in labels.items():
            (temporary / files[output]).write_text("\n".join(names) + "\n", encoding="utf-8")
        temporary.rename(model)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensors(graph: Path) -> tuple[list[_Tensor], list[_Tensor]]:
    parsed = onnx.load(graph).graph
    inputs, outputs = (
        [_tensor(graph, info) for info in side] for side in (parsed.input, parsed.output)
    )
    return inputs, outputs


def _tensor(graph: Path, info: onnx.ValueInfoProto) -> _Tensor:
    kind = info.type.tensor_type
    if kind.elem_type not in _DATA_TYPES:
        raise BundleUnsupported(
            f"{graph}: {info.name} has a type that no model of this package has; export it again."
        )
    shape = tuple(-1 if d.dim_param or not d.dim_value else d.dim_value for d in kind.shape.dim)
    return _Tensor(info.name, _DATA_TYPES[kind.elem_type], shape)


def _config(
    name: str,
    inputs: Sequence[_Tensor],
    outputs: Sequence[_Tensor],
    notes: Mapping[str, str],
    label_files: Mapping[str, str],
    *,
    batched: bool,
) -> str:
    """The text of ``config.pbtxt``; a batched model's shapes leave their first axis out."""
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"']
    lines.append(f"max_batch_size: {ENCODER_MAX_BATCH if batched else 0}")
    if batched:
        preferred = ", ".join(map(str, _PREFERRED_BATCHES))
        lines += [
            "dynamic_batching {",
            f"  preferred_batch_size: [ {preferred} ]",
            f"  max_queue_delay_microseconds: {_QUEUE_DELAY_US}",
            "}",
        ]
    for side, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            shape = tensor.shape[1:] if batched else tensor.shape
            lines += [
                f"{side} {{",
                f"  name: {_quoted(tensor.name)}",
                f"  data_type: {tensor.data_type}",
                f"  dims: [ {', '.join(map(str, shape))} ]",
            ]
            if tensor.name in label_files:
                lines.append(f"  label_filename: {_quoted(label_files[tensor.name])}")
            lines.append("}")
    for key, value in notes.items():
        lines.append(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, which escapes quotes and backslashes as JSON does."""
    return json.dumps(text, ensure_ascii=False)


__all__ = ["ENCODER_MAX_BATCH", "export_triton", "new_models"]
