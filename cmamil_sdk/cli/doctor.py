"""``cmamil doctor``: what this machine can do, and what it would take to do more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import say, say_json, table
from cmamil_sdk.machine import available_cores
from cmamil_sdk.wording import counted

_PACKAGES = {
    "numpy": "base",
    "openslide-python": "base",
    "openslide-bin": "base",
    "simplejpeg": "base",
    "tifffile": "base",
    "imagecodecs": "base",
    "h5py": "base",
    "onnxruntime": "cpu",
    "grpcio": "serve",
    "torch": "train",
    "lightning": "train",
    "torchmetrics": "train",
    "scikit-learn": "train",
    "onnx": "export",
    "onnxscript": "export",
    "efficientnet-lite-pytorch": "train",
    "torchvision": "train",
    "timm": "timm",
    "tensorrt-rtx-cu13": "tensorrt-rtx",
    "cuda-bindings": "tensorrt-rtx",
}


def run(
    json: Json = False,
) -> None:
    """Readers, engines, devices and package versions; for what is missing, why and how to get it."""
    from cmamil_sdk.engines import available_engines

    engines = available_engines()
    document: dict[str, Any] = {
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": available_cores(),
        },
        "readers": {"direct": _direct(), "openslide": _openslide()},
        "engines": engines,
        "devices": {"cpu": _found("", "always"), "cuda": _cuda(engines["onnxruntime"])},
        "packages": {name: _package(name, extra) for name, extra in _PACKAGES.items()},
    }
    if json:
        say_json(document)
        return
    machine = document.pop("machine")
    say(f"Python {machine['python']}, {machine['system']}, {counted(machine['cores'], 'core')}")
    for section, entries in document.items():
        rows = [
            [name, "yes" if e["available"] else "no", e["version"], e["why"], e["fix"]]
            for name, e in entries.items()
        ]
        say(f"\n{table([section, 'here', 'version', 'why', 'fix'], rows)}")


def _found(version: str, why: str) -> dict[str, str | bool]:
    return {"available": True, "version": version, "why": why, "fix": ""}


def _missing(why: str, fix: str) -> dict[str, str | bool]:
    return {"available": False, "version": "", "why": why, "fix": fix}


def _direct() -> dict[str, str | bool]:
    try:
        import simplejpeg
    except ImportError as problem:
        return _missing(str(problem), "pip install simplejpeg")
    return _found(str(simplejpeg.__version__), "installed, for tiled JPEG TIFF and SVS")


def _openslide() -> dict[str, str | bool]:
    try:
        import openslide
    except (ImportError, OSError) as problem:
        return _missing(str(problem), "pip install openslide-python openslide-bin")
    return _found(str(openslide.__library_version__), "installed")


def _cuda(onnxruntime: dict[str, str | bool]) -> dict[str, str | bool]:
    if "CUDA" in str(onnxruntime["why"]):
        return _found("", "onnxruntime has its CUDA provider")
    return _missing(
        "onnxruntime here has no CUDA provider",
        "on a machine with an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu",
    )


def _package(name: str, extra: str) -> dict[str, str | bool]:
    try:
        return _found(importlib.metadata.version(name), f"part of {extra}")
    except importlib.metadata.PackageNotFoundError:
        wanted = "cmamil-sdk" if extra == "base" else f"cmamil-sdk[{extra}]"
        return _missing(f"part of {extra}", f"pip install '{wanted}'")
