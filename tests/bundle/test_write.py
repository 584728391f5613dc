"""A bundle appears whole or not at all, and is never written twice."""

from __future__ import annotations

import pytest

from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.bundle.write import write_bundle
from cmamil_sdk.errors import OutputExists


def fill_from(source, manifest):
    def fill(folder):
        for name in manifest.files:
            (folder / name).write_bytes((source / name).read_bytes())
        return lambda files: manifest.model_copy(update={"files": files})

    return fill


def test_it_is_written_once(tiny_bundle, tmp_path):
    manifest, _ = read_manifest(tiny_bundle)
    target = tmp_path / "out" / "name" / "2"
    assert write_bundle(target, fill_from(tiny_bundle, manifest)) == target
    assert read_manifest(target)[0] == manifest
    assert [p.name for p in target.parent.iterdir()] == ["2"]

    def never(_folder):
        raise AssertionError("work was done for nothing")

    with pytest.raises(OutputExists, match="--version"):
        write_bundle(target, never)


def test_a_failure_leaves_no_bundle(tmp_path):
    def fail(folder):
        (folder / "encoder.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "name" / "1", fail)
    assert list(tmp_path.iterdir()) == []
