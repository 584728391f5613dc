"""Memory of one training step, in a process of its own: ``python -m ... FORM TILES WIDTH WHO``.

The growth is the process's peak (VmHWM) after the step, less what it holds right before it, when
libraries, bag, model and the optimiser's state are in memory: a step on a small bag came first.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from cmamil_sdk.machine import peak_rss_mb, rss_mb
from cmamil_sdk.training.runtime import reproducible

from .fresh_process import in_fresh_process
from .training_steps import draw_bag, our_step, published_step

Who = Literal["ours", "published"]

_WARM_UP_TILES = 256


def step_memory(form: str, finest_tiles: int, feature_dim: int, who: Who) -> dict[str, Any]:
    """Run one step in a fresh process, one thread; returns a row of the memory table.

    Raises:
        MemoryTooSmall: the process was killed.
    """
    return in_fresh_process(
        __name__,
        *(form, str(finest_tiles), str(feature_dim), who),
        what=f"A training step of {form} on {finest_tiles} tiles",
    )


def measure_step(form: str, finest_tiles: int, feature_dim: int, who: Who) -> dict[str, Any]:
    """The same in this process, whose peak must still lie ahead."""
    with reproducible(0, 1):
        step = (our_step if who == "ours" else published_step)(form, feature_dim)
        step(draw_bag(form, _WARM_UP_TILES, feature_dim, 0))
        bag = draw_bag(form, finest_tiles, feature_dim, 1)
        before_mb = rss_mb()
        step(bag)
        peak_mb = peak_rss_mb()
    return {
        "form": form,
        "who": who,
        "finest_tiles": finest_tiles,
        "feature_dim": feature_dim,
        "bag_mb": bag.nbytes / 1e6,
        "before_mb": before_mb,
        "peak_mb": peak_mb,
        "growth_mb": peak_mb - before_mb,
    }


def _main(arguments: list[str]) -> None:
    form, finest_tiles, feature_dim, who = arguments
    chosen: Who = "published" if who == "published" else "ours"
    row = measure_step(form, int(finest_tiles), int(feature_dim), chosen)
    sys.stdout.write(json.dumps(row))


if __name__ == "__main__":
    _main(sys.argv[1:])


__all__ = ["Who", "measure_step", "step_memory"]
