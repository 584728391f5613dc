"""What every MIL model returns for one bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CoarseOutput:
    """The coarse answer of a hierarchical model for one bag, as additive as the fine one.

    Attributes:
        logits: ``[1, Cc]``.
        bias: ``[1, Cc]``.
        attention: per scale ``[Cc, n]``, each row a softmax over the tiles.
        contribution: per scale ``[n, Cc]``.
    """

    logits: Tensor
    bias: Tensor
    attention: Mapping[str, Tensor]
    contribution: Mapping[str, Tensor]


@dataclass(frozen=True)
class MILOutput:
    """Result of one bag; S scales, n tiles at a scale, C classes, d embedding width.

    In an additive model ``bias`` plus the sum of ``contribution`` over tiles and scales is
    ``logits``, so a contribution is a tile's exact share in the answer. What a model does not have
    is None.

    Attributes:
        logits: ``[1, C]``, before the temperature.
        embedding: per scale ``[n, d]``, what the classifier and the attention saw.
        bias: additive models: ``[1, C]``, the part of the logits that no tile brings.
        attention: per scale ``[K, n]``, each row a softmax over the tiles (CMA-MIL: K = 1, HMIL:
            K = C, a row per class).
        contribution: additive models: per scale ``[n, C]``.
        scale_weights: ``[S]``, positive, sums to 1.
        scale_logits: ``[S, C]``, the answer of each scale before fusion and bias.
        streams: DSMIL: ``[2, C]``, the answers whose mean is ``logits``.
        class_embedding: HMIL: ``[C, d]``, the bag as each class sees it, rows of length 1.
        coarse: HMIL: the same answer over the coarse classes.
    """

    logits: Tensor
    embedding: Mapping[str, Tensor]
    bias: Tensor | None = None
    attention: Mapping[str, Tensor] | None = None
    contribution: Mapping[str, Tensor] | None = None
    scale_weights: Tensor | None = None
    scale_logits: Tensor | None = None
    streams: Tensor | None = None
    class_embedding: Tensor | None = None
    coarse: CoarseOutput | None = None


__all__ = ["CoarseOutput", "MILOutput"]
