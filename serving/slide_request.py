"""What is asked of a slide, and where a request stands."""

from __future__ import annotations

from dataclasses import dataclass

from .models import LoadedModel


@dataclass(frozen=True)
class SlideRequest:
    """A checked request: which slide, by which model, read how.

    The slide is ``uri``, or where that is empty the uploaded one of ``slide_id``.

    Attributes:
        aggregate: whether the model's aggregator is to run on the features.
        bypass_cache: features are computed for this request alone and not kept.
    """

    uri: str
    expected_sha256: str
    mpp: float | None
    model: LoadedModel
    top_k: int = 0
    slide_id: str = ""
    aggregate: bool = True
    bypass_cache: bool = False


@dataclass(frozen=True)
class Stage:
    """Where a request stands: ``queued``, ``planning``, ``tiles`` or ``aggregating``."""

    name: str
    done: int = 0
    total: int = 0


__all__ = ["SlideRequest", "Stage"]
