"""What identifies an encoder: enough to refuse features that another one made."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interpolation = Literal["bilinear", "bicubic"]


class ProjectionInfo(BaseModel):
    """A linear layer with ReLU behind the network, whose weights follow from ``seed``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(gt=0, description="length of a projected feature vector")
    seed: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its weight and bias")


class ResizeInfo(BaseModel):
    """How the graph resizes tiles before the network sees them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network_px: int = Field(gt=0, description="edge of the images that the network takes")
    interpolation: Interpolation


class EncoderInfo(BaseModel):
    """Identity of one tile encoder.

    ``mean`` and ``std`` are per RGB channel in units of grey levels (0 to 255); the graph computes
    ``(tile - mean) / std`` itself, so engines take uint8 tiles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dim: int = Field(gt=0, description="length of a feature vector")
    tile_px: int = Field(gt=0, description="edge of the tiles it takes, pixels")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str = "fp32"
    mpp: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="microns per pixel it was made for, if known"
    )
    resize: ResizeInfo | None = Field(None, description="None: the network takes tiles as they are")
    projection: ProjectionInfo | None = None


__all__ = ["EncoderInfo", "Interpolation", "ProjectionInfo", "ResizeInfo"]
