"""What every MIL model returns for one bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MILOutput:
    """Result of one bag; S scales, n tiles at a scale, C classes, d embedding width.

    Models are additive: ``bias`` plus the sum of ``contribution`` over tiles and scales is
    ``logits``, so a contribution is a tile's exact share in the answer.

    Attributes:
        logits: ``[1, C]``, before the temperature.
        bias: ``[1, C]``, the part of the logits that no tile brings.
        attention: per scale ``[K, n]``, each row a softmax over the tiles (CMA-MIL: K = 1).
        contribution: per scale ``[n, C]``.
        instance_logits: per scale ``[n, C]``, the classifier's answer on each tile alone.
        embedding: per scale ``[n, d]``, what the classifier and the attention saw.
        scale_weights: ``[S]``, positive, sums to 1.
        scale_logits: ``[S, C]``, the answer of each scale before fusion and bias.
    """

    logits: Tensor
    bias: Tensor
    attention: Mapping[str, Tensor]
    contribution: Mapping[str, Tensor]
    instance_logits: Mapping[str, Tensor]
    embedding: Mapping[str, Tensor]
    scale_weights: Tensor
    scale_logits: Tensor


__all__ = ["MILOutput"]
