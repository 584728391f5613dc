"""Three scales from one pass over a slide, against a pass for each of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cmamil_sdk.engines import Engine
from cmamil_sdk.engines.gated import open_encoder
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.export.encoder import exported_encoder
from cmamil_sdk.features.extract import extract_bag
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.decoded_tiles import DecodedTiles
from cmamil_sdk.slides.direct_reader import DirectReader
from cmamil_sdk.tiling.plan import TileBatch, TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .environment import describe_machine, load_average
from .pairs import MIN_PAIRS, Pairs, spread, time_in_turns
from .targets import SCALES_IN_ONE_PASS
from .workshop import Workshop

OnPair = Callable[[str, int], None]
_SCALES = ("5x", "10x", "20x")
SAME_PIXELS = "read, apart with the same pixels"
"""Against passes that give the tiles of the one pass, each from the finest scale, and read no more of it
than their tiles need."""

ALONE = "read, apart tile by tile"
"""Against passes in which each tile is read by itself, as they were when the target was set."""


@dataclass(frozen=True)
class ScalesBench:
    """What is measured.

    Attributes:
        folder: of the generated slide and the weights.
        slide: None takes the generated one.
        pairs: how often each way, at least five.
        engine: as :func:`~cmamil_sdk.engines.load_engine`.
    """

    folder: Path
    slide: Path | None = None
    pairs: int = 15
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Refuse too few pairs for an interval (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")


def measure_scales(bench: ScalesBench, *, on_pair: OnPair | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_pair: called with what is measured and the pairs done.

    Raises:
        CmamilError: whatever reading the slide raises.
    """
    report = on_pair or (lambda _what, _done: None)
    load_before = load_average()
    workshop = Workshop(bench.folder)
    slide = bench.slide or workshop.slide()
    exported = exported_encoder("shufflenet_v2_x1_0", workshop.weights())
    engine = open_encoder(exported.graph, exported.parity, engine=bench.engine, device="cpu").engine
    together = [_plan(slide, ",".join(_SCALES))]
    apart = [_plan(slide, scale) for scale in _SCALES]
    encode = partial(_encode, engine=engine, dim=exported.info.dim)
    alike = _alike(slide, together[0], apart[-1])
    ways = {
        SAME_PIXELS: (partial(_read, alike), partial(_read, together)),
        ALONE: (partial(_read, apart, keep=False), partial(_read, together)),
        "read": (partial(_read, apart), partial(_read, together)),
        "read and encode": (partial(encode, apart), partial(encode, together)),
    }
    try:
        rows = [_row(what, *sides, bench.pairs, report) for what, sides in ways.items()]
    finally:
        engine.close()
    return {
        "benchmark": "scales",
        "settings": {"slide": slide.name, "pairs": bench.pairs, "scales": list(_SCALES)},
        "tiles_together": together[0].counts(),
        "tiles_apart": {
            scale: plan.total_tiles() for scale, plan in zip(_SCALES, apart, strict=True)
        },
        "rows": rows,
        "environment": {
            **describe_machine(),
            "engine": engine.info.label,
            "reader": together[0].facts.reader,
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The target this measurement speaks of: reading, for encoding is the same either way.

    Of ways to read three times only one gives the same tiles; features of others are of another
    recipe, which no model for three scales takes.
    """
    read = next(row for row in document["rows"] if row["what"] == SAME_PIXELS)
    return [SCALES_IN_ONE_PASS.judge(read["ratio"])]


def write_scales(folder: Path, document: dict[str, Any]) -> None:
    """Write ``scales.json``."""
    write_json(folder / "scales.json", {**document, "targets": judged(document)})


def _plan(slide: Path, scales: str) -> TilePlan:
    with open_slide(slide) as reader:
        return make_plan(reader, TilingRecipe(scales=parse_scales(scales)))


def _alike(slide: Path, together: TilePlan, finest: TilePlan) -> list[TilePlan]:
    """The tiles of ``together``, a plan for each scale; ``finest`` is that of the finest.

    A block is a tile of the coarsest scale of its plan. So a plan that begins with the scale in question
    reads no block for a part of it.
    """
    plans = [
        _only(_plan(slide, ",".join(_SCALES[number:])), scale)
        for number, scale in enumerate(_SCALES[1:-1], start=1)
    ]
    return [_only(together, _SCALES[0]), *plans, finest]


def _only(plan: TilePlan, name: str) -> TilePlan:
    """The tiles of one scale of a plan, read as the plan reads them."""
    scales = (
        scale if scale.name == name else replace(scale, index=scale.index[:0])
        for scale in plan.scales
    )
    return replace(plan, scales=tuple(scales))


def _read(plans: list[TilePlan], *, keep: bool = True) -> None:
    """Read all tiles of one plan after the other, a thread per core.

    Without ``keep`` each tile is read by itself: nothing that was decoded for one serves another.
    """
    cores = available_cores()
    for plan in plans:
        batches = plan.batches()
        with ThreadPoolExecutor(cores) as pool:
            parts = [pool.submit(_read_part, plan, batches[i::cores], keep) for i in range(cores)]
            for part in parts:
                part.result()


def _read_part(plan: TilePlan, batches: list[TileBatch], keep: bool) -> None:
    with open_slide(Path(plan.facts.path), reader=plan.facts.reader) as reader:
        if not keep and isinstance(reader, DirectReader):
            reader.decoded = DecodedTiles(max_bytes=0)
        for batch in batches:
            read_tiles(reader, batch)


def _encode(plans: list[TilePlan], *, engine: Engine, dim: int) -> None:
    for plan in plans:
        extract_bag(plan, engine, dim).finish()


def _row(
    what: str, apart: Callable[[], None], together: Callable[[], None], pairs: int, report: OnPair
) -> dict[str, Any]:
    """Wall time in turns; a first pair warms up and is not counted."""
    time_in_turns(-1, apart, together)
    times = []
    for number in range(pairs):
        times.append(time_in_turns(number, apart, together))
        report(what, number + 1)
    measured = Pairs(*(tuple(side) for side in zip(*times, strict=True)))
    ratio, low, high = measured.ratio()
    return {
        "what": what,
        "pairs": pairs,
        "apart_s": statistics.median(measured.baseline_s),
        "together_s": statistics.median(measured.ours_s),
        "ratio": ratio,
        "low": low,
        "high": high,
        "apart_spread": spread(measured.baseline_s),
        "together_spread": spread(measured.ours_s),
        "pairs_s": times,
    }


__all__ = ["ALONE", "SAME_PIXELS", "ScalesBench", "judged", "measure_scales", "write_scales"]
