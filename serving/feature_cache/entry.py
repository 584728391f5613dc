"""One entry of the cache: a file with the features of a slide and a checksum at its end.

::

    magic        8 bytes
    length       uint64, of the header
    header       JSON, padded with spaces
    arrays       for each scale features, coords, parent, tissue, each padded with zeros
    sha256       32 bytes, of all before

Numbers are little-endian, and every array begins at a multiple of 64 bytes. A feature file would not
do: HDF5 may end the process over a damaged file, and what the plan said has no place in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.extracted import ExtractedSlide
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.recipe import Scale

FORMAT_VERSION = 1

_MAGIC = b"CMAMILFC"
_HEAD = struct.Struct("<8sQ")
_ALIGNMENT = 64
_DIGEST_BYTES = hashlib.sha256().digest_size
_BLOCK_BYTES = 2**22
_ARRAYS = (("features", "<f4"), ("coords", "<i8"), ("parent", "<i8"), ("tissue", "<f4"))


class EntryDamaged(Exception):
    """A file of the cache is not what was written; says what is wrong."""


def entry_bytes(key: str, slide: ExtractedSlide) -> int:
    """How long the entry of a slide is."""
    return sum(len(part) for part in _parts(key, slide)) + _DIGEST_BYTES


def write_entry(file: BinaryIO, key: str, slide: ExtractedSlide) -> None:
    """Write the features of a slide under ``key``; OSError as the system says."""
    digest = hashlib.sha256()
    for part in _parts(key, slide):
        for start in range(0, len(part), _BLOCK_BYTES):
            block = part[start : start + _BLOCK_BYTES]
            digest.update(block)
            file.write(block)
    file.write(digest.digest())


def read_entry(path: Path, key: str) -> ExtractedSlide:
    """Read the features that were written under ``key``.

    Raises:
        EntryDamaged: the file is not as it was written, or was written under another key.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        content = np.empty(file.seek(0, 2), dtype=np.uint8)
        file.seek(0)
        _fill(file, content)
    if len(content) < _HEAD.size + _DIGEST_BYTES:
        raise EntryDamaged(f"{len(content)} bytes are no entry")
    body, found = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:].tobytes()
    if hashlib.sha256(body.data).digest() != found:
        raise EntryDamaged("the checksum does not fit")
    magic, length = _HEAD.unpack_from(body.data)
    if magic != _MAGIC:
        raise EntryDamaged("it is no entry of this cache")
    header = json.loads(body[_HEAD.size : _HEAD.size + length].tobytes())
    if header["key"] != key:
        raise EntryDamaged("it was written under another name")
    return _slide(header, body, _HEAD.size + length)


def _fill(file: Any, content: npt.NDArray[np.uint8]) -> None:
    """Read a file; where it is shorter than it was the checksum will not fit."""
    filled = 0
    while filled < len(content):
        count = file.readinto(content[filled : filled + _BLOCK_BYTES])
        if not count:
            return
        filled += count


def _parts(key: str, slide: ExtractedSlide) -> Iterator[memoryview]:
    """The bytes of an entry but for its checksum."""
    header = json.dumps(_header(key, slide)).encode()
    header += b" " * (-(_HEAD.size + len(header)) % _ALIGNMENT)
    yield memoryview(_HEAD.pack(_MAGIC, len(header)) + header)
    for scale, name in _order(slide):
        array = _array(slide, scale, name)
        yield array.reshape(-1).view(np.uint8).data
        yield memoryview(bytes(-array.nbytes % _ALIGNMENT))


def _header(key: str, slide: ExtractedSlide) -> dict[str, Any]:
    return {
        "key": key,
        "facts": dataclasses.asdict(slide.facts),
        "dim": slide.bag.dim,
        "tiles_failed": slide.tiles_failed,
        "scales": [
            {
                "name": scale.name,
                "mpp": scale.mpp,
                "tile_size_level0": slide.tile_size_level0[scale.name],
                "planned": slide.planned[scale.name],
                "tiles": len(slide.bag.coords[scale.name]),
            }
            for scale in slide.bag.scales
        ],
    }


def _order(slide: ExtractedSlide) -> Iterator[tuple[str, str]]:
    for scale in slide.bag.scales:
        for name, _ in _ARRAYS:
            yield scale.name, name


def _array(slide: ExtractedSlide, scale: str, name: str) -> npt.NDArray[Any]:
    found = getattr(slide.bag, name)[scale]
    return np.ascontiguousarray(found, dtype=dict(_ARRAYS)[name])


def _slide(header: dict[str, Any], body: npt.NDArray[np.uint8], start: int) -> ExtractedSlide:
    """What a header and the arrays after it say."""
    scales, dim = header["scales"], header["dim"]
    arrays: dict[str, dict[str, Any]] = {name: {} for name, _ in _ARRAYS}
    for scale in scales:
        n = scale["tiles"]
        shapes = {"features": (n, dim), "coords": (n, 2), "parent": (n,), "tissue": (n,)}
        for name, kind in _ARRAYS:
            array: npt.NDArray[Any] = np.ndarray(shapes[name], kind, buffer=body, offset=start)
            arrays[name][scale["name"]] = array
            start += array.nbytes + -array.nbytes % _ALIGNMENT
    facts = _facts(header["facts"])
    return ExtractedSlide(
        facts=facts,
        tile_size_level0={scale["name"]: scale["tile_size_level0"] for scale in scales},
        planned={scale["name"]: scale["planned"] for scale in scales},
        tiles_failed=header["tiles_failed"],
        bag=Bag(
            slide_id=facts.slide_id,
            scales=tuple(Scale(name=scale["name"], mpp=scale["mpp"]) for scale in scales),
            **arrays,
        ),
    )


def _facts(document: dict[str, Any]) -> SlideFacts:
    return SlideFacts(
        **document
        | {
            "bounds": tuple(document["bounds"]),
            "levels": tuple(Level(**level) for level in document["levels"]),
            "warnings": tuple(document["warnings"]),
        }
    )


__all__ = ["FORMAT_VERSION", "EntryDamaged", "entry_bytes", "read_entry", "write_entry"]
