"""A Triton model repository: Triton's own message reads its configurations, and they fit the graphs."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("torch")

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cmamil_sdk.bundle.load import read_manifest
from cmamil_sdk.errors import BundleCorrupt, FieldInvalid, OutputExists
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
    notes = {
        key: value.string_value
        for key, value in config_of(repository / "tiny_encoder").parameters.items()
    }
    assert notes == {
        "cmamil_bundle": "tiny/1",
        "cmamil_bundle_sha256": digest,
        "cmamil_recipe": manifest.recipe.model_dump_json(),
    }


def test_nothing_is_overwritten(repository, tiny_bundle):
    with pytest.raises(OutputExists, match="tiny_encoder exists"):
        export_triton(tiny_bundle, repository)
    assert sorted(p.name for p in repository.iterdir()) == ["tiny_aggregator", "tiny_encoder"]


def renamed(bundle, target, version):
    """A copy of a bundle that calls itself another version."""
    shutil.copytree(bundle, target)
    document = read_json(target / "manifest.json")
    write_json(target / "manifest.json", {**document, "version": version})
    return target


@pytest.mark.parametrize("version", ["1.2", "v3", "0"])
def test_a_version_that_triton_cannot_count_is_refused(tiny_bundle, tmp_path, version):
    bundle = renamed(tiny_bundle, tmp_path / "bundle", version)
    with pytest.raises(FieldInvalid, match="Triton counts versions"):
        export_triton(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_changed_bundle_is_refused(tiny_bundle, tmp_path):
    bundle = renamed(tiny_bundle, tmp_path / "bundle", "2")
    with (bundle / "encoder.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleCorrupt):
        export_triton(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
