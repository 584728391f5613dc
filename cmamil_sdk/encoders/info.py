"""What identifies an encoder: enough to refuse features that another one made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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


__all__ = ["EncoderInfo"]
