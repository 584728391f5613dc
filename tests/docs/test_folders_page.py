"""What the page on many slides shows works as it stands, and what it says of the table is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.cli.app import main
from cmamil_sdk.cli.summary import COLUMNS, Summary
from cmamil_sdk.locks import RENEW_S, STALE_S
from cmamil_sdk.synthetic import write_svs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "folders.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def test_the_commands_and_the_example_work_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate(("case-01", "case-02")):
        rng = np.random.default_rng(seed)
        pixels = np.array([205, 130, 175]) + rng.normal(0, 18, (896, 896, 1))
        path = tmp_path / "slides" / f"{name}.svs"
        write_svs(np.clip(pixels, 0, 255).astype(np.uint8), path, mpp=0.5, objective_power=20.0)
    (tmp_path / "list.csv").write_text(blocks("csv")[0])
    commands = "".join(blocks("bash")).splitlines()
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "cmamil"
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (None, 0), command
    listed = Summary(tmp_path / "features-listed" / "summary.csv").rows()
    assert listed["case-02"].recipe.endswith(" mpp=0.25")
    assert set(Summary(tmp_path / "patches_summary.csv").rows()) == {"case-01", "case-02"}
    assert (tmp_path / "patches_20x" / "tumour" / "case-02" / "tiles.json").is_file()
    capsys.readouterr()
    names: dict[str, Any] = {}
    (example,) = blocks("python")
    exec(compile(example, "docs/folders.md", "exec"), names)
    assert capsys.readouterr().out == "{}\n42 tiles\n"


def test_every_column_and_the_times_of_locks_are_named() -> None:
    table = PAGE.partition("## summary.csv")[2].partition("## Several")[0]
    assert re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*) \|", table, re.M))) == list(
        COLUMNS
    )
    assert f"every {RENEW_S:.0f} seconds" in PAGE
    assert f"for {STALE_S:.0f} seconds" in PAGE
