"""A Triton model repository: Triton's own message reads its configurations, and they fit the graphs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.errors import BundleCorrupt, FieldInvalid, OutputExists, OutputUnwritable
from cmamil_sdk.export.triton import ENCODER_MAX_BATCH, export_triton
from cmamil_sdk.files import write_json
from cmamil_sdk.runs import read_json

_ONNX_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64"}


@pytest.fixture(scope="module")
def repository(tiny_bundle, tmp_path_factory):
    """The repository of the small CMA-MIL bundle."""
    folder = tmp_path_factory.mktemp("triton")
    export_triton(tiny_bundle, folder)
    return folder


def config_of(model):
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def shapes_in(tensors):
    return {t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in tensors}


def shapes_of(values, skip=0):
    """Name -> Triton type and shape of a graph's inputs or outputs, without the first ``skip`` axes."""
    return {
        v.name: (
            _ONNX_TYPES[v.type.tensor_type.elem_type],
            [d.dim_value or -1 for d in v.type.tensor_type.shape.dim][skip:],
        )
        for v in values
    }


@pytest.mark.parametrize(("part", "batched"), [("encoder", True), ("aggregator", False)])
def test_a_configuration_fits_its_graph(repository, tiny_bundle, part, batched):
    model = repository / f"tiny_{part}"
    config = config_of(model)
    graph = onnx.load(model / "1" / "model.onnx").graph
    assert config.name == model.name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == (ENCODER_MAX_BATCH if batched else 0)
    assert shapes_in(config.input) == shapes_of(graph.input, skip=int(batched))
    assert shapes_in(config.output) == shapes_of(graph.output, skip=int(batched))
    assert (model / "1" / "model.onnx").read_bytes() == (tiny_bundle / f"{part}.onnx").read_bytes()


def test_only_what_is_dynamic_in_the_graph_is_dynamic_in_the_configuration(repository):
    aggregator = shapes_in(config_of(repository / "tiny_aggregator").input)
    assert aggregator["features_20x"] == ("TYPE_FP32", [-1, 1280])
    assert aggregator["children_5x"] == ("TYPE_INT64", [-1, 4])
    assert shapes_in(config_of(repository / "tiny_encoder").input) == {
        "tiles": ("TYPE_UINT8", [224, 224, 3])
    }


def test_probabilities_carry_the_labels(repository):
    model = repository / "tiny_aggregator"
    named = {o.name: o.label_filename for o in config_of(model).output if o.label_filename}
    assert named == {"probabilities": "probabilities.txt"}
    assert (model / "probabilities.txt").read_text().split() == ["benign", "in_situ", "invasive"]


def test_it_says_which_bundle_it_was(repository, tiny_bundle):
    manifest, digest = read_manifest(tiny_bundle)
    parameters = config_of(repository / "tiny_encoder").parameters.items()
    notes = {key: value.string_value for key, value in parameters}
    assert notes == {"cmamil_recipe": manifest.recipe.model_dump_json()}
    for part in ("encoder", "aggregator"):
        origin = read_json(repository / f"tiny_{part}" / "1" / "bundle.json")
        assert origin == {"bundle": "tiny/1", "sha256": digest}


def contents(folder):
    """Every file below a folder, by its name."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def changed(bundle, target, **changes):
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, target)
    document = read_json(target / "manifest.json")
    write_json(target / "manifest.json", {**document, **changes})
    return target


def test_a_version_is_never_overwritten(repository, tiny_bundle):
    before = contents(repository)
    with pytest.raises(OutputExists, match=r"tiny_encoder/1 exists already; .* --version"):
        export_triton(tiny_bundle, repository)
    assert contents(repository) == before


@pytest.fixture
def own_repository(repository, tmp_path):
    """A copy that a test may add to."""
    return shutil.copytree(repository, tmp_path / "models")


def test_a_second_version_stands_beside_the_first(own_repository, tiny_bundle, tmp_path):
    before = contents(own_repository)
    bundle = changed(tiny_bundle, tmp_path / "second", version="2", parity_failed="the encoder")
    export_triton(bundle, own_repository)
    after = contents(own_repository)
    assert {name: after[name] for name in before} == before
    for part in ("encoder", "aggregator"):
        model = own_repository / f"tiny_{part}"
        assert {path.name for path in model.iterdir() if path.is_dir()} == {"1", "2"}
        assert (model / "2" / "model.onnx").read_bytes() == (bundle / f"{part}.onnx").read_bytes()
        origin = read_json(model / "2" / "bundle.json")
        assert (origin["bundle"], origin["parity_failed"]) == ("tiny/2", "the encoder")
    assert len(after) == len(before) + 4


def other_recipe(manifest):
    return {"recipe": {**manifest["recipe"], "scale_source": "stored"}}


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        (lambda m: {"labels": ["benign", "invasive", "in_situ"]}, "probabilities.txt"),
        (other_recipe, "tiny_encoder/config.pbtxt"),
    ],
)
def test_a_version_that_is_another_model_is_refused(
    own_repository, tiny_bundle, tmp_path, changes, file
):
    before = contents(own_repository)
    manifest = read_json(tiny_bundle / "manifest.json")
    bundle = changed(tiny_bundle, tmp_path / "other", version="2", **changes(manifest))
    with pytest.raises(OutputExists, match=f"{file} is not what this bundle needs.*--name"):
        export_triton(bundle, own_repository)
    assert contents(own_repository) == before


def test_a_configuration_that_was_changed_is_not_changed_back(
    own_repository, tiny_bundle, tmp_path
):
    with (own_repository / "tiny_aggregator" / "config.pbtxt").open("a") as file:
        file.write("instance_group [ { count: 2 } ]\n")
    before = contents(own_repository)
    bundle = changed(tiny_bundle, tmp_path / "second", version="2")
    with pytest.raises(OutputExists, match=r"tiny_aggregator/config\.pbtxt .* was changed"):
        export_triton(bundle, own_repository)
    assert contents(own_repository) == before


def test_both_models_get_the_version_or_neither(own_repository, tiny_bundle, tmp_path, monkeypatch):
    """As if the second rename failed."""
    before = contents(own_repository)
    rename = Path.rename

    def fail_for_the_aggregator(path, target):
        if "aggregator" in str(target):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_aggregator)
    bundle = changed(tiny_bundle, tmp_path / "second", version="2")
    with pytest.raises(OutputUnwritable, match="tiny_aggregator/2 cannot be put in place"):
        export_triton(bundle, own_repository)
    assert contents(own_repository) == before
    new = tmp_path / "new"
    with pytest.raises(OutputUnwritable, match="tiny_aggregator cannot be put in place"):
        export_triton(bundle, new)
    assert list(new.iterdir()) == []


def test_a_folder_that_is_no_model_is_left_alone(tiny_bundle, tmp_path):
    (tmp_path / "models" / "tiny_aggregator").mkdir(parents=True)
    with pytest.raises(OutputExists, match=r"no model of Triton, it has no config\.pbtxt"):
        export_triton(tiny_bundle, tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny_aggregator"]


@pytest.mark.parametrize("version", ["1.2", "v3", "0"])
def test_a_version_that_triton_cannot_count_is_refused(tiny_bundle, tmp_path, version):
    bundle = changed(tiny_bundle, tmp_path / "bundle", version=version)
    with pytest.raises(FieldInvalid, match="Triton counts versions"):
        export_triton(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_changed_bundle_is_refused(tiny_bundle, tmp_path):
    bundle = changed(tiny_bundle, tmp_path / "bundle", version="2")
    with (bundle / "encoder.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleCorrupt):
        export_triton(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
