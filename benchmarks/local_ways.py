"""The server beside the local predictor, in turns: one slide, and as many as come."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cmamil_sdk.client import Client
from cmamil_sdk.predict import LocalPredictor

from .pairs import Pairs, seconds_of, spread, time_in_turns

OnStep = Callable[[str, int, int], None]


def slide_row(
    client: Client,
    local: LocalPredictor,
    paths: Sequence[Path],
    pairs: int,
    report: OnStep,
) -> dict[str, Any]:
    """One slide at a time: seconds at the client over the local predictor's ``seconds.total``.

    A first pair warms up and is not counted.
    """
    served_s, local_s = [], []
    for number in range(-1, pairs):
        report("one slide", max(0, number), pairs)
        path, totals = paths[number % len(paths)], list[float]()
        seconds, _ = time_in_turns(
            number, partial(client.predict, path.name), partial(_note_total, local, path, totals)
        )
        if number >= 0:
            served_s.append(seconds)
            local_s.extend(totals)
    return _compared("served_s", served_s, "local_s", local_s)


def per_minute_row(
    client: Client,
    whole: LocalPredictor,
    halves: Sequence[LocalPredictor],
    paths: Sequence[Path],
    pairs: int,
    callers: int,
    report: OnStep,
) -> dict[str, Any]:
    """All slides at once: local seconds over the server's with ``callers`` clients.

    The local predictor does them one after another with all cores (``whole``), and several at a time with
    one worker each (``halves``); in each round the faster way counts. A first round warms up.
    """

    def serve() -> None:
        _shared(paths, [lambda path: client.predict(path.name)] * callers)

    def one_by_one() -> None:
        _shared(paths, [whole.predict])

    def side_by_side() -> None:
        _shared(paths, [local.predict for local in halves])

    ways = {"one by one": one_by_one, "served": serve, "side by side": side_by_side}
    served_s, local_s, faster_ways = [], [], []
    for number in range(-1, pairs):
        report("many slides", max(0, number), pairs)
        turn = number % len(ways)
        names = [*list(ways)[turn:], *list(ways)[:turn]]
        seconds = {name: seconds_of(ways[name]) for name in names}
        if number >= 0:
            served_s.append(seconds.pop("served"))
            faster_ways.append(min(seconds, key=seconds.__getitem__))
            local_s.append(seconds[faster_ways[-1]])
    found = _compared("local_s", local_s, "served_s", served_s)
    per_minute = {
        name.replace("_s", "_per_min"): 60 * len(paths) / found[name]
        for name in ("local_s", "served_s")
    }
    return {
        **found,
        **per_minute,
        "slides": len(paths),
        "callers": callers,
        "faster_ways": faster_ways,
    }


def _note_total(local: LocalPredictor, path: Path, totals: list[float]) -> None:
    totals.append(local.predict(path).seconds["total"])


def _shared(paths: Sequence[Path], workers: Sequence[Callable[[Path], object]]) -> None:
    """Hand ``paths`` out to ``workers``, each the next one when it is done with its last."""
    todo = iter(paths)  # next() of a list's iterator is atomic

    def work(predict: Callable[[Path], object]) -> None:
        for path in todo:
            predict(path)

    with ThreadPoolExecutor(len(workers)) as pool:
        for done in [pool.submit(work, predict) for predict in workers]:
            done.result()


def _compared(
    above: str, above_s: Sequence[float], below: str, below_s: Sequence[float]
) -> dict[str, Any]:
    """``above`` over ``below``, the median of the pairs' ratios with its 95 % interval."""
    measured = Pairs(tuple(above_s), tuple(below_s))
    ratio, low, high = measured.ratio()
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "pairs": len(above_s),
        above: statistics.median(above_s),
        below: statistics.median(below_s),
        f"{above.removesuffix('_s')}_spread": spread(above_s),
        f"{below.removesuffix('_s')}_spread": spread(below_s),
        "pairs_s": list(zip(above_s, below_s, strict=True)),
    }


__all__ = ["per_minute_row", "slide_row"]
