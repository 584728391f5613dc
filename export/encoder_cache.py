"""Encoders' graphs that this machine has made before, found again without loading a network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cmamil_sdk import __version__
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines import Engine
from cmamil_sdk.engines.graphs import graph_in
from cmamil_sdk.engines.parity import (
    GATE_VERSION,
    EncoderParity,
    EncoderReference,
    stored_parity,
)
from cmamil_sdk.errors import FieldInvalid, RunInvalid
from cmamil_sdk.files import sha256_of_file, write_json
from cmamil_sdk.runs import read_json

from .graph_form import GRAPH_FORM, OPSET
from .reference import load_reference, save_reference


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder's graph on disk, who it is, and what its features must be like."""

    graph: Path
    info: EncoderInfo
    reference: EncoderReference

    def graph_for(self, precision: str) -> Path:
        """The graph to load in ``precision``, with that in fp16 beside it where it is asked for.

        Raises:
            FieldInvalid: int8, which is calibrated for a bundle.
        """
        if precision == "int8":
            raise FieldInvalid(
                "--precision int8 is calibrated and judged for a bundle, by `cmamil export`; take "
                "features in auto, fp32, bf16 or fp16."
            )
        if precision == "fp16":
            from .half import write_half  # noqa: PLC0415 - it needs onnx

            write_half(self.graph, graph_in(self.graph, "fp16"))
        return self.graph

    def parity(self, engine: Engine) -> EncoderParity:
        """How close the graph on ``engine`` is to the encoder; measured once and kept beside it."""
        return stored_parity(self.graph.with_name("parity.json"), engine, self.reference)


@dataclass(frozen=True)
class EncoderRequest:
    """Arguments of :func:`~cmamil_sdk.export.encoder.load_encoder`."""

    name: str
    weights: Path | None
    projection: bool
    tile_px: int | None
    resize_tiles: bool


class _Found(BaseModel):
    """What a request came to: the file of weights, and the folder of the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_file: Path
    weights_sha256: str
    folder: str


class _Kept(BaseModel):
    """``encoder.json`` beside a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: EncoderInfo
    graph_sha256: str
    reference_sha256: str


def cache_directory() -> Path:
    """Where graphs made on this machine are kept (``CMAMIL_CACHE``, else the user's cache)."""
    base = os.environ.get("CMAMIL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cmamil"


def graph_folder(info: EncoderInfo) -> Path:
    """Where the graph of an encoder belongs."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", info.id)
    identity = hashlib.sha256(info.model_dump_json().encode()).hexdigest()
    return _encoders() / f"{readable}-{identity[:16]}-{_form()}"


def read_graph(folder: Path) -> ExportedEncoder | None:
    """What :func:`keep_graph` kept in ``folder``; None if nothing there can be trusted."""
    graph, reference = folder / "encoder.onnx", folder / "reference.npz"
    try:
        kept = _Kept.model_validate(read_json(folder / "encoder.json"))
        found = (sha256_of_file(graph), sha256_of_file(reference))
    except (OSError, RunInvalid, ValidationError):
        return None
    features = load_reference(reference)
    if features is None or found != (kept.graph_sha256, kept.reference_sha256):
        return None
    return ExportedEncoder(graph, kept.encoder, features)


def keep_graph(folder: Path, info: EncoderInfo, reference: EncoderReference) -> ExportedEncoder:
    """Put the reference beside the graph in ``folder``, and their hashes."""
    graph, kept = folder / "encoder.onnx", folder / "reference.npz"
    save_reference(kept, reference)
    hashes = {"graph_sha256": sha256_of_file(graph), "reference_sha256": sha256_of_file(kept)}
    write_json(folder / "encoder.json", {"encoder": info.model_dump(mode="json"), **hashes})
    return ExportedEncoder(graph, info, reference)


def recall(request: EncoderRequest) -> ExportedEncoder | None:
    """The graph that this request came to before, if its weights are still the same file."""
    try:
        found = _Found.model_validate(read_json(_request_file(request)))
        digest = sha256_of_file(found.weights_file)
    except (OSError, RunInvalid, ValidationError):
        return None
    cached = read_graph(_encoders() / found.folder)
    if cached is None or not digest == found.weights_sha256 == cached.info.weights_sha256:
        return None
    return cached


def remember(request: EncoderRequest, weights_file: Path, exported: ExportedEncoder) -> None:
    """Note for :func:`recall` what a request has come to."""
    found = _Found(
        weights_file=weights_file.resolve(),
        weights_sha256=exported.info.weights_sha256,
        folder=exported.graph.parent.name,
    )
    write_json(_request_file(request), found.model_dump(mode="json"))


def _request_file(request: EncoderRequest) -> Path:
    """Of this installation: which weights are an encoder's own may differ between two."""
    weights = None if request.weights is None else str(request.weights.resolve())
    words = [{**vars(request), "weights": weights}, sys.prefix, _form()]
    key = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    return _encoders() / "requests" / f"{key[:32]}.json"


def _encoders() -> Path:
    return cache_directory() / "encoders"


def _form() -> str:
    return f"opset{OPSET}-form{GRAPH_FORM}-gate{GATE_VERSION}-{__version__}"


__all__ = [
    "EncoderRequest",
    "ExportedEncoder",
    "cache_directory",
    "graph_folder",
    "keep_graph",
    "read_graph",
    "recall",
    "remember",
]
