"""``cmamil doctor``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest

from cmamil_sdk.slides import cucim_process, plugin_registry
from cmamil_sdk.slides.plugins import SlidePlugin


def test_json(cmamil: Callable[..., Any]) -> None:
    answer = cmamil("doctor", "--json")
    document = answer.document
    assert answer.code == 0
    for section in ("readers", "engines", "precisions", "devices", "packages"):
        assert document[section]
        for entry in document[section].values():
            assert {"available", "version", "why", "fix"} <= set(entry)
            assert entry["available"] or entry["fix"], "what is missing says how to get it"
    for name in ("direct", "openslide", "image"):
        assert document["readers"][name]["available"] is True
    assert document["engines"]["onnxruntime"]["version"] == onnxruntime.__version__
    assert document["engines"]["openvino"]["available"] is True
    assert document["precisions"].keys() == {"fp32", "bf16", "fp16", "int8"}
    assert document["precisions"]["fp32"]["available"] is True
    assert document["packages"]["numpy"]["version"] == importlib.metadata.version("numpy")
    assert document["devices"]["cpu"]["available"] is True


def test_cucim_and_what_it_needs_on_a_gpu(
    cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = cmamil("doctor", "--json").document["readers"]
    if readers["cucim"]["available"]:
        assert readers["cucim"]["version"] == importlib.metadata.version("cucim-cu13")
    else:
        assert readers["cucim on cuda"]["why"] == "cuCIM is not installed"
    monkeypatch.setattr(cucim_process, "cucim_installed", lambda: False)
    missing = cmamil("doctor", "--json").document["readers"]["cucim"]
    assert missing["available"] is False
    assert missing["fix"].startswith("pip install --no-deps cucim-cu13")
    monkeypatch.setattr("sys.platform", "darwin")
    missing = cmamil("doctor", "--json").document["readers"]["cucim"]
    assert (missing["why"], missing["available"]) == ("cuCIM exists for Linux only", False)


def test_a_missing_package_says_why_and_how(
    cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    torch = cmamil("doctor", "--json").document["packages"]["torch"]
    assert torch["available"] is False
    assert torch["fix"] == "pip install 'cmamil-sdk[train]'"


def test_plugins(cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    readers = cmamil("doctor", "--json").document["readers"]
    assert readers["plugin sdpc"]["available"] is False
    assert readers["plugin sdpc"]["fix"] == "pip install sdpc-for-python"
    mine = SlidePlugin("mine", (".mine",), lambda path: path, package="numpy")
    found = ({"mine": mine}, {"other": "other.module:x fails to load (OSError: libx.so)"})
    monkeypatch.setattr(plugin_registry, "_installed", lambda: found)
    readers = cmamil("doctor", "--json").document["readers"]
    assert readers["plugin mine"]["available"] is True
    assert readers["plugin mine"]["version"] == importlib.metadata.version("numpy")
    assert "libx.so" in readers["plugin other"]["why"] and readers["plugin other"]["fix"]


def test_table(cmamil: Callable[..., Any]) -> None:
    out = cmamil("doctor").out
    for word in ("openslide", "onnxruntime", "cuda", "torch", "cores"):
        assert word in out
