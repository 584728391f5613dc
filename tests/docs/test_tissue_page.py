"""Every command of the page on tissue works as it stands, and its figures on real slides are right."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.cli.app import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tissue.md").read_text("utf-8")


def run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "cmamil"
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (None, 0), line


@pytest.mark.slow
def test_the_commands_work_as_they_stand(
    tmp_path: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("slides", "masks", "pictures"):
        (tmp_path / folder).mkdir()
    shutil.copyfile(synthetic_slide, tmp_path / "slides" / "case-01.svs")
    picture = np.full((150, 200), 255, np.uint8)
    Image.fromarray(picture).save(tmp_path / "masks" / "case-01.png")
    Image.fromarray(picture).save(tmp_path / "pictures" / "green.png")
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)
    commands = "".join(blocks).splitlines()
    assert len(commands) == 9
    for command in commands:
        run(command)
    for made in ("case-01.png", "case-01-clean.png", "features-by-mask/case-01.h5"):
        assert (tmp_path / made).is_file()


def test_what_the_page_says_of_defaults_is_so() -> None:
    from cmamil_sdk.tiling.recipe import TissueRecipe

    recipe = TissueRecipe()
    for said in (
        f"({recipe.edge_threshold:g})",
        f"({recipe.min_value:g})",
        f"({recipe.pen_min_um2:g},",
        f"about {recipe.cell_um:g} µm",
    ):
        assert said in PAGE


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("slide", "column"),
    [("CMU-1-Small-Region.svs", 1), ("tcga-cr-7395-01a-01-ts1.svs --mpp 0.5", 3)],
)
def test_the_figures_on_real_slides(
    real_data: Path, slide: str, column: int, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.partition("| options |")[2].splitlines()[2:]
        if line.startswith("|")
    ]
    assert len(rows) == 7
    for row in rows:
        options = "" if row[0] == "none" else row[0].strip("`")
        run(f"cmamil inspect --json {options} {real_data / 'slides'}/{slide}")
        found = json.loads(capfd.readouterr().out)
        assert ", ".join(str(n) for n in found["tiles"].values()) == row[column]
        assert f"{100 * found['tissue_fraction']:.1f} %" == row[column + 1]
