"""What a server says of itself: versions, limits, and the machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cmamil_sdk._proto.cmamil.v1 import server_pb2
from cmamil_sdk.engines.cuda import device_names
from cmamil_sdk.revision import installed_revision, installed_versions

from .config import ServerConfig
from .convert import duration

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openslide-python", "openslide-bin", "grpcio")


@dataclass(frozen=True)
class Origin:
    """Commit of the installed package, and names of the GPUs; empty where there are none."""

    git_revision: str
    gpus: tuple[str, ...]


@functools.cache
def origin() -> Origin:
    """Found out at the first call, which takes a moment."""
    return Origin(installed_revision(), tuple(device_names()))


def limits(config: ServerConfig) -> server_pb2.Limits:
    """What the server takes, as it is configured."""
    return server_pb2.Limits(
        max_active_slides=config.max_active_slides,
        max_queued=config.max_queued,
        max_tiles=config.max_tiles,
        max_slide_pixels=config.max_slide_pixels,
        default_deadline=duration(config.default_deadline_s),
        max_deadline=duration(config.max_deadline_s),
        max_request_bytes=config.max_request_bytes,
    )


def packages() -> list[server_pb2.PackageVersion]:
    """The installed packages that matter, with their versions."""
    return [
        server_pb2.PackageVersion(package=package, version=version)
        for package, version in installed_versions(_PACKAGES).items()
    ]


__all__ = ["Origin", "limits", "origin", "packages"]
