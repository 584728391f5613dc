"""A comparison with other tools as files, and the targets it is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmamil_sdk.files import csv_text, write_atomic, write_json

from ..figures import draw_peers
from ..targets import AGAINST_BEST, AGAINST_BEST_FP32, AGAINST_RECIPE, PEAK_MEMORY_MB
from .tools import OURS

CSV_FILE = "peers.csv"

_TOOL_COLUMNS = (
    *("tool", "label", "precision", "batch", "tiles", "runs"),
    *("tiles_per_s", "cpu_ms_per_tile", "peak_mb", "spread"),
)
_RECIPE = "cma-mil-recipe"


def judged(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets this measurement speaks of.

    Default precision is fp32 where the processor has no bf16, or the encoder misses its gate.
    """
    found = []
    default = next(tool["tool"] for tool in document["tools"] if tool["tool"] in OURS)
    for tool in document["tools"]:
        if tool["tool"] not in OURS:
            continue
        ratios = {r["peer"]: r["ratio"] for r in document["ratios"] if r["ours"] == tool["tool"]}
        others = [ratio for peer, ratio in ratios.items() if peer != _RECIPE]
        if tool["precision"] == "fp32":
            found += [AGAINST_BEST_FP32.judge(min(others))] if others else []
        if tool["tool"] != default:
            continue
        found += [AGAINST_RECIPE.judge(ratios[_RECIPE])] if _RECIPE in ratios else []
        found += [AGAINST_BEST.judge(min(others))] if others else []
        found.append(PEAK_MEMORY_MB.judge(tool["peak_mb"]))
    return found


def csv_rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A row per tool: its figures, and how many times faster each form of ours is, with interval."""
    forms = [tool["tool"] for tool in document["tools"] if tool["tool"] in OURS]
    header = list(_TOOL_COLUMNS)
    for form in forms:
        header += [f"{form}_{part}" for part in ("ratio", "low", "high")]
    ratios = {(r["ours"], r["peer"]): r for r in document["ratios"]}
    rows = []
    for tool in document["tools"]:
        row = [tool[name] for name in _TOOL_COLUMNS]
        for form in forms:
            ratio = ratios.get((form, tool["tool"]))
            row += ["", "", ""] if ratio is None else [ratio[n] for n in ("ratio", "low", "high")]
        rows.append(row)
    return header, rows


def write_peers(folder: Path, document: Mapping[str, Any]) -> None:
    """Write ``peers.json``, ``peers.csv`` and the chart ``peers.png``."""
    write_json(folder / "peers.json", {**document, "targets": judged(document)})
    header, rows = csv_rows(document)
    write_atomic(folder / CSV_FILE, csv_text(header, rows).encode())
    draw_peers(folder / CSV_FILE, folder / "peers.png")


__all__ = ["CSV_FILE", "csv_rows", "judged", "write_peers"]
