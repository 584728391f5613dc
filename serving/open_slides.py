"""The slides that a worker keeps open, the latest few."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from openslide import OpenSlide

from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideFormatUnsupported
from cmamil_sdk.slides import SlideReader, open_slide
from cmamil_sdk.slides.image_reader import IMAGE_STARTS

from .messages import WorkerSetup
from .paths import SlideRef, open_slide_file

# Slides in one file, by their first bytes whatever their names: CZI, SQLite, PNG, JPEG, TIFF in all its
# kinds. Other formats (MIRAX, VMS, VMU, DICOM) name further files, which may lie anywhere.
_ONE_FILE = (
    b"ZISRAWFILE",
    b"SQLite format 3\0",
    *IMAGE_STARTS,
)


@dataclass
class _Opened:
    reader: SlideReader
    fd: int
    alias: str


class OpenSlides:
    """Readers by slide and mpp, each of a file that is still what the server found."""

    def __init__(self, setup: WorkerSetup, device: str) -> None:
        """``device``: where tiles are decoded."""
        self._setup, self._device = setup, device
        self._slides: OrderedDict[tuple[SlideRef, float | None], _Opened] = OrderedDict()

    def reader(self, ref: SlideRef, mpp: float | None) -> SlideReader:
        """The reader of a slide, opened where it is not.

        Raises:
            SlideCorrupt: the file is no longer what was found.
            SlideFormatUnsupported: it is a slide of several files, or none.
            CmamilError: as :func:`~cmamil_sdk.slides.open_slide`.
        """
        key = (ref, mpp)
        known = self._slides.get(key)
        if known is None:
            while len(self._slides) >= self._setup.open_slides:
                _close(self._slides.popitem(last=False)[1])
            known = self._slides[key] = self._open(ref, mpp)
        self._slides.move_to_end(key)
        try:
            ref.check_unchanged(known.fd)
        except SlideCorrupt:
            _close(self._slides.pop(key))
            raise
        return known.reader

    def public(self, message: str, ref: SlideRef) -> str:
        """Name the slide as the client may: beneath its root, never by descriptor or whole path."""
        for (opened, _), known in self._slides.items():
            if opened == ref:
                message = message.replace(known.alias, ref.shown)
        return message.replace(str(ref.path), ref.shown)

    def _open(self, ref: SlideRef, mpp: float | None) -> _Opened:
        fd = open_slide_file(ref)
        # Opened through the checked descriptor, nobody can put another file in its place.
        alias = f"/proc/self/fd/{fd}" if Path("/proc/self/fd").is_dir() else str(ref.path)
        try:
            _refuse_several_files(fd, alias, ref)
            reader = open_slide(
                Path(alias),
                mpp=mpp,
                reader=self._setup.reader,
                device=self._device,
                max_image_px=self._setup.max_image_pixels,
                plugins=False,
            )
        except CmamilError as problem:
            os.close(fd)
            raise type(problem)(str(problem).replace(alias, ref.shown)) from problem
        except BaseException:
            os.close(fd)
            raise
        reader.facts = replace(reader.facts, path=ref.shown, slide_id=ref.slide_id)
        return _Opened(reader, fd, alias)


def _refuse_several_files(fd: int, alias: str, ref: SlideRef) -> None:
    if os.pread(fd, 16, 0).startswith(_ONE_FILE):
        return
    vendor = OpenSlide.detect_format(alias)
    if vendor is not None:
        raise SlideFormatUnsupported(
            f"{ref.shown} is a slide of several files ({vendor}), which a server does not read, "
            "because its parts may lie outside the roots; convert it to TIFF, or use "
            "`cmamil predict` where it lies."
        )
    raise SlideFormatUnsupported(
        f"{ref.shown} is no slide that a server reads (TIFF, SVS, NDPI, SCN, BIF, CZI, "
        "SVSLIDE, PNG, JPEG); convert it to a pyramidal tiled TIFF."
    )


def _close(slide: _Opened) -> None:
    slide.reader.close()
    os.close(slide.fd)


__all__ = ["OpenSlides"]
