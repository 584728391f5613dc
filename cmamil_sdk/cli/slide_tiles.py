"""``cmamil tile``: the run over all slides, once they and the recipes are known."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmamil_sdk.cli.output import say, say_json, table
from cmamil_sdk.cli.shared_runs import Outcome, SlideJob, share_slides
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.cli.slide_runs import RunProgress
from cmamil_sdk.cli.summary import SUMMARY
from cmamil_sdk.patches.manifest import PatchRecipe, read_manifest
from cmamil_sdk.patches.write import TiledScale, scale_folder, tile_slide

if TYPE_CHECKING:
    from cmamil_sdk.slides import ReaderName


def tile_slides(
    slides: Sequence[ListedSlide],
    out: Path,
    recipes: tuple[PatchRecipe, ...],
    *,
    objective: float | None,
    mpp: float | None,
    reader: ReaderName,
    workers: int | None,
    stop_on_error: bool,
    json: bool,
) -> int:
    """Write ``<out>_<scale>/<class>/<slide>/`` and ``<out>_summary.csv``; returns the exit status."""

    def folders(slide: ListedSlide) -> list[Path]:
        return [scale_folder(out, r.scale) / str(slide.label) / slide.slide_id for r in recipes]

    tiled: dict[Path, list[TiledScale]] = {}

    def tile(slide: ListedSlide, progress: RunProgress) -> Outcome:
        started = time.perf_counter()
        scales = tiled[slide.path] = tile_slide(
            slide.path,
            str(slide.label),
            out,
            recipes,
            objective=objective,
            mpp=mpp if slide.mpp is None else slide.mpp,
            reader=reader,
            workers=workers,
            on_progress=progress.update,
        )
        kept = all(scale.resumed for scale in scales)
        return Outcome(
            tiles={s.manifest.recipe.scale.name: s.manifest.kept for s in scales},
            tiles_lost=sum(len(s.manifest.lost) for s in scales),
            kept=kept,
            seconds={} if kept else {"total": time.perf_counter() - started},
        )

    def scales_of(path: Path) -> list[TiledScale]:
        """Those of this run, or what another process has just written."""
        found = [(folder, read_manifest(folder)) for folder in folders(by_path[path])]
        there = [TiledScale(folder, facts, resumed=True) for folder, facts in found if facts]
        return tiled.get(path, there)

    by_path = {slide.path: slide for slide in slides}
    job = SlideJob(
        summary=out.with_name(f"{out.name}_{SUMMARY}"),
        work=tile,
        recipe=partial(_recipe_words, recipes, objective, mpp),
        outputs=folders,
    )
    shared = share_slides(slides, job, stop_on_error=stop_on_error)
    done = [
        _entry(by_path[path], scale) for path, _ in shared.complete() for scale in scales_of(path)
    ]
    if json:
        say_json({"tiles": done, "failed": shared.failures.slides, "summary": str(job.summary)})
    else:
        _say_summary(done)
    return shared.failures.exit_code(len(slides))


def _recipe_words(
    recipes: Sequence[PatchRecipe],
    objective: float | None,
    mpp: float | None,
    slide: ListedSlide,
) -> str:
    """A hash of the recipes, and what is given for this slide beside them."""
    text = "".join(recipe.model_dump_json() for recipe in recipes)
    given = {"mpp": mpp if slide.mpp is None else slide.mpp, "objective": objective}
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return " ".join([key, *(f"{name}={v:g}" for name, v in given.items() if v is not None)])


def _entry(slide: ListedSlide, scale: TiledScale) -> dict[str, Any]:
    facts = scale.manifest
    return {
        "slide": slide.slide_id,
        "class": slide.label,
        "scale": facts.recipe.scale.name,
        "folder": str(scale.folder),
        "tiles": facts.kept,
        "tiles_in_grid": facts.columns * facts.rows,
        "tiles_failed": len(facts.lost),
        "mpp": facts.mpp,
        "mpp_source": facts.mpp_source,
        "resumed": scale.resumed,
    }


def _say_summary(done: list[dict[str, Any]]) -> None:
    columns = ("slide", "class", "scale", "tiles", "tiles_in_grid", "tiles_failed")
    rows = [[*(entry[c] for c in columns), "kept" if entry["resumed"] else ""] for entry in done]
    if rows:
        say(table(["slide", "class", "scale", "tiles", "of", "lost", ""], rows))


__all__ = ["tile_slides"]
