"""Every command of the page on readers works as it stands, and what it quotes is what is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.cli.app import main
from cmamil_sdk.features.file import read_provenance
from cmamil_sdk.slides.cucim_process import HOW_TO_INSTALL, cucim_installed

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reading.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)).splitlines()


def run(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "cmamil"
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (None, 0), command


def test_the_commands_work_as_they_stand(
    tmp_path: Path,
    synthetic_slide: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case-01.svs").symlink_to(synthetic_slide)
    (tmp_path / "demo" / "bundles" / "demo").mkdir(parents=True)
    (tmp_path / "demo" / "bundles" / "demo" / "1").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    commands = blocks("bash")
    assert len(commands) == 5
    for command in commands:
        run(command)
    out = capsys.readouterr().out
    assert "reader       openslide: asked for" in out
    assert "the pixels of all tiles are the same" in out
    assert read_provenance(tmp_path / "features" / "case-01.h5").reader == "openslide: asked for"


@pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")
def test_the_python_example_runs(
    tmp_path: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case-01.svs").symlink_to(synthetic_slide)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks("python")), "docs/reading.md", "exec"), names)
    assert names["tiles"].shape == (2, 224, 224, 3)


def test_the_page_says_how_cucim_is_installed() -> None:
    assert blocks("console") == [HOW_TO_INSTALL]


@pytest.mark.realdata
def test_what_the_page_quotes_is_printed(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"):
        run(f"cmamil inspect {shlex.quote(str(real_data / 'slides' / name))}")
    printed = capsys.readouterr().out.splitlines()
    quoted = blocks("text")
    assert len(quoted) == 2
    assert set(quoted) <= set(printed)
