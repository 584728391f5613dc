"""torchvision beside a torch that it was not built for.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled operators don't load, and
then the whole package fails to import, and with it all that imports it where it is installed (timm,
torchmetrics, lightning). Models and transforms need none of those operators: once the two that it
registers on import are declared, it works.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # an operator lives as long as its library


def import_torchvision() -> None:
    """Import torchvision, declaring its operators first if they are missing.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            library.define(operator)  # type: ignore[no-untyped-call]
        _declared.append(library)
        importlib.import_module("torchvision")


def import_torchvision_if_installed() -> None:
    """As :func:`import_torchvision`, before a library that imports it where it finds it."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()


__all__ = ["import_torchvision", "import_torchvision_if_installed"]
