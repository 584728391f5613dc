"""Which bags an aggregator takes, known before it is run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cmamil_sdk.bundle.manifest import Manifest
from cmamil_sdk.errors import NonFiniteOutput, TooManyTiles
from cmamil_sdk.features.bag import Bag, not_finite

MAX_TILES = 2**20
"""Most tiles of one scale: graphs are exported for no more."""

MAX_ATTENTION_MIB = 3072
"""Most memory for the scores of attention between all tiles, unless another limit is set."""

_TRANSFORMER_HEADS = 8
_BYTES_PER_SCORE = 10
"""Four of the score, as many of its softmax, and what the runtime holds besides."""


def check_size(
    counts: Mapping[str, int], manifest: Manifest, *, slide: str, max_attention_mib: int
) -> None:
    """Refuse a bag that the aggregator was not made for, or that would exhaust the memory.

    Args:
        counts: tiles per scale, coarse to fine.
        manifest: of the bundle.
        slide: what messages call the slide.
        max_attention_mib: most memory for attention between all tiles.

    Raises:
        TooManyTiles: a scale has more than :data:`MAX_TILES`, or attention needs more memory.
    """
    for name, count in counts.items():
        if count > MAX_TILES:
            raise TooManyTiles(
                f"{slide} has {count} tiles at {name}, an aggregator takes {MAX_TILES} of a scale; cut "
                "the slide into smaller ones, or use a model of coarser scales."
            )
    needed_mib = round(_BYTES_PER_SCORE * scores_held(list(counts.values()), manifest) / 2**20)
    if needed_mib > max_attention_mib:
        raise TooManyTiles(
            f"{slide} has {sum(counts.values())} tiles, global attention between them needs "
            f"{needed_mib} MiB, the limit is {max_attention_mib}; export the model again, which then "
            "holds less, use one with nested attention (on one scale, without attention between tiles), "
            "or raise the server's max_attention_mib."
        )


def check_finite(bag: Bag) -> None:
    """Refuse features that hold NaN or infinity: a graph would clip what is infinite, and answer.

    Raises:
        NonFiniteOutput: says which scale and row.
    """
    for name, features in bag.features.items():
        with np.errstate(invalid="ignore", over="ignore"):
            total = features.sum()  # finite if all are, and needs no mask as large as they are
        broken = None if np.isfinite(total) else not_finite(features)
        if broken is not None:
            raise NonFiniteOutput(
                f"Slide {bag.slide_id}, scale {name}, {broken}; extract the features again, on another "
                "engine or in another precision."
            )


def scores_held(counts: list[int], manifest: Manifest) -> int:
    """Attention scores that a graph holds at once for a bag with so many tiles at each scale.

    Global attention, with or without a nested bias, has a row of scores for each asking tile, as long as
    there are answering ones; a transformer one for each tile and head. A graph made in blocks holds
    ``attention_rows`` of them at a time. Nested attention is linear and counts as 0.
    """
    if manifest.model_kind == "torchmil:TransformerABMIL":
        pairs = [(_TRANSFORMER_HEADS * counts[0], counts[0])]
    elif _attends_to_all(manifest, len(counts)):
        pairs = list(zip(counts, counts[1:] + counts[:1], strict=True))
    else:
        return 0
    at_once = manifest.attention_rows
    return max((n if at_once is None else min(n, at_once)) * m for n, m in pairs)


def _attends_to_all(manifest: Manifest, n_scales: int) -> bool:
    kind = manifest.hyperparameters.get("cross_attention")
    return kind == "global" or (kind == "nested-bias" and n_scales > 1)


__all__ = ["MAX_ATTENTION_MIB", "MAX_TILES", "check_finite", "check_size", "scores_held"]
