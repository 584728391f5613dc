"""``cmamil verify``: a whole bundle, and damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.files import sha256_of_file

FILES = {
    *("encoder.onnx", "aggregator.onnx", "golden.npz"),
    *("aggregator.bf16.onnx", "aggregator.bf16.products.onnx"),
}


def test_a_whole_bundle(cmamil: Callable[..., Any], tiny_bundle: Path) -> None:
    document = cmamil("verify", tiny_bundle, "--json").document
    assert document["bundle"] == "tiny/1"
    assert document["bundle_sha256"] == sha256_of_file(tiny_bundle / "manifest.json")
    assert set(document["files"]) == FILES
    assert document["golden"]["aggregator_difference"] < 2e-3
    exact = document["encoder_parity"]["onnxruntime-cpu-fp32"]
    assert exact["passed"] is True
    assert exact["cosine_worst"] >= exact["gate"]["cosine_worst"] == 0.99999
    assert document["engine"] in document["encoder_parity"]
    aggregator = document["aggregator"]
    assert aggregator["engine"] in document["aggregator_differences"]
    assert aggregator["engine_reason"].startswith(aggregator["engine"].rpartition("-")[2])
    assert document["encoder_parity"].keys() == document["encoder_parity_at_export"].keys()
    assert document["encoder_parity"].keys().isdisjoint(document["not_here"])
    assert "--engine openvino" in document["not_here"]["onnxruntime-cpu-bf16"]
    plain = cmamil("verify", tiny_bundle)
    assert plain.code == 0
    assert "5 files as exported" in plain.out


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_flipped_bit_is_found(
    cmamil: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(tiny_bundle, bundle)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    answer = cmamil("verify", bundle, "--json")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("cmamil: BUNDLE_CORRUPT: ")
    assert name in answer.err


def test_a_bundle_from_the_future_and_a_folder_that_is_none(
    cmamil: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    future = tmp_path / "future"
    shutil.copytree(tiny_bundle, future)
    manifest = json.loads((future / "manifest.json").read_text())
    manifest["schema_version"] += 1
    (future / "manifest.json").write_text(json.dumps(manifest))
    answer = cmamil("verify", future)
    assert answer.code == 3
    assert "BUNDLE_UNSUPPORTED" in answer.err
    answer = cmamil("verify", tmp_path)
    assert answer.code == 3
    assert "BUNDLE_CORRUPT" in answer.err
