"""Our own run and other tools on one slide, in turns: the whole measurement, resumable."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.errors import FieldInvalid, OutputExists
from cmamil_sdk.files import sha256_of_file, write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.runs import read_json
from cmamil_sdk.slides import open_slide

from ..environment import describe_machine, load_average
from ..pairs import MIN_PAIRS
from ..workshop import Workshop
from .child import Child
from .rounds import (
    CALIBRATION,
    Record,
    better_batch,
    order_of_round,
    paired,
    read_records,
    summary,
    write_records,
)
from .tools import OURS, PEERS, Tool, peers_named, python_of, worker_command

ROUNDS_FILE = "peers_rounds.csv"
SETTINGS_FILE = "peers_settings.json"

OnRun = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PeersBench:
    """What is measured.

    Attributes:
        out: folder of the rounds as they finish, of logs and scratch files.
        environments: made by :func:`prepare_environments`; None: only what runs in this one.
        tools: names of the peers.
        rounds: how often every tool runs, at least five.
        slide: None takes the benchmarks' generated slide.
        resume: go on with the rounds in ``out``.
    """

    out: Path
    environments: Path | None = None
    tools: tuple[str, ...] = tuple(PEERS)
    rounds: int = 15
    slide: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse too few rounds for an interval, and unknown tools (FieldInvalid)."""
        if self.rounds < MIN_PAIRS:
            raise FieldInvalid(f"--rounds {self.rounds} is too few; give at least {MIN_PAIRS}.")
        peers_named(self.tools)


def measure_peers(bench: PeersBench, *, on_run: OnRun | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_run: called with what ran last, the runs done, and the runs in all.

    Raises:
        OutputExists: there are rounds in ``bench.out`` and they are not to be gone on with.
        FieldInvalid: they are of another slide, of other weights or of other tools.
        InputError: the slide cannot be used.
        DependencyMissing: a tool's environment is missing, or the tool failed.
    """
    workshop = Workshop(bench.out)
    peers = peers_named(bench.tools)
    pythons = {tool.name: python_of(tool, bench.environments) for tool in (*OURS.values(), *peers)}
    slide = bench.slide or workshop.slide()
    with open_slide(slide, reader="openslide"):
        pass  # a file that is no slide is refused before anything is started
    settings = {
        "slide": slide.name,
        "slide_sha256": sha256_of_file(slide),
        "weights_sha256": sha256_of_file(workshop.weights()),
        "tools": [tool.name for tool in peers],
    }
    records = _begin(bench, settings)
    load_before = load_average()
    with contextlib.ExitStack() as stack:
        children = {
            tool.name: stack.enter_context(_start(tool, pythons[tool.name], workshop))
            for tool in (*OURS.values(), *peers)
        }
        ours = _different(children)
        tools = [*ours, *peers]
        rounds = _Rounds(bench, slide, workshop, children, records, on_run or (lambda *_: None))
        rounds.warm_up(tools)
        rounds.calibrate(tools)
        rounds.run(ours, peers)
        versions = {name: child.versions for name, child in children.items()}
    precision = {name: _precision(found) for name, found in versions.items()}
    return {
        "benchmark": "peers",
        "settings": {**settings, "rounds": bench.rounds},
        "tools": [
            summary(records, tool)
            | {"precision": precision[tool.name], "versions": versions[tool.name]}
            for tool in tools
        ],
        "ratios": [_ratio(records, own, peer) for own in ours for peer in peers],
        "agreement": [_agreement(workshop, ours[-1], tool) for tool in tools if tool != ours[-1]],
        "environment": {
            **describe_machine(),
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


@dataclass
class _Rounds:
    """The rounds done so far and what is needed for the next."""

    bench: PeersBench
    slide: Path
    workshop: Workshop
    children: dict[str, Child]
    records: list[Record]
    report: OnRun

    def warm_up(self, tools: Sequence[Tool]) -> None:
        """A small slide through every tool, not counted: first calls load and allocate."""
        small = self.workshop.small_slide()
        for number, tool in enumerate(tools):
            for batch in tool.batches:
                self.children[tool.name].run(small, batch)
            self.report(f"warm-up: {tool.label}", number + 1, len(tools))

    def calibrate(self, tools: Sequence[Tool]) -> None:
        """Every batch size of every tool, and its features for comparison."""
        done = {(r.tool, r.batch) for r in self.records if r.round == CALIBRATION}
        for number, tool in enumerate(tools):
            for batch in tool.batches:
                if (tool.name, batch) not in done:
                    run = self.children[tool.name].run(
                        self.slide, batch, keep=_features_path(self.workshop, tool)
                    )
                    self._keep([Record.of(CALIBRATION, 0, tool, batch, run)])
            self.report(f"batch sizes: {tool.label}", number + 1, len(tools))

    def run(self, ours: Sequence[Tool], peers: Sequence[Tool]) -> None:
        """The rounds that are not there yet; a round counts once all of it is done."""
        batches = {tool.name: better_batch(self.records, tool.name) for tool in (*ours, *peers)}
        first = max((record.round for record in self.records), default=CALIBRATION) + 1
        for number in range(first, self.bench.rounds + 1):
            order, done = order_of_round(number, ours, peers), []
            for place, tool in order:
                run = self.children[tool.name].run(self.slide, batches[tool.name])
                done.append(Record.of(number, place, tool, batches[tool.name], run))
                self.report(
                    f"round {number}: {tool.label}",
                    (number - 1) * len(order) + len(done),
                    self.bench.rounds * len(order),
                )
            self._keep(done)

    def _keep(self, records: list[Record]) -> None:
        self.records += records
        write_records(self.bench.out / ROUNDS_FILE, self.records)


def _different(children: Mapping[str, Child]) -> list[Tool]:
    """Our own forms; one is left out where its engine and precision are those of another."""
    by_engine = {children[name].versions.get("engine", name): tool for name, tool in OURS.items()}
    return list(by_engine.values())


def _precision(versions: Mapping[str, str]) -> str:
    """Of the arithmetic, from the engine's label; tools on torch compute in fp32."""
    return versions.get("engine", "torch-cpu-fp32").rpartition("-")[2]


def _begin(bench: PeersBench, settings: dict[str, Any]) -> list[Record]:
    """The rounds to go on with; the settings of new ones are written down."""
    rounds, kept = bench.out / ROUNDS_FILE, bench.out / SETTINGS_FILE
    if not rounds.exists():
        write_json(kept, settings)
        return []
    if not bench.resume:
        raise OutputExists(
            f"{bench.out} holds rounds already; go on with --resume, or give another --out."
        )
    if read_json(kept) != settings:
        raise FieldInvalid(
            f"The rounds in {bench.out} are of another slide, other weights or other tools; "
            "give the same options as before, or another --out."
        )
    return read_records(rounds)


def _start(tool: Tool, python: Path, workshop: Workshop) -> Child:
    scratch = workshop.folder / "scratch" / tool.name
    scratch.mkdir(parents=True, exist_ok=True)
    task = {
        "weights": str(workshop.weights().resolve()),
        "scratch": str(scratch.resolve()),
        "cores": available_cores(),
        "options": tool.options,
    }
    command = worker_command(tool, python, json.dumps(task))
    return Child(command, workshop.folder / f"{tool.name}.log")


def _features_path(workshop: Workshop, tool: Tool) -> Path:
    return (workshop.folder / f"{tool.name}.npz").resolve()


def _ratio(records: Sequence[Record], own: Tool, peer: Tool) -> dict[str, Any]:
    pairs = paired(records, own.name, peer.name)
    ratio, low, high = pairs.ratio()
    return {
        "ours": own.name,
        "peer": peer.name,
        "ratio": ratio,
        "low": low,
        "high": high,
        "pairs": len(pairs.ratios),
    }


def _agreement(workshop: Workshop, reference: Tool, tool: Tool) -> dict[str, Any]:
    """How many of a tool's tiles are ours too, and how like ours their features are."""
    ours, theirs = (np.load(_features_path(workshop, each)) for each in (reference, tool))
    rows = {tuple(xy): row for row, xy in enumerate(np.round(ours["coords"]).astype(int).tolist())}
    corners = np.round(theirs["coords"]).astype(int).tolist()
    shared = [(rows[tuple(xy)], row) for row, xy in enumerate(corners) if tuple(xy) in rows]
    result: dict[str, Any] = {"tool": tool.name, "tiles": len(corners), "shared": len(shared)}
    if shared:
        mine, other = np.array(shared).T
        cosine = _cosines(ours["features"][mine], theirs["features"][other])
        result |= {"cosine_mean": float(cosine.mean()), "cosine_worst": float(cosine.min())}
    return result


def _cosines(one: Any, other: Any) -> Any:
    """Cosine of each pair of rows, about the mean row of ``one``."""
    centre = one.mean(axis=0)
    a, b = one - centre, other - centre
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


__all__ = ["ROUNDS_FILE", "SETTINGS_FILE", "PeersBench", "measure_peers"]
