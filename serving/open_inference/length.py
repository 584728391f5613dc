"""How long a request may be: tensors are cheap to read where they are raw, and dear elsewhere.

To parse a message, and to turn the values of typed contents into an array, holds the interpreter: 16 MiB
of them would keep every other call waiting for a quarter of a second. So would a million small fields.
"""

from __future__ import annotations

from collections.abc import Iterator

from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest
from cmamil_sdk.errors import MessageTooLarge

MAX_BYTES_BESIDE_RAW = 2 * 2**20
"""Of a request without the contents of ``raw_input_contents``."""
MAX_FIELDS = 4096
"""Of a request: its inputs, outputs and parameters, each one, and the few others."""

_RAW = ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


def check_length(data: bytes) -> None:
    """Refuse a ModelInferRequest that is too long beside its raw tensors, before it is parsed.

    Raises:
        MessageTooLarge: it is, or has too many fields.
    """
    beside = 0
    for number, length in enumerate(lengths_beside_raw(data), start=1):
        beside += length
        if beside > MAX_BYTES_BESIDE_RAW:
            raise MessageTooLarge(
                f"The request has {beside} bytes or more beside raw_input_contents, the limit is "
                f"{MAX_BYTES_BESIDE_RAW}; send tensors in raw_input_contents, as stock clients do."
            )
        if number > MAX_FIELDS:
            raise MessageTooLarge(
                f"The request has more than {MAX_FIELDS} inputs, outputs and parameters; send those "
                "of one call."
            )


def lengths_beside_raw(data: bytes) -> Iterator[int]:
    """Length of each field of a request, without raw tensors, as far as it is well formed."""
    at = 0
    while at < len(data):
        start, raw = at, 0
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            size = min(size, len(data) - at)
            at += size
            if tag >> 3 == _RAW:
                raw = size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            at = len(data)  # no field of this message
        yield at - start - raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of base 128, and where it ends; the last byte counts as its end where it has none."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            break
    return value, at


__all__ = ["MAX_BYTES_BESIDE_RAW", "MAX_FIELDS", "check_length", "lengths_beside_raw"]
