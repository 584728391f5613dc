"""One way to run one network, measured in a process of its own, and against others in turns."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cmamil_sdk.engines.choose import ENGINES, available_engines, engine_precisions
from cmamil_sdk.errors import CmamilError, FieldInvalid, MemoryTooSmall
from cmamil_sdk.machine import peak_rss_mb, rss_mb

from .closed_loop import Loop, call_each, measure_windows
from .fresh_process import in_fresh_process
from .pairs import Pairs, spread, time_in_turns
from .windows import figures, window_figures

EAGER = "torch-eager"
"""The model itself in PyTorch, in fp32: what every engine is compared with."""

_TURN_S = 0.6


@dataclass(frozen=True)
class OpenCase:
    """A network that is ready to be called.

    Attributes:
        call: infers once.
        label: engine, device and precision in use.
        version: of the runtime.
        missed: which gate it misses, in words; empty if none.
        close: frees it.
    """

    call: Callable[[], object]
    label: str
    version: str
    missed: str
    close: Callable[[], None]


class Case(Protocol):
    """What is run and how; its module measures one when it is run with the case as JSON."""

    @property
    def callers(self) -> int:
        """Threads that call at a time."""
        ...

    @property
    def tiles(self) -> int:
        """Tiles of one call."""
        ...

    def open(self) -> OpenCase:
        """Load the network.

        Raises:
            CmamilError: it cannot be run so.
        """
        ...


def engine_precision_pairs(
    engines: Iterable[str],
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Engine and precision of every way this machine has, and of other engines why they are not here.

    Raises:
        FieldInvalid: there is no such engine.
    """
    known = available_engines()
    pairs: list[tuple[str, str]] = []
    absent: dict[str, str] = {}
    for engine in engines:
        if engine not in known:
            raise FieldInvalid(f"--engine {engine} is unknown; choose of {', '.join(ENGINES)}.")
        if known[engine]["available"]:
            pairs += [(engine, precision) for precision in engine_precisions(engine)]
        else:
            absent[engine] = str(known[engine]["why"])
    return pairs, absent


def measure_apart(case: Case, loop: Loop, what: str) -> dict[str, Any]:
    """The figures of a case, measured in a fresh process; with ``why`` alone if it cannot be run."""
    document = json.dumps({"case": vars(case), "loop": asdict(loop)})
    try:
        return in_fresh_process(type(case).__module__, document, what=what)
    except MemoryTooSmall as problem:
        return {"why": str(problem)}


def measure_case(case: Case, loop: Loop) -> dict[str, Any]:
    """The same in this process, whose peak of memory must still lie ahead."""
    before_mb = rss_mb()
    try:
        opened = case.open()
    except CmamilError as problem:
        return {"why": str(problem)}
    with closing(opened):
        windows = measure_windows(opened.call, callers=case.callers, tiles=case.tiles, loop=loop)
    return {
        "label": opened.label,
        "version": opened.version,
        "missed": opened.missed,
        **figures(windows),
        "windows": [window_figures(window) for window in windows],
        "before_mb": before_mb,
        "peak_mb": peak_rss_mb(),
    }


def main_of(kind: Callable[..., Case]) -> None:
    """What a module of cases does when it is run: print the figures of the case it is given."""
    request = json.loads(sys.argv[1])
    row = measure_case(kind(**request["case"]), Loop(**request["loop"]))
    sys.stdout.write(json.dumps(row))


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


def compete(
    baseline: Contestant,
    others: Mapping[str, Contestant],
    pairs: int,
    on_pair: Callable[[int, int], None],
) -> dict[str, Contest]:
    """Time the baseline and each of the others right beside each other.

    In a round each of the others has a pair of its own with the baseline; a first round warms up.
    """
    wall: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    cpu: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    with ExitStack() as stack:
        base, *rest = _turns(stack, [baseline, *others.values()])
        for number in range(-1, pairs):
            on_pair(max(0, number), pairs)
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


__all__ = [
    "EAGER",
    "Case",
    "Contest",
    "Contestant",
    "OpenCase",
    "compete",
    "engine_precision_pairs",
    "main_of",
    "measure_apart",
    "measure_case",
    "ratio_row",
]
