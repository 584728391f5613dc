"""``cmamil export --precision``: graphs in fp16 and int8, judged on slides, refused, and used."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle, Manifest
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.cli.app import main
from cmamil_sdk.engines import parity
from cmamil_sdk.engines.choose import engine_precisions
from cmamil_sdk.errors import BundleCorrupt, EngineMissing
from cmamil_sdk.files import write_json
from cmamil_sdk.runs import CheckpointMeta, fold_directory, save_checkpoint
from cmamil_sdk.synthetic import write_svs
from cmamil_sdk.synthetic.tiles import tissue_tiles
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

pytestmark = pytest.mark.usefixtures("small_parity_bags")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text("utf-8")
PX = 32
LABELS = ("benign", "invasive")
PARTS = {
    "case-00": ("benign", "train"),
    "case-01": ("benign", "test"),
    "case-02": ("invasive", "test"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small encoder and an untrained model, which knows its slides, beside it."""
    torch = pytest.importorskip("torch")
    from cmamil_sdk.export.encoder import load_encoder
    from cmamil_sdk.models.build import build_model

    from ..export.small_encoder import write_small_graph

    folder = tmp_path_factory.mktemp("precisions")
    write_small_graph(folder, tile_px=PX)
    with contextlib.chdir(folder):
        encoder = load_encoder("onnx:encoder.onnx").info
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"feature_dim": encoder.dim, "n_classes": len(LABELS), "embed_dim": 64}
        model = build_model("abmil", {"scales": ["20x"], **sizes})
    meta = CheckpointMeta(
        model_kind="abmil",
        hyperparameters=model.hyperparameters,
        labels=LABELS,
        recipe=TilingRecipe(scales=parse_scales("20x"), tile_px=PX),
        encoder=encoder,
        fold=0,
        seed=0,
        metrics={"val_auc": 0.5},
    )
    run = folder / "run"
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint(fold_directory(run, 0), meta, state)
    write_json(run / "metrics.json", {"folds": [{"fold": 0}]})
    lines = [f"{slide},{slide},{label},0,{part}" for slide, (label, part) in PARTS.items()]
    (run / "splits.csv").write_text("\n".join(["slide,patient,label,fold,split", *lines]) + "\n")
    (folder / "slides").mkdir()
    for slide, pixels in zip(PARTS, tissue_tiles(224)[::6], strict=True):
        path = folder / "slides" / f"{slide}.svs"
        write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    return run


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Exported and used as the page says."""
    _, _, section = PAGE.partition("## fp16 and int8")
    commands = re.findall(r"^cmamil (.*)$", section.partition("## Measured")[0], re.M)
    assert len(commands) == 2
    with contextlib.chdir(run.parent):
        for command in commands:
            with pytest.raises(SystemExit) as end:
                main(shlex.split(command))
            assert end.value.code in (None, 0), command
    return run.parent / "bundles" / "mine" / "1"


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)[0]


def test_the_manifest_says_what_is_there_and_how_it_was_judged(manifest: Manifest) -> None:
    low = {"encoder.fp16.onnx", "aggregator.fp16.onnx", "encoder.int8.onnx"}
    assert low == {*manifest.files} - {"encoder.onnx", "aggregator.onnx", "golden.npz"}
    reports = {report.precision: report for report in manifest.precisions}
    expected = {"fp16", "int8"} | ({"bf16"} & {*engine_precisions("openvino")})
    assert reports.keys() == expected
    assert reports["fp16"].graphs == ("encoder.fp16.onnx", "aggregator.fp16.onnx")
    assert reports["int8"].graphs == ("encoder.int8.onnx",)
    assert (reports["int8"].calibration_slides, reports["fp16"].calibration_slides) == (1, 0)
    assert 30 < reports["int8"].calibration_tiles <= 49, "no tile of the judged slides"
    assert 0 < reports["fp16"].aggregator["aggregator_logits"] < 1e-2
    assert reports["int8"].aggregator == {}
    for report in reports.values():
        found = report.end_to_end
        assert found is not None
        assert (found.slides, found.held_out, found.labelled) == (2, True, 2)
        assert found.tiles.tiles > 60
        assert found.probability_change > 0
        assert found.auc is not None and report.missed == ""
    rows = {row.label for row in manifest.encoder_parity}
    assert {"onnxruntime-cpu-fp16", "onnxruntime-cpu-int8", "openvino-cpu-int8"} <= rows
    assert manifest.parity_failed == ""


@pytest.mark.parametrize(
    ("precision", "aggregator"), [("fp16", "fp16"), ("int8", "fp32"), ("fp32", "fp32")]
)
def test_what_is_asked_for_is_used(bundle: Path, precision: str, aggregator: str) -> None:
    loaded = Bundle.load(bundle, device="cpu", precision=precision)
    assert loaded.encoder_info.precision == precision
    assert loaded.aggregator_info.label == f"onnxruntime-cpu-{aggregator}"
    assert loaded.open_encoder().info == loaded.encoder_info
    assert ("slower than fp32" in loaded.encoder_info.reason) == (precision == "fp16")


def test_auto_stays_as_it_is(bundle: Path) -> None:
    assert Bundle.load(bundle, device="cpu").encoder_info.precision in ("fp32", "bf16")


def test_predict_and_verify(cmamil: Callable[..., Any], bundle: Path, run: Path) -> None:
    slide = run.parent / "slides" / "case-02.svs"
    answer = cmamil("predict", slide, "--bundle", bundle, "--precision", "int8", "--json")
    assert answer.code == 0, answer.err
    (prediction,) = answer.document["predictions"]
    assert prediction["engine"].endswith("-cpu-int8")
    document = cmamil("verify", bundle, "--json").document
    both = {"onnxruntime-cpu-fp32", "onnxruntime-cpu-fp16"}
    assert document["aggregator_differences"].keys() == both, "its features are too narrow for bf16"
    assert document["encoder_parity"]["onnxruntime-cpu-int8"]["gate"] == {"cosine_worst": 0.95}
    assert "openvino-cpu-fp16" in document["not_here"]
    reported = {report["precision"] for report in document["precisions_at_export"]}
    assert {"fp16", "int8"} <= reported
    table = cmamil("verify", bundle).out
    for said in ("aggregator in fp16", "label flips", "tiles of 1 slide\n"):
        assert said in table


def test_a_changed_graph_is_noticed(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for name in ("encoder.int8.onnx", "aggregator.fp16.onnx"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleCorrupt, match=name):
            Bundle.load(copy)
        (copy / name).write_bytes(whole)
    document = json.loads((copy / "manifest.json").read_text())
    del document["files"]["encoder.int8.onnx"]
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleCorrupt, match="graphs that files lists"):
        Bundle.load(copy)


def test_a_bundle_without_the_graph_says_how_to_get_it(tiny_bundle: Path) -> None:
    for precision in ("fp16", "int8"):
        with pytest.raises(EngineMissing, match=f"export the run with --precision {precision}"):
            Bundle.load(tiny_bundle, device="cpu", precision=precision)


def test_a_precision_that_misses_its_gate(
    cmamil: Callable[..., Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.ENCODER_GATES, "fp16", {"cosine_worst": 1.01})
    monkeypatch.chdir(run.parent)
    arguments = ("export", "--run", run, "--name", "x", "--out", tmp_path, "--precision", "fp16")
    refused = cmamil(*arguments)
    assert refused.code == 3
    assert "PARITY_FAILED: In fp16 the bundle is not close enough" in refused.err
    assert "onnxruntime-cpu-fp16: cosine worst 1.000000 (gate 1.01)" in refused.err
    assert not (tmp_path / "x").exists()
    forced = cmamil(*arguments, "--force")
    assert forced.code == 0
    assert "FAILED: fp16 misses the encoder on onnxruntime-cpu-fp16" in forced.out
    manifest, _ = read_manifest(tmp_path / "x" / "1")
    assert manifest.precisions[0].missed in manifest.parity_failed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "int8"], "--calibration"),
        (["--calibration", "slides"], "no effect"),
        (["--precision", "fp16,fp16"], "no list of different names"),
        (["--precision", "int4"], "unknown"),
    ],
)
def test_what_is_refused_before_any_work(
    cmamil: Callable[..., Any],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(run.parent)
    answer = cmamil("export", "--run", "run", "--name", "y", "--out", "other", *options)
    assert answer.code == 2
    assert said in answer.err
    assert not Path("other").exists()


def test_features_take_fp16_and_no_int8(
    cmamil: Callable[..., Any], run: Path, tmp_path: Path
) -> None:
    slide = run.parent / "slides" / "case-00.svs"
    own = ("--encoder", f"onnx:{run.parent / 'encoder.onnx'}", "--scales", "20x")
    command = ("features", "--slides", slide, "--out", tmp_path, *own, "--precision")
    answer = cmamil(*command, "fp16", "--json")
    assert answer.code == 0, answer.err
    assert answer.document["engine"] == "onnxruntime-cpu-fp16"
    refused = cmamil(*command, "int8")
    assert refused.code == 2
    assert "cmamil export" in refused.err


def test_doctor_lists_them(cmamil: Callable[..., Any]) -> None:
    precisions = cmamil("doctor", "--json").document["precisions"]
    assert precisions.keys() == {"fp32", "bf16", "fp16", "int8"}
    assert precisions["int8"]["why"].startswith("by onnxruntime")
    assert "slower than fp32" in precisions["fp16"]["why"]


def test_what_golden_values_must_reproduce_depends_on_the_precision(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmamil_sdk.bundle import golden
    from cmamil_sdk.errors import SelfTestFailed

    assert golden.GOLDEN_MAX_DIFFERENCE.keys() == {"fp32", "bf16", "fp16"}
    monkeypatch.setitem(golden.GOLDEN_MAX_DIFFERENCE, "fp16", 0.0)
    Bundle.load(bundle, device="cpu", precision="int8")
    with pytest.raises(SelfTestFailed, match=r"at most 0\.0"):
        Bundle.load(bundle, device="cpu", precision="fp16")
    assert np.isfinite(list(Bundle.load(bundle).aggregator_differences().values())).all()
