"""Cases for the fuzz tests, each from its own number: mutated slides, messages, tensors."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from PIL import Image

from cmamil_sdk._proto.inference import open_inference_pb2 as inference
from cmamil_sdk.synthetic.svs import write_svs

INTEGERS = (0, 1, 2, 7, -1, 127, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
REALS = (0.0, -0.0, 0.5, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "seed0.svs", "seed0.svs", "absent.svs", "../seed0.svs", "/etc/passwd", "a\0b", "é☃", "x" * 5000,
    "models/tiny", "models/tiny/versions/1", "models/none", "tiny-encoder", "tiny-slide", "1", "tiles",
    "0" * 64, "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "{}", '{"mpp": 0.5}', "UINT8", "FP32", "file:///",
)  # fmt: skip
_TIFF_WORDS = (
    0,
    1,
    2,
    3,
    7,
    16,
    255,
    256,
    240,
    448,
    32_767,
    65_535,
    65_536,
    2**24,
    2**31,
    2**32 - 1,
)


SEED_WEIGHTS = (4, 1, 3, 3, 1)
"""How often each seed is mutated: most changes to what is deflated, or to a JPEG, are found at once."""


def seed_slides(folder: Path) -> list[Path]:
    """Small slides and a picture, of one file each, written to ``folder``: ``seed0.svs`` and so on."""
    rng = np.random.default_rng(0)
    pixels = np.clip(np.array([205, 130, 175]) + rng.normal(0, 18, (448, 448, 1)), 0, 255)
    tissue = pixels.astype(np.uint8)
    kinds = ("svs", "deflated.tiff", "big.tiff", "tiled.tiff", "jpg")
    paths = [folder / f"seed{number}.{kind}" for number, kind in enumerate(kinds)]
    options: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    write_svs(tissue, paths[0], mpp=0.5, objective_power=20.0, tile_px=112, downsamples=(1, 2))
    tifffile.imwrite(paths[1], tissue, tile=(112, 112), compression="deflate", **options)
    tifffile.imwrite(paths[2], tissue, bigtiff=True, rowsperstrip=16, **options)
    tifffile.imwrite(paths[3], tissue, byteorder=">", tile=(112, 112), **options)
    Image.fromarray(tissue).save(paths[4], dpi=(50_800, 50_800), quality=85)
    return paths


class SlideMutator:
    """Makes mutants of one slide."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._entries: list[int] = []
        self._pixels: list[tuple[int, int]] = [(len(data) // 4, len(data) // 2)]
        if data[:2] in (b"II", b"MM"):
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                pages = list(file.pages)
                self._entries = [tag.offset for page in pages for tag in page.tags]
                self._pixels = [
                    place
                    for page in pages
                    for place in zip(page.dataoffsets, page.databytecounts, strict=True)
                ]

    def mutant(self, rng: random.Random) -> bytes:
        """One to three changes, more of them in pixels than in what says where those are."""
        data = bytearray(self._data)
        ways = [*[self._spoil_pixels] * 5, _cut, _overwrite, _splice]
        if self._entries:
            ways += [self._spoil_entry]
        for way in rng.choices(ways, k=rng.choice((1, 1, 2, 3))):
            way(rng, data)
        return bytes(data)

    def _spoil_pixels(self, rng: random.Random, data: bytearray) -> None:
        start, size = rng.choice(self._pixels)
        for _ in range(rng.randint(1, 20)):
            at = start + rng.randrange(max(1, size))
            if at < len(data):
                data[at] = rng.randrange(256)

    def _spoil_entry(self, rng: random.Random, data: bytearray) -> None:
        """The tag, kind, number or value of an entry of a directory."""
        at = rng.choice(self._entries) + rng.choice((0, 2, 4, 8))
        if at + 4 <= len(data):
            struct.pack_into(
                "<I", data, at, rng.choice((*_TIFF_WORDS, rng.getrandbits(32), len(data)))
            )


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[len(data) - rng.randint(1, max(1, len(data) // 8)) :]


def _overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(max(1, len(data)))
    data[at : at + 4] = rng.randbytes(rng.randint(1, 4))


def _splice(rng: random.Random, data: bytearray) -> None:
    """Copy a piece over another place."""
    start, at, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 64)
    piece = data[start : start + size]
    data[at : at + len(piece)] = piece


def filled(kind: type[Message], rng: random.Random, depth: int = 0) -> Message:
    """A message with any of its fields set to anything."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.6:
            _fill(message, field, rng, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    value = getattr(message, field.name)
    many = field.is_repeated
    if field.message_type is not None:
        if depth > 3 or field.message_type.GetOptions().map_entry:
            return
        for _ in range(rng.randint(1, 2) if many else 1):
            made = filled(type(value.add()) if many else type(value), rng, depth + 1)
            (value[-1] if many else value).CopyFrom(made)
    elif many:
        value.extend(_scalar(field, rng) for _ in range(rng.randint(1, 3)))
    else:
        setattr(message, field.name, _scalar(field, rng))


_VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
    FieldDescriptor.CPPTYPE_DOUBLE: REALS,
    FieldDescriptor.CPPTYPE_FLOAT: REALS,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 99),
    FieldDescriptor.CPPTYPE_INT32: tuple(n for n in INTEGERS if n < 2**31),
    FieldDescriptor.CPPTYPE_INT64: INTEGERS,
    FieldDescriptor.CPPTYPE_UINT32: tuple(n for n in INTEGERS if 0 <= n < 2**32),
    FieldDescriptor.CPPTYPE_UINT64: tuple(n for n in INTEGERS if n >= 0),
}


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 4, 100)))
    return rng.choice(_VALUES[field.cpp_type])


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some changed, cut off, or put in."""
    changed = bytearray(data or b"\x00")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(3):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del changed[at : at + rng.randint(1, 8)]
    return bytes(changed)


DATATYPES = {"UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}
_WRONG_TYPES = ("UINT8", "INT64", "FP32", "BYTES", "FP16", "BOOL", "", "x")


def tensor_request(
    metadata: inference.ModelMetadataResponse, rng: random.Random
) -> inference.ModelInferRequest:
    """A call of a model with tensors as it wants them, then up to three things changed."""
    request = inference.ModelInferRequest(model_name=metadata.name)
    rows = rng.choice((1, 1, 2, 3))
    for wanted in metadata.inputs:
        shape = [rows if size < 0 else size for size in wanted.shape]
        request.inputs.add(name=wanted.name, datatype=wanted.datatype, shape=shape)
        request.raw_input_contents.append(_content(wanted, shape, rows, rng))
    for change in rng.choices(_CHANGES, k=rng.choice((0, 1, 1, 2, 3))):
        change(request, rng)
    return request


def _content(wanted: Any, shape: list[int], rows: int, rng: random.Random) -> bytes:
    if wanted.datatype == "BYTES":
        text = rng.choice(("seed0.svs", "absent.svs", "{}", "\0")).encode()
        return struct.pack("<I", len(text)) + text
    count = int(np.prod(shape))
    values = [rng.randint(-1, rows - 1) if wanted.datatype == "INT64" else rng.choice((0, 1, 200))]
    return np.resize(np.array(values), count).astype(DATATYPES[wanted.datatype]).tobytes()


def _an_input(request: inference.ModelInferRequest, rng: random.Random) -> Any:
    return rng.choice(request.inputs) if request.inputs else request.inputs.add(name="tiles")


def _shape(request: inference.ModelInferRequest, rng: random.Random) -> None:
    given = _an_input(request, rng)
    if given.shape and rng.random() < 0.7:
        given.shape[rng.randrange(len(given.shape))] = rng.choice(INTEGERS)
    else:
        given.shape[:] = [rng.choice(INTEGERS) for _ in range(rng.randint(0, 6))]


def _datatype(request: inference.ModelInferRequest, rng: random.Random) -> None:
    _an_input(request, rng).datatype = rng.choice(_WRONG_TYPES)


def _name(request: inference.ModelInferRequest, rng: random.Random) -> None:
    _an_input(request, rng).name = rng.choice(TEXTS)


def _raw(request: inference.ModelInferRequest, rng: random.Random) -> None:
    contents = request.raw_input_contents
    if not contents or rng.random() < 0.2:
        contents.append(rng.randbytes(rng.randint(0, 40)))
    else:
        at = rng.randrange(len(contents))
        contents[at] = rng.choice((b"", contents[at][:-1], contents[at] + b"x", rng.randbytes(9)))


def _typed(request: inference.ModelInferRequest, rng: random.Random) -> None:
    if rng.random() < 0.7:
        del request.raw_input_contents[:]
    given = _an_input(request, rng)
    given.contents.CopyFrom(filled(type(given.contents), rng))


def _inputs(request: inference.ModelInferRequest, rng: random.Random) -> None:
    if rng.random() < 0.5 and request.inputs:
        del request.inputs[rng.randrange(len(request.inputs))]
    else:
        request.inputs.add().CopyFrom(_an_input(request, rng))


def _outputs(request: inference.ModelInferRequest, rng: random.Random) -> None:
    request.outputs.add(name=rng.choice(("features", "logits", "label", *TEXTS)))


def _parameters(request: inference.ModelInferRequest, rng: random.Random) -> None:
    names = ("timeout", "priority", "sequence_id", "binary_data", "classification", "x")
    parameter = request.parameters[rng.choice(names)]
    parameter.CopyFrom(filled(type(parameter), rng))


_CHANGES: tuple[Callable[[inference.ModelInferRequest, random.Random], None], ...] = (
    _shape, _shape, _datatype, _name, _raw, _typed, _inputs, _outputs, _parameters,
)  # fmt: skip


def parses(kind: type[Message], data: bytes) -> bool:
    """Whether bytes are a message of that kind."""
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


def rngs(kind: str, count: int) -> Iterator[random.Random]:
    """A generator of random numbers for each case: the case alone can be repeated."""
    for number in range(count):
        yield random.Random(f"{kind} {number}")
