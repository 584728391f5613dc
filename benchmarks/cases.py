"""One way to run one network, measured in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cmamil_sdk.engines.choose import ENGINES, available_engines, engine_precisions
from cmamil_sdk.errors import CmamilError, FieldInvalid, MemoryTooSmall
from cmamil_sdk.machine import peak_rss_mb, rss_mb

from .closed_loop import Loop, measure_windows
from .fresh_process import in_fresh_process
from .windows import figures, window_figures

EAGER = "torch-eager"
"""The model itself in PyTorch, in fp32: what every engine is compared with."""


@dataclass(frozen=True)
class OpenCase:
    """A network that is ready to be called.

    Attributes:
        call: infers once.
        label: engine, device and precision in use.
        version: of the runtime.
        missed: which gate it misses, in words; empty if none.
        close: frees it.
        memory_bytes: what the runtime says it holds, as :meth:`~cmamil_sdk.engines.Engine.memory_bytes`.
    """

    call: Callable[[], object]
    label: str
    version: str
    missed: str
    close: Callable[[], None]
    memory_bytes: Callable[[], int | None] = lambda: None


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
        held = opened.memory_bytes()
    return {
        "label": opened.label,
        "version": opened.version,
        "missed": opened.missed,
        **figures(windows),
        "windows": [window_figures(window) for window in windows],
        "before_mb": before_mb,
        "engine_mb": None if held is None else held / 1e6,
        "peak_mb": peak_rss_mb(),
    }


def main_of(kind: Callable[..., Case]) -> None:
    """What a module of cases does when it is run: print the figures of the case it is given."""
    request = json.loads(sys.argv[1])
    row = measure_case(kind(**request["case"]), Loop(**request["loop"]))
    sys.stdout.write(json.dumps(row))


__all__ = [
    "EAGER",
    "Case",
    "OpenCase",
    "engine_precision_pairs",
    "main_of",
    "measure_apart",
    "measure_case",
]
