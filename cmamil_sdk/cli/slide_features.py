"""``cmamil features --slides``: the run over all slides, once encoder and recipe are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmamil_sdk.cli.output import note, printable, say, say_json, table
from cmamil_sdk.cli.parity_tables import engine_document
from cmamil_sdk.cli.shared_runs import Outcome, SharedRun, SlideJob, share_slides
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.cli.slide_runs import RunProgress
from cmamil_sdk.cli.summary import SUMMARY, SlideRow
from cmamil_sdk.machine import peak_rss_mb, rss_mb
from cmamil_sdk.wording import counted

if TYPE_CHECKING:
    from cmamil_sdk.encoders.info import EncoderInfo
    from cmamil_sdk.engines.base import Engine
    from cmamil_sdk.slides import ReaderName
    from cmamil_sdk.tiling.recipe import TilingRecipe

_KEY_LENGTH = 12


def extract_slides(
    slides: Sequence[ListedSlide],
    out: Path,
    *,
    recipe: TilingRecipe,
    encoder: EncoderInfo,
    engine: Engine,
    mpp: float | None,
    reader: ReaderName,
    workers: int | None,
    resume: bool,
    tissue_masks: Path | None,
    allow_empty: bool,
    stop_on_error: bool,
    json: bool,
) -> int:
    """Write ``<out>/<slide>.h5`` for every slide, and ``summary.csv``; returns the exit status."""
    from cmamil_sdk.features.encode import decoding_device, worker_count
    from cmamil_sdk.features.file import recipe_key
    from cmamil_sdk.features.isolated_encoder import memory_mb
    from cmamil_sdk.features.slide import extract_slide, feature_path

    key = recipe_key(recipe, encoder)[:_KEY_LENGTH]
    warnings: dict[Path, tuple[str, ...]] = {}

    def extract(slide: ListedSlide, progress: RunProgress) -> Outcome:
        result = extract_slide(
            slide.path,
            out,
            recipe=recipe,
            encoder=encoder,
            engine=engine,
            mpp=mpp if slide.mpp is None else slide.mpp,
            reader=reader,
            workers=workers,
            resume=resume,
            tissue_masks=slide.mask or tissue_masks,
            allow_empty=allow_empty,
            on_progress=progress.update,
        )
        warnings[slide.path] = result.warnings
        for warning in result.warnings:
            note(f"{printable(slide.path.name)}: warning: {warning}")
        return Outcome(
            tiles=result.tiles,
            tiles_lost=result.tiles_failed,
            kept=result.resumed,
            seconds={} if result.resumed else result.seconds,
            message="in place of an older file" if result.replaced else "",
        )

    def words(slide: ListedSlide) -> str:
        """The recipe's key, and what is asked for this slide beside it."""
        given = {
            "mpp": mpp if slide.mpp is None else slide.mpp,
            "mask": slide.mask or tissue_masks,
            "reader": None if reader == "auto" else reader,
            "empty": "allowed" if allow_empty else None,
        }
        return " ".join([key, *(f"{n}={v}" for n, v in given.items() if v is not None)])

    job = SlideJob(
        summary=out / SUMMARY,
        work=extract,
        recipe=words,
        outputs=lambda slide: [feature_path(out, slide.path)],
    )
    started, before_mb = time.perf_counter(), memory_mb(engine, rss_mb)
    run = share_slides(slides, job, stop_on_error=stop_on_error)
    count = worker_count(workers, decoding_device(reader, engine.info))
    memory = _memory(run, encoder.dim, before_mb, memory_mb(engine, peak_rss_mb), count)
    if json:
        features = [
            _entry(row, feature_path(out, path), by_other=path in run.others)
            | {"warnings": list(warnings.get(path, ()))}
            for path, row in run.complete()
        ]
        say_json(
            {
                "features": features,
                "failed": run.failures.slides,
                **engine_document(engine.info),
                "summary": str(job.summary),
                "memory": memory,
            }
        )
    else:
        _say_summary(run, len(slides), job.summary, time.perf_counter() - started, memory)
        if run.fresh():
            say(f"{engine.info.label}: {engine.info.reason}")
    return run.failures.exit_code(len(slides))


def _entry(row: SlideRow, file: Path, *, by_other: bool) -> dict[str, Any]:
    return {
        "slide": row.slide,
        "file": str(file),
        "tiles": row.tiles,
        "tiles_failed": row.tiles_lost,
        "seconds": round(row.seconds.get("total", 0.0), 3) if row.status == "done" else 0.0,
        "stages": {stage: round(value, 3) for stage, value in row.seconds.items()},
        "resumed": row.status == "kept",
        "by": row.process if by_other else None,
    }


def _memory(
    run: SharedRun, dim: int, before_mb: float, peak_mb: float, workers: int
) -> dict[str, float]:
    """MB (10^6 bytes): at most; before the first slide; features of the largest slide; of a worker.

    The last is what is left, shared among the workers: an estimate for choosing their number.
    """
    features_mb = max([sum(row.tiles.values()) for row in run.fresh()], default=0) * dim * 4 / 1e6
    worker_mb = max(0.0, peak_mb - before_mb - features_mb) / workers
    figures = {
        "peak_mb": peak_mb,
        "before_mb": before_mb,
        "features_mb": features_mb,
        "worker_mb": worker_mb,
    }
    return {name: round(value, 1) for name, value in figures.items()}


def _say_summary(
    run: SharedRun, slides: int, summary: Path, seconds: float, memory: dict[str, float]
) -> None:
    complete = run.complete()
    if complete:
        names = list(complete[0][1].tiles)
        rows = [
            [
                row.slide,
                *(row.tiles.get(n, 0) for n in names),
                row.tiles_lost,
                row.process if path in run.others else _time_of(row),
            ]
            for path, row in complete
        ]
        say(table(["slide", *names, "lost", "seconds"], rows))
    if run.others:
        say(f"{counted(len(run.others), 'slide')} of these by other processes")
    tiles = sum(sum(row.tiles.values()) for row in run.fresh())
    rate = f", {tiles / seconds:.0f} tiles/s" if tiles else ""
    worker = f" (about {memory['worker_mb']:.0f} MB a worker)" if tiles else ""
    say(
        f"{len(complete)} of {counted(slides, 'slide')} in {summary.parent}, {seconds:.1f} s{rate}, "
        f"memory at most {memory['peak_mb']:.0f} MB{worker}; {summary} tells more"
    )


def _time_of(row: SlideRow) -> str:
    return "kept" if row.status == "kept" else f"{row.seconds['total']:.1f}"


__all__ = ["extract_slides"]
