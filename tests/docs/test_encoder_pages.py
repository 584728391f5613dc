"""Every command of the pages on encoders and on tiles works as it stands, one after another."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from cmamil_sdk.cli.app import main  # noqa: E402
from cmamil_sdk.encoders.torchvision_ops import import_torchvision  # noqa: E402
from cmamil_sdk.synthetic import write_svs  # noqa: E402

pytestmark = pytest.mark.usefixtures("blank_pictures")

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def run_commands(page: str) -> int:
    commands = "".join(blocks(page, "bash")).splitlines()
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "cmamil"
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (None, 0), command
    return len(commands)


def write_slide(path: Path, seed: int, cell_px: int) -> None:
    """A slide of 896 x 896 px at 20x, all texture of cells so large: 16, 4 and 1 tiles."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(60, 220, (896 // cell_px,) * 2, dtype=np.uint8)
    grey = grain.repeat(cell_px, 0).repeat(cell_px, 1)[..., None]
    pixels = np.clip(grey * np.array([1.1, 0.7, 1.0]), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)


def write_graph(path: Path) -> None:
    """The mean colour, as the document of the page normalises it."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    path.with_name(f"{path.name}.json").write_text(blocks("encoders.md", "json")[0])


def test_the_page_on_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shufflenet_weights: Path
) -> None:
    import_torchvision()
    import timm

    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "slides" / "one.svs", seed=0, cell_px=8)
    write_graph(tmp_path / "mine.onnx")
    shutil.copy(shufflenet_weights, tmp_path)
    torch.save(timm.create_model("test_vit.r160_in1k").state_dict(), "test_vit.pth")
    assert run_commands("encoders.md") == 6
    widths = {}
    for path in tmp_path.glob("features-*/one.h5"):
        with h5py.File(path) as file:
            widths[path.parent.name] = file["scales/20x/features"].shape[1]
    assert widths == {
        "features-shufflenet": 1024,
        "features-projected": 512,
        "features-timm": 64,
        "features-own": 3,
        "features-256": 1280,
        "features-accepted": 3,
    }


def test_from_slides_over_tiles_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shufflenet_weights: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(16):
        label, cell_px = (("calm", 16), ("wild", 8))[n % 2]
        write_slide(tmp_path / "data" / "raw_wsi" / label / f"s{n:02}.svs", n, cell_px)
    shutil.copy(shufflenet_weights, tmp_path)
    assert run_commands("tiles.md") == 5
    for scale, n_tiles in (("5x", 1), ("10x", 4), ("20x", 16)):
        arrays = [np.load(p) for p in (tmp_path / "features" / f"patches_{scale}").glob("*/*.npy")]
        assert [array.shape for array in arrays] == [(n_tiles, 512)] * 16
    assert (tmp_path / "run-chain" / "metrics.json").is_file()


def test_the_page_on_tiles_names_everything_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmamil_sdk.patches.extract import PatchProvenance

    page = (DOCS / "tiles.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "wsi" / "a" / "s.svs", seed=0, cell_px=8)
    with pytest.raises(SystemExit):
        main(["tile", "--data-root", "wsi"])
    (folder,) = tmp_path.glob("patches_*/a/s")
    for path in folder.iterdir():
        assert path.name in page or path.suffix == ".jpeg"
    header = (folder / "tiles.csv").read_text().splitlines()[0]
    assert header in page
    assert {"col_row", "x_y", "scale"} <= set(PatchProvenance.model_fields)
