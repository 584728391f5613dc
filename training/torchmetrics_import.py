"""torchmetrics, imported after torchvision, without which it does not import where that is broken."""

from __future__ import annotations

from cmamil_sdk.encoders.torchvision_ops import import_torchvision_if_installed

import_torchvision_if_installed()

from torchmetrics.functional import classification as tm  # noqa: E402

__all__ = ["tm"]
