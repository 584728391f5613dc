"""Every command of the page on training data works as it stands, one after another."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmamil_sdk.cli.app import main
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, write_feature_file
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

pytestmark = pytest.mark.usefixtures("blank_pictures")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
RECIPE = TilingRecipe(scales=parse_scales("20x"))
ENCODER = EncoderInfo(
    id="test", weights_sha256="0" * 64, dim=4, tile_px=224, mean=(0, 0, 0), std=(1, 1, 1)
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)


def write_ours(path: Path, tiles: np.ndarray) -> None:
    n = len(tiles)
    bag = Bag(
        slide_id=path.stem,
        scales=RECIPE.scales,
        features={"20x": tiles},
        coords={"20x": np.zeros((n, 2), np.int64)},
        parent={"20x": np.full(n, -1)},
        tissue={"20x": np.ones(n, np.float32)},
    )
    provenance = FeatureProvenance(
        slide_id=path.stem,
        slide_sha256="0" * 64,
        width=900,
        height=900,
        mpp=0.5,
        mpp_source="metadata",
        reader="openslide",
        recipe=RECIPE,
        encoder=ENCODER,
        engine="onnxruntime",
    )
    write_feature_file(path, bag, provenance)


def write_places(folder: Path) -> None:
    """What the page takes for granted: sixty slides in each layout, and their labels."""
    rng = np.random.default_rng(0)
    lines = ["case_id,slide_id,label,site"]
    (folder / "clam_features").mkdir()
    for n in range(60):
        slide, label = f"s{n:02}", ("calm", "wild")[n % 2]
        lines.append(f"p{n:02},{slide},{label},S{n % 12}")
        tiles = (rng.standard_normal((3, 4)) + n % 2).astype(np.float32)
        write_ours(folder / "features" / f"{slide}.h5", tiles)
        with h5py.File(folder / "clam_features" / f"{slide}.h5", "w") as file:
            file["features"] = tiles[None]
        for fold in (1, 2):
            part = ("test", "val", "train", "train")[(n // 2 + fold) % 4]
            for scale in ("5x", "10x", "20x"):
                place = folder / "data" / scale / str(fold) / part / label
                place.mkdir(parents=True, exist_ok=True)
                np.save(place / f"{slide}.npy", tiles)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(blocks("yaml")[0])


@pytest.mark.slow
def test_the_commands_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_places(tmp_path)
    commands = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    assert len(commands) == 11
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "cmamil"
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (None, 0), command
    runs = {path.parent.name for path in tmp_path.glob("*/metrics.json")}
    assert runs == {"run", "run-clam", "run-tree", "run-patients", "run-folds", "run-config"}
    assert len(list((tmp_path / "folds-mc").iterdir())) == 4
    assert len(list((tmp_path / "folds-sites").iterdir())) == 4
