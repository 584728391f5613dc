"""Plug-ins for libraries on PyPI that read what OpenSlide does not; none is a dependency.

Facts of the libraries are those of kfbslide 0.3.4, tmapslide 0.2.3 and sdpc-for-python 1.0.5.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide

from cmamil_sdk.errors import SlideFormatUnsupported
from cmamil_sdk.slides.plugins import SlidePlugin, VendorSlide
from cmamil_sdk.slides.vendor_files import check_kfb, check_tmap

UInt8 = npt.NDArray[np.uint8]


def open_kfb(path: Path) -> VendorSlide:
    """A KFB file through kfbslide: OpenSlide's interface, RGBA, levels at whole powers of the scan."""
    slide: VendorSlide = import_module("kfbslide").OpenSlide(str(path))
    with _closed_on_failure(slide):
        check_kfb(path)
    return slide


def open_tmap(path: Path) -> VendorSlide:
    """A TMAP file of version 7 through tmapslide.

    Raises:
        SlideFormatUnsupported: it is of version 6, whose coarse levels tmapslide draws at another scale
            than it states, and of which it draws missing data files as empty glass.
    """
    slide = import_module("tmapslide").OpenSlide(str(path))
    with _closed_on_failure(slide):
        version = slide.properties["tmap.version"]
        if version != "07":
            raise SlideFormatUnsupported(
                f"{path} is a TMAP file of version {version}, and only version 07 is read; "
                "convert it to a pyramidal tiled TIFF."
            )
        check_tmap(path)
        return _TmapSlide(slide)


def open_sdpc(path: Path) -> VendorSlide:
    """An SDPC file through sdpc-for-python, which has an interface of its own."""
    return _SdpcSlide(_import_sdpc().Sdpc(str(path)))


@contextmanager
def _closed_on_failure(slide: VendorSlide) -> Iterator[None]:
    """Close ``slide`` if the block raises."""
    try:
        yield
    except BaseException:
        slide.close()
        raise


class _TmapSlide:
    """tmapslide's slide, less a scale that the library guessed from the objective."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        self.properties: Mapping[str, str] = slide.properties
        if self.properties.get("tmap.mpp_source") != "header":
            guessed = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
            self.properties = {k: v for k, v in slide.properties.items() if k not in guessed}
        self.dimensions: tuple[int, int] = slide.dimensions
        self.level_dimensions: tuple[tuple[int, int], ...] = slide.level_dimensions
        self.level_downsamples: tuple[float, ...] = slide.level_downsamples

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        return self._slide.read_region(location, level, size)

    def close(self) -> None:
        self._slide.close()


class _SdpcSlide:
    """An ``sdpc.Sdpc`` under OpenSlide's names."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        head = slide.sdpc.contents.picHead.contents
        self.properties = {
            openslide.PROPERTY_NAME_VENDOR: "sqray",
            openslide.PROPERTY_NAME_OBJECTIVE_POWER: str(slide.scan_magnification),
            openslide.PROPERTY_NAME_MPP_X: str(head.ruler),
            openslide.PROPERTY_NAME_MPP_Y: str(head.ruler),
        }
        self.level_dimensions: tuple[tuple[int, int], ...] = slide.level_dimensions
        self.level_downsamples: tuple[float, ...] = slide.level_downsamples
        self.dimensions = self.level_dimensions[0]

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        pixels: UInt8 = self._slide.read_region(location, level, size)
        return pixels

    def close(self) -> None:
        self._slide.close()


def _import_sdpc() -> Any:
    """The package, once the libraries that it ships are loaded, which the system's loader does not find.

    Raises:
        ImportError: it is not installed, or is not for this machine.
    """
    spec = find_spec("sdpc")
    for folder in (spec and spec.submodule_search_locations) or ():
        _load_all(sorted(Path(folder, "LINUX").glob("*/*.so.*")))
    try:
        return import_module("sdpc")
    except OSError as problem:
        raise ImportError(str(problem)) from problem


def _load_all(libraries: Sequence[Path]) -> None:
    """Load what can be loaded: each needs some of the others, and a few need some that are not there."""
    failed: list[Path] = []
    for library in libraries:
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            failed.append(library)
    if len(failed) < len(libraries):
        _load_all(failed)


VENDOR_PLUGINS = (
    SlidePlugin("kfb", (".kfb",), open_kfb, package="kfbslide"),
    SlidePlugin("tmap", (".tmap",), open_tmap, package="tmapslide"),
    SlidePlugin("sdpc", (".sdpc",), open_sdpc, package="sdpc-for-python", isolated=True),
)

__all__ = ["VENDOR_PLUGINS", "open_kfb", "open_sdpc", "open_tmap"]
