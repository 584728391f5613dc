"""Choose a reader for a file."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from openslide import OpenSlide

from cmamil_sdk.errors import (
    FieldInvalid,
    SlideFormatUnsupported,
    SlideNotFound,
    SlideUnreadable,
)
from cmamil_sdk.slides.base import PLAUSIBLE_MPP, ReaderKind, SlideReader
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.cuda_reader import CudaReader
from cmamil_sdk.slides.direct_reader import DirectReader
from cmamil_sdk.slides.image_reader import MAX_IMAGE_PX, ImageReader, is_plain_image
from cmamil_sdk.slides.openslide_reader import OpenSlideReader
from cmamil_sdk.slides.plugin_reader import PluginReader
from cmamil_sdk.slides.plugin_registry import plugin_for
from cmamil_sdk.slides.plugins import SlidePlugin
from cmamil_sdk.slides.tiff_grids import LayoutUnknown

ReaderName = Literal["auto", ReaderKind]
"""Readers that may be asked for; ``auto`` takes the fastest that reads the file right."""


def open_slide(
    path: Path,
    *,
    mpp: float | None = None,
    reader: ReaderName = "auto",
    device: str = "cpu",
    max_image_px: int = MAX_IMAGE_PX,
    plugins: bool = True,
) -> SlideReader:
    """Open a slide; its facts name the reader that was chosen, and say why.

    What OpenSlide knows is read directly or by OpenSlide, which give the same pixels; what it does not
    know by the plug-in for the file's suffix, else as a plain image.

    Args:
        path: the slide file.
        mpp: microns per pixel of level 0, overriding what the file says.
        reader: which reader to take.
        device: ``cuda:0`` has ``cucim`` decode there, and gives a
            :class:`~cmamil_sdk.slides.cuda_reader.CudaReader`; other readers decode on the CPU anyway.
        max_image_px: pixels that a plain image may have, which is decoded as a whole.
        plugins: whether ``auto`` may choose a plug-in.

    Raises:
        FieldInvalid: ``mpp`` is not a plausible number, or there is no such reader.
        SlideNotFound: nothing is there.
        SlideUnreadable: the operating system refuses.
        SlideFormatUnsupported: no reader knows the format, or not the one that was asked for.
        SlideCorrupt: the format is known, but the file cannot be opened.
        SlideTooLarge: a plain image has too many pixels.
        ReaderMissing: cuCIM is asked for and not installed, or is to decode on a device and cannot here.
        DecoderCrashed: a plug-in's library died, or two of cuCIM's processes on this file.
    """
    if reader not in get_args(ReaderName):
        raise FieldInvalid(
            f"There is no reader {reader!r}; choose among {', '.join(get_args(ReaderName))}."
        )
    check_mpp(mpp)
    _check_file(path)
    if reader == "plugin":
        return _through_plugin(path, _plugin_asked_for(path), mpp)
    if reader == "image":
        return ImageReader(path, mpp=mpp, reason="asked for", max_px=max_image_px)
    if reader == "auto" and OpenSlide.detect_format(path) is None:
        plugin = plugin_for(path) if plugins else None
        if plugin is not None:
            return _through_plugin(path, plugin, mpp)
        if is_plain_image(path):
            reason = "a plain image, decoded as a whole"
            return ImageReader(path, mpp=mpp, reason=reason, max_px=max_image_px)
    return _through_openslide(path, mpp, reader, device)


def _through_openslide(
    path: Path, mpp: float | None, reader: ReaderName, device: str
) -> SlideReader:
    """The direct reader where it can, if ``reader`` is ``auto`` or ``direct``; else OpenSlide."""
    slide = OpenSlideReader(path, mpp=mpp, reason="asked for")
    if reader == "openslide":
        return slide
    if reader == "cucim":
        return _with_cucim(slide, device)
    try:
        return DirectReader(slide)
    except LayoutUnknown as problem:
        if reader == "direct":
            slide.close()
            raise SlideFormatUnsupported(
                f"{path} cannot be read directly: {problem}; leave --reader out, or choose openslide."
            ) from problem
        slide.facts = replace(slide.facts, reader_reason=f"not read directly, because {problem}")
        return slide


def _plugin_asked_for(path: Path) -> SlidePlugin:
    plugin = plugin_for(path)
    if plugin is None:
        raise SlideFormatUnsupported(
            f"{path}: no plug-in reads {path.suffix or 'files without a suffix'}; `cmamil doctor` lists "
            "those that are there, or leave --reader out."
        )
    return plugin


def _through_plugin(path: Path, plugin: SlidePlugin, mpp: float | None) -> PluginReader:
    version = f" {plugin.version}" if plugin.version else ""
    reason = f"plug-in {plugin.name} ({plugin.package}{version}) for {path.suffix.lower()}"
    return PluginReader(path, plugin, mpp=mpp, reason=reason)


def _with_cucim(slide: OpenSlideReader, device: str) -> CucimReader | CudaReader:
    try:
        reader = CucimReader(slide)
    except LayoutUnknown as problem:
        slide.close()
        raise SlideFormatUnsupported(
            f"{slide.facts.path} cannot be read by cuCIM: {problem}; leave --reader out, or choose "
            "openslide."
        ) from problem
    except BaseException:
        slide.close()
        raise
    if device == "cpu":
        return reader
    try:
        return CudaReader(reader, device)
    except BaseException:
        reader.close()
        raise


def check_mpp(mpp: float | None) -> None:
    """Refuse a given value that no slide has (FieldInvalid); None is none given."""
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
        raise FieldInvalid(
            f"--mpp {mpp} is not between {low} and {high} microns per pixel; "
            "0.25 is about 40x, 0.5 about 20x."
        )


def _check_file(path: Path) -> None:
    try:
        str(path).encode()  # features and reports are named by it
        if path.is_dir():
            raise SlideFormatUnsupported(f"{path} is a directory; name a slide file inside it.")
        if path.exists() and not path.is_file():
            raise SlideNotFound(
                f"{path} is a device or a pipe, not a slide file; copy the slide into a file."
            )
        if not path.is_file():
            raise SlideNotFound(
                f"There is no slide file at {path}; check the path and its extension."
            )
        with path.open("rb"):
            pass
    except PermissionError as problem:
        raise SlideUnreadable(
            f"{path} may not be read by user {os.getuid()}; change its permissions."
        ) from problem
    except (OSError, ValueError) as problem:
        raise SlideNotFound(f"{str(path)!r} cannot be opened ({problem}); check it.") from problem


__all__ = ["ReaderName", "check_mpp", "open_slide"]
