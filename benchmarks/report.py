"""Measurements as files: everything as JSON, one line per window as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmamil_sdk.files import write_atomic, write_json

JSON_FILE = "slide.json"
CSV_FILE = "slide.csv"

CSV_COLUMNS = (
    "window",
    "verdict",
    "n",
    "wall_s",
    "tiles",
    "tiles_per_s",
    "throughput_spread",
    "p95_spread",
    "p50_s",
    "p90_s",
    "p95_s",
    "p99_s",
    "cpu_s_per_tile",
    "peak_rss_mb",
    "engine",
    "workers",
    "slide",
    "reader",
    "bundle",
    "bundle_sha256",
    "cpu",
    "cores",
    "time",
)


def write_report(folder: Path, document: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write a measurement into ``folder``, atomically; returns the paths of JSON and CSV."""
    json_path, csv_path = folder / JSON_FILE, folder / CSV_FILE
    write_json(json_path, document)
    write_atomic(csv_path, csv_bytes(document))
    return json_path, csv_path


def csv_bytes(document: Mapping[str, Any]) -> bytes:
    """A row per window and a last one over all (window ``all``); what is not known is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n", restval="")
    table.writeheader()
    shared = _shared_columns(document)
    for number, window in enumerate(document["windows"], start=1):
        row = {name: window[name] for name in ("n", "wall_s", "tiles", "tiles_per_s")}
        row |= _latency_columns(window["latency_s"])
        row["cpu_s_per_tile"] = window["cpu_s"] / window["tiles"]
        table.writerow({**shared, "window": number, **row})
    result = document["result"]
    names = ("verdict", "n", "tiles_per_s", "throughput_spread", "cpu_s_per_tile", "peak_rss_mb")
    row = {name: result[name] for name in names} | _latency_columns(result["latency_s"])
    row["p95_spread"] = "" if result["p95_spread"] is None else result["p95_spread"]
    for name in ("wall_s", "tiles"):
        row[name] = sum(window[name] for window in document["windows"])
    table.writerow({**shared, "window": "all", **row})
    return text.getvalue().encode()


def _latency_columns(latency_s: Mapping[str, float | None]) -> dict[str, Any]:
    found = {f"{name}_s": latency_s[name] for name in ("p50", "p90", "p95", "p99")}
    return {name: "" if value is None else value for name, value in found.items()}


def _shared_columns(document: Mapping[str, Any]) -> dict[str, Any]:
    environment = document["environment"]
    names = ("engine", "bundle", "bundle_sha256", "cpu", "cores", "time")
    return {
        **{name: environment[name] for name in names},
        "workers": document["settings"]["workers"],
        "slide": document["slide"]["name"],
        "reader": document["slide"]["reader"],
    }


__all__ = ["CSV_COLUMNS", "CSV_FILE", "JSON_FILE", "csv_bytes", "write_report"]
