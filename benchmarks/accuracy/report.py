"""A filled table as files: everything as JSON, one line per training and held-out set as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmamil_sdk.benchmarks.environment import describe_machine
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.files import write_atomic, write_json

from .table import ROW_PARTS as _PARTS
from .table import Table, code_sha256


def write_table(folder: Path, document: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``<table>.json`` and ``<table>.csv`` into ``folder``, atomically; returns the paths."""
    json_path = folder / f"{document['table']}.json"
    csv_path = json_path.with_suffix(".csv")
    write_json(json_path, document)
    write_atomic(csv_path, csv_bytes(document))
    return json_path, csv_path


def rows_to_keep(folder: Path, table: Table) -> dict[str, Any]:
    """Rows of ``<table>.json`` in ``folder``, to go on from; empty if there is none.

    Raises:
        ConfigInvalid: it is no such document, or its figures were made with other settings or code,
            on another machine or with other versions, and do not belong beside new ones.
    """
    path = folder / f"{table.name}.json"
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_bytes())
        made_with = {"settings": document["settings"], "code": document["code_sha256"]}
        made_with |= _where(document["environment"])
        rows = {
            name: {part: row[part] for part in _PARTS} for name, row in document["rows"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigInvalid(f"{path} is no table of this benchmark; move it away.") from error
    now = {"settings": json.loads(json.dumps(table.settings)), "code": code_sha256()}
    now |= _where(describe_machine())
    differ = [name for name in now if now[name] != made_with[name]]
    if differ:
        raise ConfigInvalid(
            f"{path} was made with other {' and '.join(differ)}; its rows cannot be kept. Choose "
            "another --out, or leave out --resume to write it anew."
        )
    return {name: row for name, row in rows.items() if name in table.rows}


def _where(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: environment[name] for name in ("cpu", "system", "python", "packages")}


def csv_bytes(document: Mapping[str, Any]) -> bytes:
    """Columns ``table, row, seed, part`` (the fold, where a seed has several) and the scores."""
    rows = document["rows"]
    text = io.StringIO()
    columns = ["table", "row", "seed", "part", *score_names(document)]
    lines = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    lines.writeheader()
    for name, row in rows.items():
        n_values = len(next(iter(row["scores"].values())))
        parts = n_values // len(row["seeds"])
        for position in range(n_values):
            scores = {score: values[position] for score, values in row["scores"].items()}
            seed = row["seeds"][position // parts]
            lines.writerow(
                {"table": document["table"], "row": name, "seed": seed, "part": position % parts}
                | scores
            )
    return text.getvalue().encode()


def score_names(document: Mapping[str, Any]) -> list[str]:
    """Names of all scores of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in document["rows"].values() for name in row["scores"]))


__all__ = ["csv_bytes", "rows_to_keep", "score_names", "write_table"]
