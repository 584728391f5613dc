"""Every bad file that was thought of ends in a typed error or in counted tiles, alone.

The outcomes are compared with docs/reliability.md; ``make reliability-tables`` writes them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.errors import leaf_errors
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.wording import counted

from .conftest import READERS, TRIED, extract_in_process, run_probe
from .files import SLIDES, Trial, write_intact
from .images import IMAGES
from .table import Row, check_section, plain, table

TRIALS: tuple[Trial, ...] = (*SLIDES, *IMAGES)
SUFFIXES_OF_FOLDERS = (".svs", ".tif", ".tiff", ".kfb")
OURS = {"UNEXPECTED_ERROR", "DECODER_CRASHED"}
"""Reasons that would mean that a bad file was not foreseen."""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some fifteen seconds of work, on a machine that may have other
def test_generated_files(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    intact = write_intact(folder / "a-intact.svs")
    for trial in TRIALS:
        trial.make(folder / trial.name, intact)
    (folder / "zz-intact.svs").write_bytes(intact.read_bytes())
    names = ["a-intact.svs", *(trial.name for trial in TRIALS), "zz-intact.svs"]
    outside = [folder / name for name in names if not name.endswith(SUFFIXES_OF_FOLDERS)]
    results = run_probe(tmp_path, [folder / name for name in names], [folder, *outside])
    everywhere = extract_in_process(intact, tmp_path / "everywhere", tissue="none")

    def row(trial: Trial) -> Row:
        return row_of(trial.name, trial.what, results, [folder])

    for reader in TRIED:
        assert results["features"][reader]["code"] == 1, "some failed, the run was done"
        for name in ("a-intact", "zz-intact"):
            assert done(results, reader)[name]["tiles"] == {"10x": 16, "20x": 56}
        for trial in TRIALS:
            stem = Path(trial.name).stem
            if trial.same_pixels and stem in done(results, reader):
                bag, _ = read_feature_file(tmp_path / "features" / reader / f"{stem}.h5")
                assert_no_other_feature(bag, everywhere, trial.name)
    section, lines = "generated files", []
    for group in dict.fromkeys(trial.group for trial in TRIALS):
        rows = [row(trial) for trial in TRIALS if trial.group == group]
        lines += [*([""] if lines else []), f"### {group}", "", *table(section, rows, READERS)]
    check_section(section, lines)


@pytest.mark.timeout(1200)
@pytest.mark.realdata
def test_real_files(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "slides"
    names = sorted(path.name for path in folder.iterdir())
    results = run_probe(tmp_path, [folder / name for name in names], [folder])
    rows = (row_of(name, "", results, [folder]) for name in names)
    check_section("real files", table("real files", rows, READERS))


def assert_no_other_feature(bag: Bag, everywhere: Bag, name: str) -> None:
    """Whatever was read is what the intact slide has in its place."""
    for scale, features in bag.features.items():
        known = {tuple(xy): row for row, xy in enumerate(everywhere.coords[scale].tolist())}
        rows = [known[tuple(xy)] for xy in bag.coords[scale].tolist()]
        np.testing.assert_array_equal(features, everywhere.features[scale][rows], name)


def done(results: Any, reader: str) -> dict[str, Any]:
    """The slides whose features were written, by their id."""
    return {entry["slide"]: entry for entry in results["features"][reader]["document"]["features"]}


def row_of(name: str, what: str, results: Any, folders: list[Path]) -> Row:
    """What inspect said of a file, and features through each reader."""
    outcomes = {}
    for reader in TRIED:
        failed = {
            entry["slide"]: entry for entry in results["features"][reader]["document"]["failed"]
        }
        extracted = _extracted(Path(name).stem, done(results, reader), failed)
        outcomes[reader] = plain(extracted, folders)
    return Row(name, what, outcomes, plain(_inspected(results["inspect"][name]), folders))


def _inspected(result: dict[str, Any]) -> str:
    if result["code"]:
        program, reason, message = result["err"].strip().split(": ", 2)
        assert program == "cmamil", result["err"]
        assert reason in leaf_errors().keys() - OURS, result["err"]
        return f"{reason}: {message}"
    assert not result["err"], result["err"]
    warnings = result["document"]["warnings"]
    return "; ".join(["done", *warnings])


def _extracted(slide: str, fine: dict[str, Any], failed: dict[str, Any]) -> str:
    assert (slide in fine) != (slide in failed), slide
    if slide in failed:
        assert failed[slide]["reason"] in leaf_errors().keys() - OURS, failed[slide]
        return f"{failed[slide]['reason']}: {failed[slide]['message']}"
    entry = fine[slide]
    tiles = counted(sum(entry["tiles"].values()), "tile")
    lost = f", {entry['tiles_failed']} lost and counted" if entry["tiles_failed"] else ""
    return "; ".join([f"{tiles}{lost}", *entry.get("warnings", [])])
