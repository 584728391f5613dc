"""The tile encoders that can be named, with facts that need no weights and no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cmamil_sdk.errors import FieldInvalid


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of an encoder before its weights are loaded.

    Attributes:
        name: as given to ``--encoder``.
        module: the module of this package whose ``build(weights)`` makes the torch network.
        dim: length of a feature vector.
        tile_px: edge of the tiles it takes.
        mean, std: per channel in grey levels (0 to 255); the network sees ``(tile - mean) / std``.
        trained_on: what its default weights were trained on.
    """

    name: str
    module: str
    dim: int
    tile_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trained_on: str


ENCODERS = {
    spec.name: spec
    for spec in (
        EncoderSpec(
            name="efficientnet_lite0",
            module="cmamil_sdk.encoders.efficientnet_lite",
            dim=1280,
            tile_px=224,
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            trained_on="ImageNet; the weights come with the package, no network is needed",
        ),
    )
}


def encoder_spec(name: str) -> EncoderSpec:
    """The encoder called ``name``.

    Raises:
        FieldInvalid: there is none.
    """
    if name not in ENCODERS:
        raise FieldInvalid(f"--encoder {name} is unknown; choose one of {', '.join(ENCODERS)}.")
    return ENCODERS[name]


__all__ = ["ENCODERS", "EncoderSpec", "encoder_spec"]
