"""Whether tiles are those that an encoder was made for."""

from __future__ import annotations

from collections.abc import Sequence

from cmamil_sdk.encoders.info import EncoderInfo, ResizeInfo
from cmamil_sdk.encoders.registry import EncoderSpec
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.tiling.recipe import Scale

_MPP_TOLERANCE = 0.05


def resize_for(spec: EncoderSpec, tile_px: int | None, *, resize_tiles: bool) -> ResizeInfo | None:
    """How the graph must resize tiles of ``tile_px`` (None: those the encoder takes).

    Raises:
        FieldInvalid: it must, and ``resize_tiles`` does not permit it.
    """
    if tile_px in (None, spec.tile_px):
        return None
    if not resize_tiles:
        raise FieldInvalid(
            f"Encoder {spec.name} takes tiles of {spec.tile_px} px, these have {tile_px} px; use tiles "
            "of that size, or let the graph resize them with --resize-tiles."
        )
    return ResizeInfo(network_px=spec.tile_px, interpolation=spec.interpolation)


def check_encoder_mpp(encoder: EncoderInfo, scales: Sequence[Scale], *, accept: bool) -> None:
    """Refuse scales at which the encoder was not made to see tiles, unless ``accept``.

    Raises:
        FieldInvalid: the encoder says for which microns per pixel it was made, and a scale has others.
    """
    if accept or encoder.mpp is None:
        return
    other = [s for s in scales if abs(s.mpp / encoder.mpp - 1) > _MPP_TOLERANCE]
    if other:
        shown = ", ".join(f"{scale.name} ({scale.mpp:g} µm/px)" for scale in other)
        raise FieldInvalid(
            f"Encoder {encoder.id} was made for tiles at {encoder.mpp:g} µm/px, and would see {shown}; "
            "leave these scales out, choose another encoder, or accept it with --accept-mpp."
        )


__all__ = ["check_encoder_mpp", "resize_for"]
