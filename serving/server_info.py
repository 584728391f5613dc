"""What a server says of itself: versions, limits, and the machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cmamil_sdk._proto.cmamil.v1 import server_pb2
from cmamil_sdk.engines.cuda import device_names
from cmamil_sdk.revision import installed_revision, installed_versions

from .config import ServerConfig
from .convert import duration
from .feature_cache import FeatureCache
from .metrics import Metrics
from .uploads.uploads import Uploads

_PACKAGES = (
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13", "tensorrt-rtx-cu13"),
    *("openslide-python", "openslide-bin", "cucim-cu13", "imagecodecs", "grpcio", "protobuf"),
)


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
    message = server_pb2.Limits(
        max_active_slides=config.max_active_slides,
        max_queued=config.max_queued,
        max_tiles=config.max_tiles,
        max_slide_pixels=config.max_slide_pixels,
        default_deadline=duration(config.default_deadline_s),
        max_deadline=duration(config.max_deadline_s),
        max_request_bytes=config.max_request_bytes,
        max_message_bytes=config.max_message_bytes,
        max_calls_per_client=config.max_calls_per_client,
        max_call_tiles=config.max_call_tiles,
    )
    if config.cache is not None:
        message.cache.max_bytes = config.cache_max_bytes
    if config.jobs_file is not None:
        message.jobs.max_active = config.max_active_jobs
        message.jobs.max_waiting = config.max_waiting_jobs
        message.jobs.keep.CopyFrom(duration(config.keep_jobs_s))
    if config.uploads is not None:
        message.uploads.max_slide_bytes = config.max_upload_bytes
        message.uploads.total_bytes = config.uploads_total_bytes
        message.uploads.expiry.CopyFrom(duration(config.upload_expiry_s))
        message.uploads.idle.CopyFrom(duration(config.upload_idle_s))
    return message


def kept(
    config: ServerConfig, metrics: Metrics, cache: FeatureCache | None, uploads: Uploads
) -> server_pb2.GetServerStatsResponse:
    """Of the server's statistics what it keeps: features, jobs and uploads, where it keeps such."""
    message = server_pb2.GetServerStatsResponse()
    if cache is not None:
        message.cache.hits = metrics.look_ups(found=True)
        message.cache.misses = metrics.look_ups(found=False)
        message.cache.bytes = cache.bytes
    if config.jobs_file is not None:
        message.jobs.CopyFrom(
            server_pb2.JobStats(**dict(metrics.now().jobs), **dict(metrics.jobs_ended()))
        )
    if config.uploads is not None:
        message.uploads.slides, message.uploads.bytes = uploads.stored
        message.uploads.arriving = uploads.arriving
        message.uploads.arriving_bytes = uploads.arriving_bytes
    return message


def packages() -> list[server_pb2.PackageVersion]:
    """The installed packages that matter, with their versions."""
    return [
        server_pb2.PackageVersion(package=package, version=version)
        for package, version in installed_versions(_PACKAGES).items()
    ]


__all__ = ["Origin", "kept", "limits", "origin", "packages"]
