"""A user's own ONNX graph as a tile encoder: checked, and put behind uint8 tiles (docs/encoders.md)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from cmamil_sdk.encoders.fit import resize_for
from cmamil_sdk.encoders.info import EncoderInfo, Interpolation
from cmamil_sdk.encoders.registry import ONNX_PREFIX, EncoderSpec
from cmamil_sdk.encoders.resize import resize_matrix
from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.torch_graph import TorchGraph
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid, RunInvalid
from cmamil_sdk.files import parse_document, sha256_of_file, write_atomic
from cmamil_sdk.runs import read_json
from cmamil_sdk.tiling.recipe import TILE_PX

from .preprocessing import with_preprocessing

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
_Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]

_PLAIN_MEAN: _Channels = (0.0, 0.0, 0.0)
_PLAIN_STD: _Channels = (1.0, 1.0, 1.0)


class GraphFacts(BaseModel):
    """What a graph does not say of itself: the document beside it, ``<file>.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: _Channels | None = Field(None, description="per channel, grey levels 0 to 255")
    std: _Channels | None = Field(None, description="per channel, grey levels 0 to 255")
    mpp: float | None = Field(None, gt=0, allow_inf_nan=False)
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _in_grey_levels(self) -> GraphFacts:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0; give grey levels from 0 to 255")
        if self.mean is not None and self.std is not None and max(*self.mean, *self.std) <= 1:
            raise ValueError("mean and std are grey levels from 0 to 255; multiply them by 255")
        return self


@dataclass(frozen=True)
class _Ports:
    """The one input and output of a graph; ``size_px`` is None where it takes any size."""

    input: str
    output: str
    takes_uint8: bool
    size_px: int | None


class OnnxEncoder:
    """A user's graph, and who it is; ``features`` runs the graph as it came."""

    weights_file: Path | None = None

    def __init__(self, path: Path, model: ModelProto, ports: _Ports, info: EncoderInfo) -> None:
        self.info = info
        self._path = path
        self._model = model
        self._ports = ports

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``, normalised outside of the graph."""
        engine = load_engine(self._path, engine="onnxruntime", device="cpu")
        return engine.infer({self._ports.input: self._images(tiles)})[self._ports.output]

    def features_in_double(self, tiles: UInt8) -> Float32 | None:
        """The same graph in float64, operator by operator in torch.

        None if it computes in 16 bits somewhere, or has an operator that torch here does not run.
        """
        if _has_half(self._model):
            return None
        try:
            graph = TorchGraph(self._path, torch.device("cpu"), torch.float64)
            with torch.inference_mode():
                found = graph({self._ports.input: torch.from_numpy(self._images(tiles))})
        except BundleUnsupported:
            return None
        features: Float32 = found[self._ports.output].float().numpy()
        return features

    def write_graph(self, path: Path) -> None:
        """Write the graph with inputs and outputs as all our encoders have them."""
        whole = with_preprocessing(
            self._model,
            self.info,
            image_input=self._ports.input,
            output=self._ports.output,
            takes_uint8=self._ports.takes_uint8,
        )
        try:
            data = whole.SerializeToString()
        except (ValueError, EncodeError) as problem:
            raise _refused(self._path, "is larger than the 2 GiB of one ONNX file") from problem
        write_atomic(path, data)

    def _images(self, tiles: UInt8) -> UInt8 | Float32:
        """What the graph takes."""
        return tiles if self._ports.takes_uint8 else self._normalised(tiles)

    def _normalised(self, tiles: UInt8) -> Float32:
        images = tiles.transpose(0, 3, 1, 2).astype(np.float32)
        resize = self.info.resize
        if resize is not None:
            matrix = resize_matrix(self.info.tile_px, resize.network_px, resize.interpolation)
            rows = matrix.numpy()
            images = np.clip(rows @ images @ rows.T, 0.0, 255.0)
        mean = np.array(self.info.mean, np.float32).reshape(1, 3, 1, 1)
        std = np.array(self.info.std, np.float32).reshape(1, 3, 1, 1)
        return np.ascontiguousarray((images - mean) / std)


def load_user_graph(
    name: str, weights: Path | None, *, tile_px: int | None, resize_tiles: bool
) -> OnnxEncoder:
    """Load and check ``onnx:<file>``.

    Args:
        name: the file's place; its identity is its name without folders, and its sha256.
        weights: the file, if it is not where ``name`` says.
        tile_px, resize_tiles: as for any encoder; a graph that takes images of any size needs the first.

    Raises:
        FieldInvalid: no such graph, or one that is no encoder, or its document is missing or wrong.
        BundleUnsupported: onnxruntime cannot run it.
    """
    path = weights or Path(name.removeprefix(ONNX_PREFIX))
    model = _load(path)
    ports = _ports(path, model)
    facts = _facts(path, ports)
    native_px = ports.size_px or tile_px
    if native_px is None:
        raise _refused(path, "takes images of any size; say which with --tile-px")
    low, high = TILE_PX
    if not low <= (tile_px or native_px) <= high:
        raise _refused(
            path,
            f"takes images of {native_px} px, and tiles have {low} to {high}; choose a size with "
            "--tile-px, and let the graph resize them with --resize-tiles",
        )
    spec = EncoderSpec(
        name=f"{ONNX_PREFIX}{Path(name.removeprefix(ONNX_PREFIX)).name}",
        dim=_measured_dim(path, ports, native_px),
        tile_px=native_px,
        mean=facts.mean or _PLAIN_MEAN,
        std=facts.std or _PLAIN_STD,
        interpolation=facts.interpolation,
        mpp=facts.mpp,
    )
    resize = resize_for(spec, tile_px, resize_tiles=resize_tiles)
    if resize is not None and ports.takes_uint8:
        raise _refused(path, f"takes uint8 tiles of {native_px} px alone; use tiles of that size")
    info = EncoderInfo(
        id=spec.name,
        weights_sha256=_digest(path),
        dim=spec.dim,
        tile_px=tile_px or native_px,
        mean=spec.mean,
        std=spec.std,
        mpp=spec.mpp,
        resize=resize,
    )
    return OnnxEncoder(path, model, ports, info)


def _load(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(path)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as problem:
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise _refused(path, f"is no ONNX graph that can be read ({first_line})") from problem
    return model


def _ports(path: Path, model: ModelProto) -> _Ports:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in weights]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise _refused(
            path, f"has {len(inputs)} inputs and {len(outputs)} outputs; export it with one of each"
        )
    kind, shape = _type_and_shape(inputs[0])
    if kind == TensorProto.UINT8 and len(shape) == 4 and shape[3] == 3:
        edges = shape[1:3]
    elif kind == TensorProto.FLOAT and len(shape) == 4 and shape[1] == 3:
        edges = shape[2:4]
    else:
        raise _refused(
            path,
            f"takes {TensorProto.DataType.Name(kind).lower()}{_shown(shape)}; an encoder takes uint8 "
            "tiles [N, H, W, 3] or float images [N, 3, H, W]",
        )
    if isinstance(shape[0], int):
        raise _refused(path, f"takes batches of {shape[0]} alone; export it with a dynamic batch")
    if edges[0] != edges[1] and not any(isinstance(edge, str) for edge in edges):
        raise _refused(path, f"takes images of {edges[1]} x {edges[0]} px; tiles are square")
    kind_out, shape_out = _type_and_shape(outputs[0])
    if kind_out != TensorProto.FLOAT or len(shape_out) != 2:
        raise _refused(
            path,
            f"gives {TensorProto.DataType.Name(kind_out).lower()}{_shown(shape_out)}; an encoder gives "
            "float features [N, D]",
        )
    size = next((edge for edge in edges if isinstance(edge, int)), None)
    return _Ports(inputs[0].name, outputs[0].name, kind == TensorProto.UINT8, size)


def _type_and_shape(port: ValueInfoProto) -> tuple[int, list[int | str]]:
    """Element type, and per axis its length, or a name where it is dynamic."""
    tensor = port.type.tensor_type
    axes: list[int | str] = [
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?"
        for axis in tensor.shape.dim
    ]
    return tensor.elem_type, axes


def _facts(path: Path, ports: _Ports) -> GraphFacts:
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        if ports.takes_uint8:
            return GraphFacts()
        raise _refused(
            path,
            "takes normalised images, and does not say how they are normalised; write "
            f'{beside.name} beside it: {{"mean": [R, G, B], "std": [R, G, B]}}, in grey levels from 0 '
            "to 255",
        )
    try:
        facts = parse_document(GraphFacts, read_json(beside), where=beside, error=FieldInvalid)
    except RunInvalid as problem:
        raise FieldInvalid(f"{beside} is no JSON document; mend or remove it.") from problem
    if ports.takes_uint8 and facts.mean is not None:
        raise FieldInvalid(
            f"{beside}: {path.name} takes uint8 tiles and normalises them itself; remove mean and std."
        )
    if not ports.takes_uint8 and facts.mean is None:
        raise FieldInvalid(
            f"{beside}: {path.name} takes normalised images; give mean and std, in grey levels from 0 "
            "to 255."
        )
    return facts


def _measured_dim(path: Path, ports: _Ports, px: int) -> int:
    """D, and a check that the features of a tile don't depend on the others of its batch."""
    shape = (3, px, px, 3) if ports.takes_uint8 else (3, 3, px, px)
    noise = np.random.default_rng(0).uniform(0, 2, shape)
    images = (100 * noise).astype(np.uint8) if ports.takes_uint8 else noise.astype(np.float32)
    engine = load_engine(path, engine="onnxruntime", device="cpu")
    together = engine.infer({ports.input: images})[ports.output]
    alone = engine.infer({ports.input: images[:1]})[ports.output]
    if together.ndim != 2 or len(together) != 3 or alone.shape != (1, together.shape[1]):
        raise _refused(
            path, f"gives {list(together.shape)} for 3 images; an encoder gives one row for each"
        )
    if not (np.isfinite(together).all() and np.isfinite(alone).all()):
        raise _refused(path, "gives NaN or infinity for noise; check its weights and normalisation")
    if not np.allclose(together[:1], alone, rtol=1e-2, atol=1e-3 * float(np.abs(alone).max())):
        raise _refused(
            path, "gives an image other features in another batch; export it in evaluation mode"
        )
    return int(together.shape[1])


def _has_half(model: ModelProto) -> bool:
    """Whether values are rounded to 16 bits: in float64 they would be others."""
    half = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    casts = (n for n in model.graph.node if n.op_type == "Cast")
    return any(tensor.data_type in half for tensor in model.graph.initializer) or any(
        attribute.i in half for node in casts for attribute in node.attribute
    )


def _digest(path: Path) -> str:
    """sha256 of the file; where tensors lie in files beside it, of the hashes of all."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    beside = {ExternalDataInfo(t).location for t in tensors if uses_external_data(t)}
    digests = [sha256_of_file(path), *(sha256_of_file(path.parent / n) for n in sorted(beside))]
    return digests[0] if not beside else hashlib.sha256("".join(digests).encode()).hexdigest()


def _shown(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _refused(path: Path, why: str) -> FieldInvalid:
    return FieldInvalid(f"--encoder {ONNX_PREFIX}{path} {why}.")


__all__ = ["GraphFacts", "OnnxEncoder", "load_user_graph"]
