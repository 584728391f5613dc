"""A bundle as a Triton model repository: its two graphs, each with a ``config.pbtxt``.

A model holds versions, one for each version of the bundle, under one configuration: what is written there
is common to all of them, and what is a version's own stands beside its graph.

Triton's onnxruntime backend runs the graphs as they are. Reading slides, the grid and the warnings stay
with our own server: a Triton client sends tiles, or a bag of features with its index arrays.
The format of ``config.pbtxt`` is the message ``ModelConfig`` of triton-inference-server/common.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest
from cmamil_sdk.bundle.verify import read_manifest, verify_files
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid, OutputExists, OutputUnwritable
from cmamil_sdk.files import read_listed, write_json

ENCODER_MAX_BATCH = 64
"""Most tiles in one of Triton's batches; it gathers them from several requests."""

_PREFERRED_BATCHES = (16, 32, ENCODER_MAX_BATCH)
_QUEUE_DELAY_US = 2000
_GRAPH = "model.onnx"
_CONFIG = "config.pbtxt"
_ORIGIN = "bundle.json"
"""Beside a version's graph: which bundle it is from; Triton looks at the graph alone."""
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
    """Write a bundle into ``repository``, as models ``<name>_encoder`` and ``<name>_aggregator``.

    Each gets the version that the bundle has, which must be a whole number: Triton counts versions. A
    model that is there gets one more version, if its configuration is that of this bundle; nothing that
    is there is changed.

    Args:
        bundle: the directory that holds ``manifest.json``; every file is verified first.
        repository: Triton's ``--model-repository``; other models in it are left alone.

    Returns:
        The directories of the two models.

    Raises:
        BundleCorrupt, BundleUnsupported: as :func:`~cmamil_sdk.bundle.verify.read_manifest`.
        FieldInvalid: the bundle's version is no whole number above 0.
        OutputExists: the version is there already, or one of another configuration.
        OutputUnwritable: the models cannot be put in place.
    """
    manifest, sha256 = read_manifest(bundle)
    verify_files(bundle, manifest)
    encoder, aggregator = new_versions(repository, manifest.name, manifest.version)
    origin = {"bundle": f"{manifest.name}/{manifest.version}", "sha256": sha256}
    if manifest.parity_failed:
        origin["parity_failed"] = manifest.parity_failed
    notes = {"cmamil_recipe": manifest.recipe.model_dump_json()}
    labels = _labels(manifest)
    encoder_graph, aggregator_graph = (
        (bundle / name, read_listed(bundle / name, manifest.hashes[name]))
        for name in (ENCODER_GRAPH, AGGREGATOR_GRAPH)
    )
    parts = [
        _Part(encoder.parent, *encoder_graph, notes, labels={}, batched=True),
        _Part(aggregator.parent, *aggregator_graph, notes, labels, batched=False),
    ]
    for part in parts:
        part.check_configuration()
    with ExitStack() as staged:
        written = [staged.enter_context(part.staged(manifest.version, origin)) for part in parts]
        _put_in_place(written)
    return encoder.parent, aggregator.parent


def new_versions(repository: Path, name: str, version: str) -> tuple[Path, Path]:
    """Where the graphs of the bundle ``name/version`` go, encoder and aggregator.

    Raises:
        FieldInvalid: the version is no whole number above 0.
        OutputExists: it is there already, or what is there is no model of Triton.
    """
    if not (version.isascii() and version.isdecimal() and int(version)):
        raise FieldInvalid(
            f"Triton counts versions, and {version!r} of bundle {name} is no whole number above 0; "
            "export the run with such a --version."
        )
    encoder, aggregator = (repository / f"{name}_{part}" for part in ("encoder", "aggregator"))
    for model in (encoder, aggregator):
        folder = model / str(int(version))
        if folder.exists():
            raise OutputExists(
                f"{folder} exists already; export the run with another --version, or name another "
                "--model-repository."
            )
        if model.exists() and not (model / _CONFIG).is_file():
            raise OutputExists(
                f"{model} exists and is no model of Triton, it has no {_CONFIG}; remove it, or name "
                "another --model-repository."
            )
    return encoder / str(int(version)), aggregator / str(int(version))


@dataclass(frozen=True)
class _Part:
    """One of a bundle's graphs on its way into a model of the repository.

    Attributes:
        model: the model's directory.
        graph: the ONNX file.
        data: its bytes, which are those that the bundle lists.
        notes: parameters of the configuration.
        labels: outputs whose columns have names, and the names.
        batched: whether Triton gathers requests into batches, along the first axis.
    """

    model: Path
    graph: Path
    data: bytes
    notes: Mapping[str, str]
    labels: Mapping[str, Sequence[str]]
    batched: bool

    def shared_files(self) -> dict[str, str]:
        """Name -> text of what all versions have in common."""
        inputs, outputs = _tensors(self.graph, self.data)
        files = {output: f"{output}.txt" for output in self.labels}
        config = _config(self.model.name, inputs, outputs, self.notes, files, batched=self.batched)
        texts = {files[output]: "\n".join(names) + "\n" for output, names in self.labels.items()}
        return texts | {_CONFIG: config}

    def check_configuration(self) -> None:
        """Refuse a model that is there and is configured otherwise (OutputExists)."""
        if not self.model.exists():
            return
        for name, text in self.shared_files().items():
            file = self.model / name
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                raise OutputExists(
                    f"{file} is not what this bundle needs: its labels, recipe, or a type or shape "
                    "differ, or the file was changed; export under another --name, or name another "
                    "--model-repository."
                )

    @contextmanager
    def staged(self, version: str, origin: Mapping[str, str]) -> Iterator[tuple[Path, Path]]:
        """What has to be renamed to what: a whole model, or a version of one that is there."""
        number = str(int(version))
        is_new = not self.model.exists()
        target = self.model if is_new else self.model / number
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        folder = temporary / number if is_new else temporary
        folder.mkdir(parents=True)
        try:
            (folder / _GRAPH).write_bytes(self.data)
            write_json(folder / _ORIGIN, origin)
            for name, text in self.shared_files().items() if is_new else ():
                (temporary / name).write_text(text, encoding="utf-8")
            yield temporary, target
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(staged: Sequence[tuple[Path, Path]]) -> None:
    """Rename all or none."""
    done: list[Path] = []
    try:
        for temporary, target in staged:
            temporary.rename(target)
            done.append(target)
    except OSError as problem:
        for placed in done:
            shutil.rmtree(placed)
        raise OutputUnwritable(
            f"{target} cannot be put in place ({problem.strerror}); free space, or change permissions."
        ) from problem


def _labels(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Outputs whose columns have names, and the names."""
    labels = {"probabilities": manifest.labels}
    if manifest.hierarchy is not None and manifest.has_coarse_level:
        labels["coarse_probabilities"] = tuple(manifest.hierarchy.coarse_labels)
    return labels


def _tensors(graph: Path, data: bytes) -> tuple[list[_Tensor], list[_Tensor]]:
    parsed = onnx.load_model_from_string(data).graph
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


__all__ = ["ENCODER_MAX_BATCH", "export_triton", "new_versions"]
