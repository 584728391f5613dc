"""Uploads through the wire, message by message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cmamil_sdk._proto.cmamil.v1 import slide_pb2

UPLOAD = "/cmamil.v1.SlideService/UploadSlide"
DELETE = "/cmamil.v1.SlideService/DeleteSlide"
MIB = 2**20


def metadata(content: bytes, **fields: Any) -> bytes:
    """The first message of an upload."""
    said = {
        "filename": "case-17.svs",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    message = slide_pb2.UploadMetadata(**said | fields)
    return slide_pb2.UploadSlideRequest(metadata=message).SerializeToString()


def chunk(content: bytes) -> bytes:
    """A later one."""
    return slide_pb2.UploadSlideRequest(chunk=content).SerializeToString()


def whole(content: bytes, **fields: Any) -> Iterator[bytes]:
    """All messages of an upload."""
    yield metadata(content, **fields)
    for start in range(0, len(content), MIB):
        yield chunk(content[start : start + MIB])


def upload(
    address: str, messages: Iterable[bytes], *, token: str = "", timeout: float = 20.0
) -> slide_pb2.UploadSlideResponse | tuple[str, str]:
    """The answer, or status and reason."""
    return _ask(address, UPLOAD, iter(messages), token, timeout)


def delete(address: str, slide_id: str, *, token: str = "") -> Any:
    """The answer, or status and reason."""
    request = slide_pb2.DeleteSlideRequest(slide_id=slide_id).SerializeToString()
    return _ask(address, DELETE, request, token, 20.0)


def _ask(address: str, method: str, data: Any, token: str, timeout: float) -> Any:
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    streams = method == UPLOAD
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_unary(method) if streams else channel.unary_unary(method)
        try:
            answer = call(data, timeout=timeout, metadata=headers)
        except grpc.RpcError as problem:
            return problem.code().name, reason_of(problem)
    kind = slide_pb2.UploadSlideResponse if streams else slide_pb2.DeleteSlideResponse
    return kind.FromString(answer)


def reason_of(problem: Any) -> str:
    """The leaf that a call ended with."""
    status = rpc_status.from_call(problem)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def files(folder: Path) -> list[str]:
    """Names in a folder of uploads, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")
