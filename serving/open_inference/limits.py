"""What is checked of tensors before a worker sees them: how many there are, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmamil_sdk.bundle.bags import check_size
from cmamil_sdk.bundle.manifest import Manifest
from cmamil_sdk.errors import RequestTooLarge, TooManyTiles
from cmamil_sdk.features.bag import not_finite
from cmamil_sdk.wording import counted

from ..config import ServerConfig
from ..status import FieldProblem, RequestInvalid
from .tensors import Arrays


def check_tiles(inputs: Arrays, config: ServerConfig) -> None:
    """Refuse more tiles than the encoder takes in one call (RequestTooLarge)."""
    count, limit = len(inputs["tiles"]), config.max_call_tiles
    if count > limit:
        raise RequestTooLarge(
            f"The request holds {count} tiles, the limit is {limit}; send them in several calls."
        )


def check_bag(inputs: Arrays, manifest: Manifest, config: ServerConfig) -> None:
    """Refuse a bag that is too large, or whose arrays do not belong together.

    Raises:
        RequestTooLarge: more tiles than a slide may have, or than global attention has memory for.
        RequestInvalid: arrays of one scale are not equally long, an index points to no tile, or a
            feature is NaN or infinite.
    """
    scales = manifest.recipe.names
    counts = {scale: len(inputs[f"features_{scale}"]) for scale in scales}
    total = sum(counts.values())
    if total > config.max_tiles:
        raise RequestTooLarge(
            f"The bag holds {counted(total, 'tile')}, the limit is {config.max_tiles}; send fewer."
        )
    try:
        check_size(counts, manifest, slide="The bag", max_attention_mib=config.max_attention_mib)
    except TooManyTiles as problem:  # of a request, not of a slide
        raise RequestTooLarge(str(problem)) from problem
    problems = [
        *(problem for name in manifest.index_inputs for problem in _index(name, inputs, counts)),
        *(problem for scale in scales for problem in _features(f"features_{scale}", inputs)),
    ]
    if problems:
        raise RequestInvalid(problems)


def _index(name: str, inputs: Arrays, counts: Mapping[str, int]) -> list[FieldProblem]:
    """What is wrong with an index array: engines take negative indices from the end."""
    scale = name.partition("_")[2]
    target = _target(name, list(counts))
    array = inputs[name]
    problems: list[FieldProblem] = []
    if len(array) != counts[scale]:
        rows = f"must have {counts[scale]} rows, as features_{scale}"
        problems.append(FieldProblem(name, f"{rows}, it has {len(array)}"))
    if array.min() < -1 or array.max() >= counts[target]:
        rows = f"must hold -1 or rows of features_{target}, which has {counts[target]}"
        problems.append(FieldProblem(name, rows))
    return problems


def _target(name: str, scales: Sequence[str]) -> str:
    """The scale whose rows an index array holds: children the next finer, ancestors the coarsest."""
    kind, _, scale = name.partition("_")
    return scales[0] if kind == "ancestor" else scales[scales.index(scale) + 1]


def _features(name: str, inputs: Arrays) -> list[FieldProblem]:
    broken = not_finite(inputs[name])
    return [] if broken is None else [FieldProblem(name, f"has {broken}")]


__all__ = ["check_bag", "check_tiles"]
