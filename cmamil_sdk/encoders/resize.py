"""Resizing of tiles as two matrix products, which every engine computes alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmamil_sdk.encoders.info import Interpolation

if TYPE_CHECKING:
    from torch import Tensor


def resize_matrix(from_px: int, to_px: int, interpolation: Interpolation) -> Tensor:
    """Matrix ``A [to_px, from_px]`` with ``A @ image @ A.T`` the resized image of one channel.

    The filter is widened where the image becomes smaller (antialiasing), as Pillow's is.
    """
    import torch  # noqa: PLC0415 - a graph that exists already needs no matrix and no torch

    rows = torch.eye(from_px)[None, None]
    resized: Tensor = torch.nn.functional.interpolate(
        rows, size=(to_px, from_px), mode=interpolation, antialias=True, align_corners=False
    )
    return resized[0, 0]


__all__ = ["resize_matrix"]
