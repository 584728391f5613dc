"""The server's configuration: every limit with its unit and its default."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cmamil_sdk.bundle.bags import MAX_ATTENTION_MIB
from cmamil_sdk.credentials import is_loopback
from cmamil_sdk.engines.base import GraphEngineName, Precision
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.files import parse_document
from cmamil_sdk.machine import available_cores
from cmamil_sdk.slides import ReaderName

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_PATHS = {
    *("bundles", "bundle_roots", "slides_roots"),
    *("tls_certificate", "tls_key", "tls_client_ca", "tokens"),
    *("jobs_file", "uploads", "cache"),
}


class ServerConfig(BaseModel):
    """What a server does and where it stops.

    Use :meth:`parse` for input from outside: it names the wrong key in a :class:`ConfigInvalid`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1, description="model bundle directories")
    slides_roots: tuple[Path, ...] = Field(
        min_length=1, description="slides are read only beneath these directories"
    )
    bundle_roots: tuple[Path, ...] = Field(
        (),
        description="further bundles may be loaded from beneath these directories, and no others",
    )
    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(50051, ge=0, le=65535, description="0: any free port")
    tls_certificate: Path | None = Field(
        None, description="PEM of the server's certificate, then of its intermediates"
    )
    tls_key: Path | None = Field(None, description="PEM of its key, unencrypted")
    tls_client_ca: Path | None = Field(
        None, description="PEM; clients must show a certificate of one of these authorities"
    )
    insecure: bool = Field(False, description="listen beyond this machine without TLS")
    tokens: Path | None = Field(
        None, description="file of bearer tokens; without it every caller may predict"
    )
    health_host: str = Field("127.0.0.1", min_length=1)
    health_port: int | None = Field(
        None, ge=0, le=65535, description="also answers health, without TLS, and nothing else"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1)
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="serves GET /metrics for Prometheus; off without"
    )
    reflection: bool = Field(False, description="tell callers which methods there are")
    reader: ReaderName = "auto"
    engine: Literal["auto", GraphEngineName] = Field("auto", description="of the encoders")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", Precision] = Field("auto", description="of the encoders")
    allow_failed_parity: bool = Field(
        False, description="serve what misses its gate, with a warning in every answer"
    )

    workers: int = Field(
        default_factory=available_cores, ge=1, le=256, description="child processes"
    )
    worker_memory_mib: int = Field(
        8192, ge=0, description="address space of one worker on the CPU, MiB; 0: no limit"
    )
    open_slides: int = Field(4, ge=1, le=64, description="readers one worker keeps open")
    task_timeout_s: float = Field(
        120.0, gt=0, description="a worker silent for longer over one task is taken for hung"
    )

    cache: Path | None = Field(None, description="folder for slides' features; off without")
    cache_max_bytes: int = Field(
        10 * 2**30, ge=1, description="of the cache; what was used longest ago goes first"
    )
    quarantine_s: float = Field(
        300.0,
        ge=0,
        description="a slide that ended two workers is refused for so long; 0: it is not",
    )

    max_active_slides: int = Field(4, ge=1, le=1024)
    max_queued: int = Field(16, ge=0, le=65536)
    max_calls_per_client: int = Field(
        16, ge=1, description="at a time; a client is a token's name, or an address without tokens"
    )
    max_tiles: int = Field(200_000, ge=1, description="per slide, over all scales")
    max_call_tiles: int = Field(
        64, ge=1, description="that the Open Inference Protocol takes in one call of an encoder"
    )
    max_attention_mib: int = Field(
        MAX_ATTENTION_MIB,
        ge=1,
        description="memory of attention between all tiles of two scales, or of the only one, MiB",
    )
    max_slide_pixels: int = Field(400_000_000_000, ge=1, description="level-0 pixels of a slide")
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        description="pixels of a PNG, JPEG or TIFF that each worker decodes as a whole, 3 bytes each",
    )
    max_levels: int = Field(32, ge=1, description="stored pyramid levels of a slide")
    max_request_bytes: int = Field(
        2**18,
        ge=1024,
        description="of a request; one of many MiB of small fields would hold up other calls",
    )
    max_message_bytes: int = Field(16 * 2**20, ge=1024, description="of any message, both ways")

    jobs_file: Path | None = Field(
        None, description="SQLite file of prediction jobs, on a local disk; no jobs without"
    )
    max_active_jobs: int = Field(
        2, ge=1, description="jobs at work, or first in line for it, at a time"
    )
    max_waiting_jobs: int = Field(1000, ge=1)
    keep_jobs_s: float = Field(
        604_800.0, gt=0, description="a job that has ended is forgotten after so long"
    )

    default_deadline_s: float = Field(900.0, gt=0, description="for requests that set none")
    max_deadline_s: float = Field(3600.0, gt=0)
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        description="after SIGTERM new work is still taken for so long, health has fallen",
    )
    grace_s: float = Field(30.0, ge=0, description="then, for work in flight")
    connection_age_s: float | None = Field(
        None,
        gt=0,
        description="a connection takes calls for so long; its client then makes another",
    )
    heartbeat_s: float = Field(10.0, gt=0, description="longest silence on a progress stream")

    uploads: Path | None = Field(
        None, description="folder for slides that clients upload; without it none are taken"
    )
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="of one uploaded slide")
    uploads_total_bytes: int = Field(
        64 * 2**30, ge=1, description="of all uploaded slides, those on their way included"
    )
    upload_expiry_s: float = Field(
        86_400.0, gt=0, description="an uploaded slide is removed so long after it came"
    )
    upload_idle_s: float = Field(30.0, gt=0, description="longest silence within an upload")

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    log_slides: bool = Field(False, description="write slides' addresses into the log")
    otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://[^/]+", description="send traces there, OTLP over gRPC"
    )

    @field_validator("reader")
    @classmethod
    def _no_plugin(cls, reader: ReaderName) -> ReaderName:
        if reader == "plugin":
            raise ValueError("a server reads nothing through plug-ins; choose another reader")
        return reader

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_deadline_s > self.max_deadline_s:
            raise ValueError(
                f"default_deadline_s ({self.default_deadline_s}) is above "
                f"max_deadline_s ({self.max_deadline_s})"
            )
        if self.max_request_bytes > self.max_message_bytes:
            raise ValueError(
                f"max_request_bytes ({self.max_request_bytes}) is above "
                f"max_message_bytes ({self.max_message_bytes})"
            )
        return self

    @model_validator(mode="after")
    def _reachable_by_whom_it_should(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs TLS; give tls_certificate and tls_key as well")
        hosts = [self.host] if self.metrics_port is None else [self.host, self.metrics_host]
        for host in hosts:
            if self.tls_certificate is not None or is_loopback(host):
                continue
            if self.tokens is not None:
                raise ValueError(
                    f"tokens would travel to {host} in the clear; give tls_certificate and "
                    "tls_key, or listen on 127.0.0.1"
                )
            if not self.insecure:
                raise ValueError(
                    f"without TLS and tokens whoever reaches {host} may predict or read metrics; "
                    "give tls_certificate and tls_key, listen on 127.0.0.1, or set insecure"
                )
        return self

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, where: str | Path = "server settings") -> Self:
        """Validate ``document``; ``where`` names its origin in errors.

        Raises:
            ConfigInvalid: unknown key, value out of range, a slides root that is no directory, or
                uploads beneath one.
        """
        config = parse_document(cls, document, where=where, error=ConfigInvalid)
        for kind, roots in (("slides", config.slides_roots), ("bundle", config.bundle_roots)):
            for root in roots:
                if not root.is_dir():
                    raise ConfigInvalid(
                        f"{where}: {kind} root {root} is no directory; name one that exists."
                    )
        for root in config.slides_roots:
            if config.uploads is not None and config.uploads.resolve().is_relative_to(
                root.resolve()
            ):
                raise ConfigInvalid(
                    f"{where}: uploads ({config.uploads}) lies beneath the slides root {root}, where "
                    "everybody could name its files; choose a folder elsewhere."
                )
        return config


def load_config(path: Path | None, given: Mapping[str, Any]) -> ServerConfig:
    """Settings of a TOML file, if there is one, overridden by those that are ``given``.

    Paths in the file are relative to its folder.

    Raises:
        ConfigInvalid: the file cannot be read, or as :meth:`ServerConfig.parse`.
    """
    if path is None:
        return ServerConfig.parse(given, where="cmamil serve")
    settings = _read_toml(path)
    for name in _PATHS & settings.keys():
        settings[name] = _from_folder(path.parent, settings[name])
    return ServerConfig.parse({**settings, **given}, where=f"cmamil serve --config {path}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as problem:
        raise ConfigInvalid(
            f"{path} cannot be read ({problem.strerror}); check its name and permissions."
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigInvalid(f"{path} is no TOML ({problem}); mend the file.") from problem


def _from_folder(folder: Path, value: Any) -> Any:
    """A path or several, from ``folder`` on; what is neither is left to validation."""
    if isinstance(value, list):
        return [_from_folder(folder, each) for each in value]
    return folder / value if isinstance(value, str) else value


__all__ = ["LogFormat", "LogLevel", "ServerConfig", "load_config"]
