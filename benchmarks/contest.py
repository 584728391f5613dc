"""Ways to run a network against one of them, in turns."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

from .cases import Case, OpenCase
from .closed_loop import call_each
from .fresh_process import in_fresh_process
from .pairs import Pairs, spread, time_in_turns

_TURN_S = 0.6


@dataclass(frozen=True)
class Contestant:
    """A case that takes turns, and the tiles a second it reached alone."""

    case: Case
    tiles_per_s: float


class _Turn:
    """A loaded case that is called for about as long as every other."""

    def __init__(self, contestant: Contestant, opened: OpenCase, pool: ThreadPoolExecutor) -> None:
        case = contestant.case
        self.opened = opened
        self._callers = case.callers
        rounds = _TURN_S * contestant.tiles_per_s / (case.tiles * case.callers)
        self._calls = case.callers * max(1, math.ceil(rounds))
        self.tiles = self._calls * case.tiles
        self.cpu_s = 0.0
        self._pool = pool

    def __call__(self) -> None:
        started = time.process_time()
        call_each(self._pool, self.opened.call, callers=self._callers, calls=self._calls)
        self.cpu_s = time.process_time() - started


@dataclass(frozen=True)
class Contest:
    """A case against the baseline: seconds of the clock per tile, and of processors."""

    wall: Pairs
    cpu: Pairs


def compete_apart(
    baseline: Contestant, others: Mapping[str, Contestant], pairs: int
) -> dict[str, Contest]:
    """:func:`compete` in a fresh process.

    In one that has used torch before, its threads sleep between operators for there are more of them
    than cores: the eager model would be slowed by what came before it.

    Raises:
        MemoryTooSmall: the process was ended.
    """
    request = {
        "baseline": _told(baseline),
        "others": {name: _told(other) for name, other in others.items()},
        "pairs": pairs,
    }
    found = in_fresh_process(__name__, json.dumps(request), what="taking turns")
    return {
        name: Contest(*(Pairs(**times) for times in (contest["wall"], contest["cpu"])))
        for name, contest in found.items()
    }


def _told(contestant: Contestant) -> dict[str, Any]:
    kind = type(contestant.case)
    return {
        "module": kind.__module__,
        "kind": kind.__name__,
        "case": vars(contestant.case),
        "tiles_per_s": contestant.tiles_per_s,
    }


def _heard(told: dict[str, Any]) -> Contestant:
    kind = getattr(importlib.import_module(told["module"]), told["kind"])
    return Contestant(kind(**told["case"]), told["tiles_per_s"])


def compete(
    baseline: Contestant,
    others: Mapping[str, Contestant],
    pairs: int,
) -> dict[str, Contest]:
    """Time the baseline and each of the others right beside each other.

    In a round each of the others has a pair of its own with the baseline; a first round warms up.
    """
    wall: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    cpu: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    with ExitStack() as stack:
        base, *rest = _turns(stack, [baseline, *others.values()])
        for number in range(-1, pairs):
            for name, turn in zip(others, rest, strict=True):
                base_s, turn_s = time_in_turns(number, base, turn)
                if number >= 0:
                    wall[name].append((base_s / base.tiles, turn_s / turn.tiles))
                    cpu[name].append((base.cpu_s / base.tiles, turn.cpu_s / turn.tiles))
    return {name: Contest(_paired(wall[name]), _paired(cpu[name])) for name in others}


def _paired(found: list[tuple[float, float]]) -> Pairs:
    return Pairs(*(tuple(side) for side in zip(*found, strict=True)))


def _turns(stack: ExitStack, contestants: Iterable[Contestant]) -> Iterator[_Turn]:
    for contestant in contestants:
        opened = stack.enter_context(closing(contestant.case.open()))
        pool = stack.enter_context(ThreadPoolExecutor(contestant.case.callers))
        yield _Turn(contestant, opened, pool)


def ratio_row(contest: Contest) -> dict[str, Any]:
    """How many times faster than the baseline, with the 95 % interval and the spreads.

    ``cpu_ratio`` is the same of processor time, on which other programs weigh less.
    """
    ratio, low, high = contest.wall.ratio()
    return {
        "pairs": len(contest.wall.ours_s),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "cpu_ratio": contest.cpu.ratio()[0],
        "eager_spread": spread(contest.wall.baseline_s),
        "spread": spread(contest.wall.ours_s),
        "eager_s_per_tile": list(contest.wall.baseline_s),
        "s_per_tile": list(contest.wall.ours_s),
    }


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    heard = {name: _heard(told) for name, told in request["others"].items()}
    contests = compete(_heard(request["baseline"]), heard, request["pairs"])
    sys.stdout.write(json.dumps({name: asdict(contest) for name, contest in contests.items()}))


__all__ = ["Contest", "Contestant", "compete", "compete_apart", "ratio_row"]
