"""What a table does with scores, worked out by hand on a benchmark that only echoes its options."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import cmamil_sdk
from cmamil_sdk.benchmarks.accuracy.report import csv_bytes, rows_to_keep, write_table
from cmamil_sdk.benchmarks.accuracy.table import (
    MeanTarget,
    Row,
    Table,
    code_sha256,
    run_table,
)
from cmamil_sdk.benchmarks.accuracy.tables import TABLES, make_table
from cmamil_sdk.errors import ConfigInvalid


def echo(options: Mapping[str, Any], seed: int) -> list[dict[str, float]]:
    return [{"auc": options["auc"] + 0.01 * seed + fold} for fold in range(options["folds"])]


def make_echo(*targets: MeanTarget) -> Table:
    rows = {
        "good": Row({"auc": 0.9, "folds": 1}, seeds=3),
        "bad": Row({"auc": 0.5, "folds": 1}, seeds=2),
        "folded": Row({"auc": 0.0, "folds": 2}, seeds=2),
    }
    return Table("echo", "an echo", echo, rows, {"folds": 2}, targets)


def test_rows_are_scored_for_their_own_seeds() -> None:
    seen: list[tuple[int, int, str]] = []
    document = run_table(make_echo(), on_run=lambda *run: seen.append(run))
    good, folded = document["rows"]["good"], document["rows"]["folded"]
    assert good["seeds"] == [0, 1, 2]
    assert good["scores"]["auc"] == pytest.approx([0.90, 0.91, 0.92])
    assert good["mean"]["auc"] == pytest.approx(0.91)
    assert good["std"]["auc"] == pytest.approx(0.01)
    assert folded["scores"]["auc"] == pytest.approx([0.0, 1.0, 0.01, 1.01])
    assert [run[:2] for run in seen] == [(done, 7) for done in range(8)]
    assert document["environment"]["cpu"] and document["environment"]["packages"]["torch"]


def test_rows_are_told_as_they_come() -> None:
    kept: list[dict[str, Any]] = []
    document = run_table(make_echo(), rows=["bad", "good"], on_row=kept.append)
    assert [list(so_far["rows"]) for so_far in kept] == [["bad"], ["bad", "good"]]
    assert kept[-1]["rows"] == document["rows"]


def test_chosen_rows_and_seeds() -> None:
    document = run_table(make_echo(), rows=["bad"], seeds=[7])
    assert list(document["rows"]) == ["bad"]
    assert document["rows"]["bad"]["scores"]["auc"] == pytest.approx([0.57])
    assert document["rows"]["bad"]["std"]["auc"] is None, "one value has no spread"


def test_kept_rows_stay_and_are_not_run_again(tmp_path: Path) -> None:
    table = make_echo(MeanTarget("good", "auc", least=0.9))
    write_table(tmp_path, run_table(table, rows=["bad", "good"], seeds=[0]))
    seen: list[str] = []
    document = run_table(
        table,
        rows=["bad", "folded"],
        seeds=[0],
        kept=rows_to_keep(tmp_path, table),
        on_run=lambda done, total, row: seen.append(row),
    )
    assert seen == ["folded", "done"]
    assert list(document["rows"]) == ["bad", "good", "folded"]
    assert [verdict["met"] for verdict in document["targets"]] == [True]


def test_a_kept_row_with_other_seeds_is_run_again(tmp_path: Path) -> None:
    table = make_echo()
    write_table(tmp_path, run_table(table, rows=["bad"], seeds=[0]))
    document = run_table(table, rows=["bad"], kept=rows_to_keep(tmp_path, table))
    assert document["rows"]["bad"]["seeds"] == [0, 1]


def test_the_code_of_a_table_includes_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    assert code_sha256.__wrapped__() == code_sha256()
    assert {"training/fit.py", "models/cma_mil.py", "benchmarks/accuracy/table.py"} <= {
        str(path.relative_to(Path(cmamil_sdk.__file__).parent)) for path in read
    }


def test_rows_of_other_settings_or_machines_are_not_kept(tmp_path: Path) -> None:
    table = make_echo()
    assert rows_to_keep(tmp_path, table) == {}
    write_table(tmp_path, run_table(table, rows=["bad"]))
    other = dataclasses.replace(table, settings={"folds": 3})
    with pytest.raises(ConfigInvalid, match="other settings"):
        rows_to_keep(tmp_path, other)
    path = tmp_path / "echo.json"
    document = json.loads(path.read_text())
    document["environment"]["cpu"] = "abacus"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigInvalid, match="other cpu"):
        rows_to_keep(tmp_path, table)
    path.write_text(json.dumps(document | {"code_sha256": "0"}))
    with pytest.raises(ConfigInvalid, match="other code and cpu"):
        rows_to_keep(tmp_path, table)
    for damaged in ([], document | {"rows": {"bad": {}}}, document | {"rows": []}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ConfigInvalid, match="no table"):
            rows_to_keep(tmp_path, table)


def test_targets_are_judged_where_their_rows_ran() -> None:
    table = make_echo(
        MeanTarget("good", "auc", least=0.9, aim=0.95),
        MeanTarget("bad", "auc", least=0.4, most=0.5),
        MeanTarget("good", "auc", least=0.405, over="bad"),
    )
    verdicts = run_table(table, rows=["good", "bad"])["targets"]
    assert [(v["met"], v["aim_met"]) for v in verdicts] == [
        (True, False),
        (False, None),  # 0.505 is above 0.5
        (True, None),  # 0.91 - 0.505 is 0.405
    ]
    assert verdicts[2]["value"] == pytest.approx(0.405)
    assert verdicts[0]["target"] == "good: auc at least 0.9, aim 0.95"
    assert verdicts[2]["target"] == "good: auc above bad at least 0.405"
    assert len(run_table(table, rows=["good"])["targets"]) == 1


def test_files(tmp_path: Path) -> None:
    document = run_table(make_echo(), rows=["folded", "bad"])
    json_path, csv_path = write_table(tmp_path / "new", document)
    assert json.loads(json_path.read_text()) == document
    assert csv_path.read_bytes() == csv_bytes(document)
    lines = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert [(x["row"], x["seed"], x["part"]) for x in lines] == [
        ("folded", "0", "0"),
        ("folded", "0", "1"),
        ("folded", "1", "0"),
        ("folded", "1", "1"),
        ("bad", "0", "0"),
        ("bad", "1", "0"),
    ]
    assert float(lines[3]["auc"]) == pytest.approx(1.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["unheard"]}, "no row 'unheard'; it has: good; bad; folded"),
        ({"rows": ["bad", "bad"]}, "each once"),
        ({"rows": []}, "at least one row"),
        ({"seeds": []}, "at least one seed"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        run_table(make_echo(), **options)


def test_tables_by_name(tmp_path: Path) -> None:
    assert {make_table(name).name for name in TABLES if name != "musk"} | {"musk"} == set(TABLES)
    assert make_table("musk", tmp_path).name == "musk"
    for name, data, message in (
        ("unheard", None, "no table 'unheard'"),
        ("musk", None, "--data"),
        ("needle", tmp_path, "leave out --data"),
    ):
        with pytest.raises(ConfigInvalid, match=message):
            make_table(name, data)


def test_targets_name_rows_and_rows_have_valid_options(tmp_path: Path) -> None:
    for name in TABLES:
        table = make_table(name, tmp_path if name == "musk" else None)
        for target in table.targets:
            assert set(target.rows) <= set(table.rows)
