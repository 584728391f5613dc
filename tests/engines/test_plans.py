"""Plans: which may run here, and that none is opened which no manifest lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.bundle.plans import check_plan_files
from cmamil_sdk.engines.plans import (
    BUILDER_SETTINGS,
    Here,
    PlanDocument,
    PlanKey,
    TensorSpec,
    cached_plans,
    fitting_plan,
    listed_plans,
    this_platform,
)
from cmamil_sdk.errors import BundleCorrupt, EngineMissing
from cmamil_sdk.files import FileEntry

HERE = Here("a" * 64, "tensorrt-rtx", "1.7.1", "89", "fp32")
FITTING: dict[str, Any] = {
    "graph_sha256": "a" * 64,
    "runtime": "tensorrt-rtx",
    "runtime_version": "1.7.1",
    "compute_capabilities": ("86", "89"),
    "precision": "fp32",
    "profiles": ({"tiles": ((8, 4, 4, 3),) * 3},),
    "builder": BUILDER_SETTINGS,
    "platform": this_platform(),
}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "graph": ({"graph_sha256": "b" * 64}, "graph bbbbbbbbbbbb… instead of aaaaaaaaaaaa…"),
    "runtime": ({"runtime": "tensorrt"}, "runtime tensorrt instead of tensorrt-rtx"),
    "version": ({"runtime_version": "1.7.0"}, "version 1.7.0 instead of 1.7.1"),
    "capability": ({"compute_capabilities": ("90",)}, "compute capability 90 instead of 89"),
    "builder": ({"builder": {"tf32": True}}, "builder settings {'tf32': True} instead of"),
    "precision": ({"precision": "fp16"}, "precision fp16 instead of fp32"),
    "platform": ({"platform": "windows-amd64"}, "platform windows-amd64 instead of"),
}


def key(**changes: Any) -> PlanKey:
    return PlanKey(**(FITTING | changes))


def write_plan(folder: Path, of: PlanKey, data: bytes = b"plan", inside: str = "") -> None:
    """A plan with its document, and a manifest that lists both."""
    stem = folder / inside / "encoder"
    stem.parent.mkdir(parents=True, exist_ok=True)
    document = PlanDocument(
        key=of, inputs={"tiles": TensorSpec(dtype="uint8", shape=("batch", 4, 4, 3))}
    )
    stem.with_suffix(".plan").write_bytes(data)
    stem.with_suffix(".json").write_text(document.model_dump_json())
    files = {
        f"{inside}encoder{suffix}": FileEntry.of(stem.with_suffix(suffix)).model_dump()
        for suffix in (".plan", ".json")
    }
    (folder / "manifest.json").write_text(json.dumps({"name": "other fields", "files": files}))


def test_a_plan_that_fits_is_taken_from_bundle_or_cache(tmp_path):
    write_plan(tmp_path / "bundle", key(), b"in the bundle", inside="engines/0123456789abcdef/")
    (listed,) = listed_plans(tmp_path / "bundle")
    assert listed.document.key == key()
    write_plan(tmp_path / "cache" / key().digest, key(), b"in the cache")
    (cached,) = cached_plans(tmp_path / "cache")
    graph = tmp_path / "bundle" / "encoder.onnx"
    for plans, data in (([listed, cached], b"in the bundle"), ([cached], b"in the cache")):
        assert fitting_plan(plans, HERE, graph).read() == data


@pytest.mark.parametrize("case", OTHERS)
def test_a_plan_that_differs_in_anything_is_refused_with_what_differs(tmp_path, case):
    changes, said = OTHERS[case]
    write_plan(tmp_path, key(**changes))
    with pytest.raises(EngineMissing, match="cmamil plans") as refusal:
        fitting_plan(listed_plans(tmp_path), HERE, tmp_path / "encoder.onnx")
    assert said in str(refusal.value)
    assert str(refusal.value).count(" instead of ") == 1


def test_every_part_of_the_key_is_in_its_name():
    changed = [dict(changes) for changes, _ in OTHERS.values()]
    changed.append({"profiles": ({"tiles": ((9, 4, 4, 3),) * 3},)})
    digests = {key(**changes).digest for changes in changed} | {key().digest}
    assert len(digests) == len(changed) + 1
    assert key().digest == PlanKey.model_validate_json(key().model_dump_json()).digest


def test_no_plan_at_all(tmp_path):
    assert listed_plans(tmp_path) == []
    with pytest.raises(EngineMissing, match="there is none at all"):
        fitting_plan([], HERE, tmp_path / "encoder.onnx")
    with pytest.raises(EngineMissing, match="no directory"):
        cached_plans(tmp_path / "missing")


def test_a_file_that_no_manifest_lists_is_not_a_plan(tmp_path):
    write_plan(tmp_path, key())
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert listed_plans(tmp_path) == []


def test_what_changed_after_it_was_listed_is_refused(tmp_path):
    write_plan(tmp_path, key())
    (tmp_path / "encoder.plan").write_bytes(b"paln")
    (plan,) = listed_plans(tmp_path)
    with pytest.raises(BundleCorrupt, match=r"encoder\.plan is not the file"):
        plan.read()
    (tmp_path / "encoder.plan").unlink()
    with pytest.raises(BundleCorrupt, match=r"encoder\.plan is missing"):
        plan.read()
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"encoder\.json is not the file"):
        listed_plans(tmp_path)


@pytest.mark.parametrize(
    ("document", "said"),
    [("{", "cannot be read"), ("[]", "mend"), ('{"files": {"encoder.plan": 3}}', "mend")],
)
def test_a_damaged_manifest(tmp_path, document, said):
    (tmp_path / "manifest.json").write_text(document)
    with pytest.raises(BundleCorrupt, match=said):
        listed_plans(tmp_path)


@pytest.mark.parametrize(("data", "said"), [(b"{", "is not JSON"), (b'{"key": 1}', "key")])
def test_a_damaged_document(tmp_path, data, said):
    write_plan(tmp_path, key())
    (tmp_path / "encoder.json").write_bytes(data)
    listing = json.loads((tmp_path / "manifest.json").read_text())
    listing["files"]["encoder.json"] = FileEntry.of(tmp_path / "encoder.json").model_dump()
    (tmp_path / "manifest.json").write_text(json.dumps(listing))
    with pytest.raises(BundleCorrupt, match=said):
        listed_plans(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["extra.bin"],
        ["engines/0123456789abcdef/encoder.plan"],
        ["engines/0123456789abcdef/encoder.json"],
        ["engines/../encoder.plan", "engines/../encoder.json"],
        ["/engines/0123456789abcdef/encoder.plan"],
        ["engines/0123456789abcdef/libevil.so"],
    ],
)
def test_a_manifest_lists_whole_plans_and_nothing_else(names):
    with pytest.raises(ValueError, match="must"):
        check_plan_files(names)
    check_plan_files([f"engines/0123456789abcdef/encoder.{s}" for s in ("plan", "json")])
