"""``cmamil tile`` and ``cmamil features --patch-root``: CMA-MIL's command lines."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.cli.slide_list import slides_by_class
from cmamil_sdk.cli.summary import Summary
from cmamil_sdk.errors import SlideIdDuplicate, SlideNotFound
from cmamil_sdk.synthetic import write_svs

# As the README of CMA-MIL has them, after the name of their program.
TILE = """
  --data_root data/raw_wsi \\
  --out_dir patches \\
  --tile_size 224 \\
  --base_mag 20 \\
  --magnifications 0 \\
  --workers 4 \\
  --threshold 15
"""
FEATURES = """
  --patch_root patches_20x \\
  --out_dir features \\
  --batch_size 128 \\
  --num_workers 4
"""


def words(lines: str) -> list[str]:
    return shlex.split(lines.replace("\\\n", " "))


@pytest.fixture
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two small slides in classes under ``data/raw_wsi``."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "raw_wsi"
    for seed, name in enumerate(("calm/one.svs", "wild/deeper/two.SVS")):
        path = root / name
        path.parent.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        grain = rng.integers(60, 220, (56, 56, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_svs(grain, path, mpp=0.5, objective_power=20.0)
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)


def test_the_commands_of_cma_mil(
    cmamil: Callable[..., Any], slides: Path, shufflenet_weights: Path
) -> None:
    tiled = cmamil("tile", *words(TILE), "--json")
    assert tiled.code == 0, tiled.err
    entries = tiled.document["tiles"]
    assert [(e["slide"], e["class"], e["scale"], e["tiles"]) for e in entries] == [
        ("one", "calm", "20x", 4),
        ("two", "wild", "20x", 4),
    ]
    assert sorted(p.name for p in Path("patches_20x/wild/two").glob("*.jpeg")) == [
        "0_0.jpeg",
        "0_1.jpeg",
        "1_0.jpeg",
        "1_1.jpeg",
    ]
    extracted = cmamil("features", *words(FEATURES), "--weights", shufflenet_weights, "--json")
    assert extracted.code == 0, extracted.err
    arrays = {
        name: np.load(f"features/patches_20x/{name}.npy") for name in ("calm/one", "wild/two")
    }
    assert all(array.shape == (4, 512) for array in arrays.values())
    assert not (arrays["calm/one"] == arrays["wild/two"]).all()
    assert np.load("features/patches_20x/dataset_index.npy").tolist() == [
        ["features/patches_20x/calm/one.npy", "0"],
        ["features/patches_20x/wild/two.npy", "1"],
    ]
    again = cmamil("features", *words(FEATURES), "--weights", shufflenet_weights)
    assert again.code == 0
    assert again.out.count("kept") == 2 and "512 features a tile" in again.out

    plain = cmamil(
        *("features", "--patch-root", "patches_20x/", "--out", "plain", "--projection", "none"),
        *("--weights", shufflenet_weights),
    )
    assert plain.code == 0, plain.err
    assert np.load("plain/patches_20x/calm/one.npy").shape == (4, 1024)


def test_magnifications_have_folders_of_their_own(cmamil: Callable[..., Any], slides: Path) -> None:
    line = ("tile", "--data_root", slides, "--magnifications", "0", "1", "2", "--out", "p")
    assert cmamil(*line).code == 0
    counts = {path.name: len(list(path.rglob("*.jpeg"))) for path in Path().glob("p_*x")}
    assert counts == {"p_20x": 8, "p_10x": 2, "p_5x": 2}
    again = cmamil(*line)
    assert again.code == 0 and again.out.count("kept") == 6


def test_without_weights_nothing_is_made_up(
    cmamil: Callable[..., Any], slides: Path, no_network: None
) -> None:
    cmamil("tile", *words(TILE))
    answer = cmamil("features", *words(FEATURES))
    assert answer.code == 4
    assert "WEIGHTS_MISSING" in answer.err and "shufflenetv2_x1-5666bf0f80.pth" in answer.err
    assert not list(Path("features").rglob("*.npy"))


def test_one_bad_slide_fails_alone(
    cmamil: Callable[..., Any], slides: Path, shufflenet_weights: Path
) -> None:
    (slides / "calm" / "broken.svs").write_text("no slide")
    tiled = cmamil("tile", *words(TILE), "--json")
    assert tiled.code == 1
    assert [failed["slide"] for failed in tiled.document["failed"]] == ["broken"]
    assert len(tiled.document["tiles"]) == 2
    Path("patches_20x/calm/one/0_0.jpeg").write_bytes(b"no image")
    extracted = cmamil("features", *words(FEATURES), "--weights", shufflenet_weights, "--json")
    assert extracted.code == 1
    (failed,) = extracted.document["failed"]
    assert failed["reason"] == "SLIDE_CORRUPT" and "one/0_0.jpeg" in failed["message"]
    # the class whose only slide failed keeps its number: wild is 1 here as at other magnifications
    index = np.load("features/patches_20x/dataset_index.npy").tolist()
    assert index == [["features/patches_20x/wild/two.npy", "1"]]


def test_tiles_of_another_size_need_leave(cmamil: Callable[..., Any], tmp_path: Path) -> None:
    for n in range(2):
        folder = tmp_path / "in" / f"slide{n}"
        folder.mkdir(parents=True)
        Image.effect_noise((256, 256), 60).convert("RGB").save(folder / "0_0.jpeg")
    line = ("features", "--patch-root", tmp_path / "in", "--out", tmp_path / "out")
    line += ("--encoder", "efficientnet_lite0")
    refused = cmamil(*line)
    assert refused.code == 2
    assert "224 px, these have 256 px" in refused.err and "--resize-tiles" in refused.err
    done = cmamil(*line, "--resize-tiles")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "out" / "in" / "slide1.npy").shape == (1, 1280)
    assert sorted(p.name for p in (tmp_path / "out" / "in").iterdir()) == [
        "slide0.json",
        "slide0.npy",
        "slide1.json",
        "slide1.npy",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tile --data-root missing", "no slide *.svs at missing"),
        ("tile", "either --data-root or --slides"),
        ("tile --data-root data --slides data", "either --data-root or --slides"),
        ("tile --slides l.csv --slide-format tif", "--slide-format has no effect"),
        ("tile --slides data/raw_wsi/calm", "has no class"),
        ("tile --data-root data/raw_wsi --magnifications 0 0", "names one twice"),
        ("tile --data-root data/raw_wsi --base-mag 0", "--base-mag 0 is no magnification"),
        ("tile --data-root data/raw_wsi --objective nan", "--objective nan is no magnification"),
        ("tile --data-root data/raw_wsi --mpp 100", "--mpp 100"),
        ("tile --data-root data/raw_wsi --threshold inf", "--threshold inf keeps no tile"),
        ("tile --data-root data/raw_wsi --base-mag 0.5 --magnifications 8", "halved 8 times"),
        ("tile --data-root data/raw_wsi --out-dir .", "--out-dir . is no name"),
        ("features --out o", "either --slides or --patch-root"),
        ("features --out o --patch-root p --slides s", "either --slides or --patch-root"),
        ("features --out o --patch-root p --scales 5x", "--scales has no effect with --patch-root"),
        ("features --out o --slides s --batch-size 4", "--batch-size has no effect with --slides"),
        ("features --out o --patch-root p", "There is no folder p"),
        ("features --out o --slides s --resize-tiles", "no effect without --tile-px"),
        ("features --out o --slides s --encoder onnx:m --weights w", "no effect with onnx:"),
        (
            "features --out o --slides data/raw_wsi/calm --projection seeded",
            "belongs to shufflenet_v2_x1_0",
        ),
        ("features --out o --slides data/raw_wsi/calm --tile-px 256", "--resize-tiles"),
        ("features --out o --slides data/raw_wsi/calm --encoder uni", "timm:<name> or onnx:<file>"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cmamil: Callable[..., Any], slides: Path, line: str, said: str
) -> None:
    answer = cmamil(*shlex.split(line))
    assert answer.code in (2, 3), answer.err
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert not list(Path().rglob("*.jpeg"))


def test_the_class_is_the_folder_below_the_root(slides: Path) -> None:
    found = slides_by_class(slides, "svs")
    assert [(slide.slide_id, slide.label) for slide in found] == [
        ("one", "calm"),
        ("two", "wild"),
    ]
    with pytest.raises(SlideNotFound, match=r"\*\.ndpi"):
        slides_by_class(slides, ".ndpi")
    (slides / "calm" / "two.svs").write_text("")
    with pytest.raises(SlideIdDuplicate):
        slides_by_class(slides, "svs")


def test_slides_of_their_own_encoder_and_size(
    cmamil: Callable[..., Any], slides: Path, shufflenet_weights: Path
) -> None:
    """The other encoders serve slides as well, resized and projected where that is asked for."""
    from cmamil_sdk.features.file import read_feature_file

    answer = cmamil(
        *("features", "--slides", slides / "calm" / "one.svs", "--out", "f", "--scales", "20x"),
        *("--encoder", "shufflenet_v2_x1_0", "--weights", shufflenet_weights),
        *("--projection", "seeded", "--tile-px", 112, "--resize-tiles"),
        *("--tissue", "none"),
    )
    assert answer.code == 0, answer.err
    bag, provenance = read_feature_file(Path("f/one.h5"))
    assert bag.features["20x"].shape == (16, 512)
    assert provenance.recipe.tile_px == provenance.encoder.tile_px == 112
    assert provenance.encoder.projection is not None and provenance.encoder.resize is not None


def test_an_encoder_made_for_one_scale_needs_leave_for_others(
    cmamil: Callable[..., Any], slides: Path
) -> None:
    import json

    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), "mine.onnx")
    facts = {"mean": [0, 0, 0], "std": [255, 255, 255], "mpp": 0.5}
    Path("mine.onnx.json").write_text(json.dumps(facts))
    line = ("features", "--slides", slides / "calm", "--out", "f", "--encoder", "onnx:mine.onnx")
    refused = cmamil(*line)
    assert refused.code == 2
    assert "made for tiles at 0.5 µm/px" in refused.err and "--accept-mpp" in refused.err
    assert cmamil(*line, "--scales", "20x").code == 0
    assert cmamil(*line, "--accept-mpp").code == 0


def test_a_csv_of_slides_with_their_classes_serves_as_well(
    cmamil: Callable[..., Any], slides: Path
) -> None:
    Path("list.csv").write_text(
        "slide,class,mpp\ndata/raw_wsi/calm/one.svs,left,\n"
        "data/raw_wsi/wild/deeper/two.SVS,right,0.25\nnone.svs,right,\n"
    )
    answer = cmamil("tile", "--slides", "list.csv", "--json")
    assert answer.code == 1, answer.err
    found = [(e["slide"], e["class"], e["tiles"], e["mpp"]) for e in answer.document["tiles"]]
    assert found == [("one", "left", 4, 0.5), ("two", "right", 1, 0.25)]
    assert Path("patches_20x/right/two/tiles.json").is_file()
    rows = Summary(Path("patches_summary.csv")).rows()
    assert {name: (row.status, row.reason) for name, row in rows.items()} == {
        "none": ("failed", "SLIDE_NOT_FOUND"),
        "one": ("done", ""),
        "two": ("done", ""),
    }
    assert rows["two"].recipe == f"{rows['one'].recipe} mpp=0.25"
    again = cmamil("tile", "--slides", "list.csv", "--json")
    assert all(entry["resumed"] for entry in again.document["tiles"])
    after = Summary(Path("patches_summary.csv")).rows()
    assert after["one"].status == "kept"
    assert after["one"].seconds == rows["one"].seconds


def test_a_killed_run_leaves_no_process_behind(slides: Path) -> None:
    large = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    write_svs(
        large.repeat(28, 0).repeat(28, 1), slides / "calm" / "a.svs", mpp=0.5, objective_power=20
    )
    program = subprocess.Popen(
        [sys.executable, "-m", "cmamil_sdk.cli", "tile", "--data-root", slides, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not list(Path().glob("patches_20x/calm/.a.*.tmp/*.jpeg")):
        assert program.poll() is None, program.communicate()
    program.kill()
    # Each process has the pipe as its standard output: it ends with the last of them.
    program.communicate(timeout=60)
    assert Path(".patches_summary.a.slide.lock").exists()


def test_what_a_killed_process_left_of_a_slide_is_removed(
    cmamil: Callable[..., Any], slides: Path
) -> None:
    half = Path("patches_20x/calm/.one.1.tmp")
    half.mkdir(parents=True)
    (half / "0_0.jpeg").touch()
    Path(".patches_summary.one.slide.lock").touch()
    assert cmamil("tile", *words(TILE)).code == 0
    assert sorted(p.name for p in Path("patches_20x/calm").iterdir()) == ["one"]
    assert not Path(".patches_summary.one.slide.lock").exists()
