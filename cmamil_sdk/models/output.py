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

    Models are additive: ``bias`` plus the sum of ``contribution`` over tiles and scales is
    ``logits``, so a contribution is a tile's exact share in the answer.

    Attributes:
        logits: ``[1, C]``, before the temperature.
        bias: ``[1, C]``, the part of the logits that no tile brings.
        attention: per scale ``[K, n]``, each row a softmax over the tiles (CMA-MIL: K = 1, HMIL:
            K = C, a row per class).
        contribution: per scale ``[n, C]``.
        instance_logits: per scale ``[n, C]``, the classifier's answer on each tile alone.
        embedding: per scale ``[n, d]``, what the classifier and the attention saw.
        scale_weights: ``[S]``, positive, sums to 1.
        scale_logits: ``[S, C]``, the answer of each scale before fusion and bias.
        class_embedding: HMIL: ``[C, d]``, the bag as each class sees it, rows of length 1.
        coarse: HMIL: the same answer over the coarse classes.
    """

    logits: Tensor
    bias: Tensor
    attention: Mapping[str, Tensor]
    contribution: Mapping[str, Tensor]
    instance_logits: Mapping[str, Tensor]
    embedding: Mapping[str, Tensor]
    scale_weights: Tensor
    scale_logits: Tensor
    class_embedding: Tensor | None = None
    coarse: CoarseOutput | None = None


__all__ = ["CoarseOutput", "MILOutput"]
