"""``cmamil doctor``: what this machine can do, and what it would take to do more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
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
    "openvino": "cpu",
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
    """Readers, engines, precisions, devices, versions; for what is missing, why and how to get it."""
    from cmamil_sdk.engines import available_engines, available_precisions

    engines = available_engines()
    document: dict[str, Any] = {
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": available_cores(),
        },
        "readers": {
            "direct": _direct(),
            "cucim": _cucim(),
            "cucim on cuda": _cucim_on_cuda(),
            "openslide": _openslide(),
            "image": _image(),
            **_plugins(),
        },
        "engines": engines,
        "precisions": available_precisions(),
        "devices": {"cpu": _found("", "always"), "cuda": _cuda(engines)},
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


def _cucim() -> dict[str, str | bool]:
    from cmamil_sdk.slides.cucim_process import HOW_TO_INSTALL, cucim_installed

    if not cucim_installed():
        if sys.platform != "linux":
            return _missing("cuCIM exists for Linux only", "read with direct or openslide")
        return _missing("not installed; only --reader cucim needs it", HOW_TO_INSTALL)
    (distribution,) = set(importlib.metadata.packages_distributions()["cucim"])
    return _found(
        importlib.metadata.version(distribution), "installed, for tiled JPEG and JPEG 2000"
    )


def _cucim_on_cuda() -> dict[str, str | bool]:
    from cmamil_sdk.slides.cucim_cuda import why_no_cuda_decoding

    why = why_no_cuda_decoding()
    if why is not None:
        return _missing(why, "on Linux with an NVIDIA GPU: pip install 'cmamil-sdk[gpu]'")
    return _found("", "cuCIM and CuPy find a CUDA device")


def _openslide() -> dict[str, str | bool]:
    try:
        import openslide
    except (ImportError, OSError) as problem:
        return _missing(str(problem), "pip install openslide-python openslide-bin")
    return _found(str(openslide.__library_version__), "installed")


def _image() -> dict[str, str | bool]:
    try:
        import imagecodecs
    except ImportError as problem:
        return _missing(str(problem), "pip install imagecodecs")
    return _found(str(imagecodecs.__version__), "installed, for PNG, JPEG and TIFF of one picture")


def _plugins() -> dict[str, dict[str, str | bool]]:
    from cmamil_sdk.slides.plugin_registry import broken_plugins, plugins

    found: dict[str, dict[str, str | bool]] = {}
    for plugin in plugins():
        why = f"plug-in for {', '.join(plugin.suffixes)}"
        found.setdefault(
            f"plugin {plugin.name}",
            _missing(f"{why}; {plugin.package} is not installed", f"pip install {plugin.package}")
            if plugin.version is None
            else _found(plugin.version, f"{why} through {plugin.package}"),
        )
    for name, problem in broken_plugins().items():
        found[f"plugin {name}"] = _missing(problem, "mend or uninstall the package that brings it")
    return found


def _cuda(engines: dict[str, dict[str, str | bool]]) -> dict[str, str | bool]:
    having = [name for name in ("onnxruntime", "torch") if "CUDA" in str(engines[name]["why"])]
    if having:
        return _found("", f"by {' and '.join(having)}")
    return _missing(
        "neither onnxruntime nor torch finds a device here",
        "on a machine with an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu",
    )


def _package(name: str, extra: str) -> dict[str, str | bool]:
    try:
        return _found(importlib.metadata.version(name), f"part of {extra}")
    except importlib.metadata.PackageNotFoundError:
        wanted = "cmamil-sdk" if extra == "base" else f"cmamil-sdk[{extra}]"
        return _missing(f"part of {extra}", f"pip install '{wanted}'")
