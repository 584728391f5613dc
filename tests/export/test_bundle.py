"""From a run to a bundle: the best fold, the right encoder, or an error and nothing written."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("torch")

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines.parity import AGGREGATOR_GATES
from cmamil_sdk.errors import (
    FieldInvalid,
    OutputExists,
    ParityFailed,
    RecipeMismatch,
    RunInvalid,
)
from cmamil_sdk.export.bundle import export_bundle
from cmamil_sdk.export.folds import best_fold
from cmamil_sdk.files import write_json
from cmamil_sdk.runs import fold_directory, load_checkpoint, save_checkpoint


@pytest.fixture
def run(tiny_bundle, tmp_path):
    """A copy of the run that the small bundle was made from."""
    copy = tmp_path / "run"
    shutil.copytree(tiny_bundle.parents[2] / "run", copy)
    return copy


def add_fold(run, number, **changes):
    meta, tensors = load_checkpoint(fold_directory(run, 0))
    meta = meta.model_copy(update={"fold": number, **changes})
    save_checkpoint(fold_directory(run, number), meta, tensors)


def list_folds(run, *numbers):
    write_json(run / "metrics.json", {"folds": [{"fold": n} for n in numbers]})


def test_the_manifest_tells_where_the_model_comes_from(tiny_bundle, run):
    manifest, _ = read_manifest(tiny_bundle)
    meta, _ = load_checkpoint(fold_directory(run, 0))
    assert (manifest.name, manifest.version, manifest.model_kind) == ("tiny", "1", "cma-mil")
    assert manifest.recipe == meta.recipe
    assert manifest.encoder == meta.encoder
    assert manifest.hyperparameters == meta.hyperparameters
    assert manifest.temperature == 1.5
    assert manifest.training == {
        "fold": 0,
        "seed": 0,
        "metrics": {"val_auc": 0.5},
        "slides_seen": None,
    }
    rows = {row.label: row for row in manifest.encoder_parity}
    assert {"onnxruntime-cpu-fp32", "openvino-cpu-fp32"} <= rows.keys()
    assert all(row.passed for row in rows.values() if row.precision == "fp32")
    assert manifest.parity_failed == ""
    assert manifest.parity["aggregator_logits"] < 1e-3
    assert (manifest.opset, manifest.precision) == (20, "fp32")


def test_a_fold_that_is_not_there_is_refused_with_those_that_are(run, tmp_path):
    add_fold(run, 10)
    add_fold(run, 2)
    with pytest.raises(FieldInvalid, match=r"run has no trained fold 9; it has 0, 2, 10\.$"):
        export_bundle(run, tmp_path / "out", name="x", fold=9)
    with pytest.raises(RunInvalid, match="holds no trained fold"):
        export_bundle(tmp_path / "nowhere", tmp_path / "out", name="x", fold=0)
    (run / "metrics.json").unlink()
    with pytest.raises(RunInvalid, match=r"not finished: .* trained folds \(0, 2, 10\)"):
        export_bundle(run, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_the_best_fold_is_taken_the_first_of_equals(run):
    for number, auc in ((1, 0.9), (2, 0.7), (3, 0.9)):
        add_fold(run, number, metrics={"val_auc": auc})
    list_folds(run, 0, 1, 2, 3)
    assert best_fold(run) == 1
    list_folds(run, 3, 2)
    assert best_fold(run) == 3


def test_an_export_is_repeatable_but_never_written_twice(tiny_bundle, run, tmp_path):
    path = export_bundle(run, tmp_path / "out", name="again", version="v2", fold=0)
    assert path == tmp_path / "out" / "again" / "v2"
    again, _ = read_manifest(path)
    first, _ = read_manifest(tiny_bundle)
    for graph in ("encoder.onnx", "aggregator.onnx"):
        assert again.files[graph] == first.files[graph]
    assert Bundle.load(path, device="cpu").label == "again/v2"
    with pytest.raises(OutputExists, match="--version"):
        export_bundle(run, tmp_path / "out", name="again", version="v2")


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "-x", ".hidden", "a\n", "x" * 65])
def test_names_that_are_no_names(run, tmp_path, name):
    for names in ({"name": name}, {"name": "ok", "version": name}):
        with pytest.raises(FieldInvalid, match=["--name", "--version"]["version" in names]):
            export_bundle(run, tmp_path / "out", **names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("folds", [None, [], "all", [{}], [3], [{"fold": "0"}], [{"fold": 9}]])
def test_a_run_without_usable_folds(run, tmp_path, folds):
    write_json(run / "metrics.json", {"folds": folds})
    with pytest.raises(RunInvalid):
        export_bundle(run, tmp_path / "out", name="x")
    (run / "metrics.json").unlink()
    with pytest.raises(RunInvalid):
        export_bundle(run, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_fit_its_description(run, tmp_path):
    meta, _ = load_checkpoint(fold_directory(run, 0))
    add_fold(run, 1, hyperparameters={**meta.hyperparameters, "dim": 64})
    with pytest.raises(RunInvalid, match="fold_1 holds other tensors"):
        export_bundle(run, tmp_path / "out", name="x", fold=1)


def test_another_encoder_than_the_features_were_made_with(run, tmp_path):
    meta, _ = load_checkpoint(fold_directory(run, 0))
    add_fold(run, 1, encoder=meta.encoder.model_copy(update={"weights_sha256": "e" * 64}))
    with pytest.raises(RecipeMismatch, match="--weights"):
        export_bundle(run, tmp_path / "out", name="x", fold=1)
    assert not (tmp_path / "out" / "x").exists()


def test_a_model_that_misses_its_gate_is_marked_with_force_and_then_refused(
    small_run, tmp_path, monkeypatch
):
    strict = {**AGGREGATOR_GATES["fp32"], "aggregator_logits": 0.0}
    monkeypatch.setitem(AGGREGATOR_GATES, "fp32", strict)
    # nothing may be forced of a model that is no reference, by the same gate
    monkeypatch.setattr("cmamil_sdk.export.aggregator.check_in_double", lambda *_: None)
    path = export_bundle(small_run, tmp_path / "out", name="x", fold=0, force=True)
    manifest, _ = read_manifest(path)
    assert manifest.parity_failed.startswith("the aggregator logits ")
    with pytest.raises(ParityFailed, match="--allow-failed-parity"):
        Bundle.load(path)
    assert manifest.parity_failed in Bundle.load(path, allow_failed_parity=True).warnings[0]
