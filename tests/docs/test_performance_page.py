"""The page on speed: its commands exist with these options, its targets are those that are judged."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from cmamil_sdk.benchmarks import targets
from cmamil_sdk.benchmarks.figures import DRAWERS, redraw
from cmamil_sdk.benchmarks.peers import measure, tools
from cmamil_sdk.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")


def commands() -> list[str]:
    return "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)).splitlines()


def test_the_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes is stopped where it begins; the options have been read by then."""
    from cmamil_sdk.benchmarks import aggregator, engine, floor, growth, scales, serve

    began: list[str] = []

    def begin(name: str) -> Any:
        began.append(name)
        raise typer.Exit

    installed: list[list[str]] = []
    monkeypatch.setattr(tools, "_run", installed.append)
    for module, name in (
        *((measure, "measure_peers"), (floor, "measure_floor")),
        *((scales, "measure_scales"), (growth, "measure_growth")),
        *((engine, "measure_engines"), (aggregator, "measure_aggregators")),
        (serve, "measure_serve"),
    ):
        stop = partial(begin, name.removeprefix("measure_"))
        monkeypatch.setattr(module, name, lambda *_a, stop=stop, **_o: stop())
    monkeypatch.chdir(tmp_path)
    assert len(commands()) == 8
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "cmamil"
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (None, 0), command
    assert began == ["peers", "floor", "scales", "growth", "engines", "aggregators", "serve"]
    assert len(installed) == 3 * 2 + 1, "an environment and its packages for each, one package bare"


def test_the_page_states_the_targets_that_are_judged() -> None:
    rows = re.findall(r"^\| .* \| ([0-9.]+) \| ([0-9.]+) \|$", PAGE.split("## Targets")[1], re.M)
    judged = [value for value in vars(targets).values() if isinstance(value, targets.Target)]
    shown = [(float(must), float(aim)) for must, aim in rows[: len(judged)]]
    assert sorted(shown) == sorted((target.must, target.aim) for target in judged)


def test_the_pinned_versions_are_those_of_the_page() -> None:
    folder = ROOT / "benchmarks" / "peers" / "requirements"
    for name, version in (("lazyslide", "0.13.0"), ("slide2vec", "7.1.4"), ("hs2p", "6.1.0")):
        file = "slide2vec" if name == "hs2p" else name
        assert f"{name}=={version}" in (folder / f"{file}.txt").read_text().splitlines()
        assert f"{name} {version}" in PAGE
    assert "TIAToolbox 2.1.3" in PAGE
    assert tools.ENVIRONMENTS["tiatoolbox"].bare == ("tiatoolbox==2.1.3",)


def test_every_chart_of_the_docs_is_drawn_from_the_table_beside_it(tmp_path: Path) -> None:
    kept = ROOT / "docs" / "figures"
    for table in kept.glob("*.csv"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
        if table.stem in DRAWERS:
            (tmp_path / f"{table.stem}.png").write_bytes(b"")
    drawn = {path.name for path in redraw(tmp_path)}
    assert drawn == {path.name for path in kept.glob("*.png")}
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)
    assert all(f"figures/{name}" in PAGE for name in drawn)
