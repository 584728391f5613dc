"""Which slides a command means: files, folders, and CSV lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.errors import FieldInvalid, SlideIdDuplicate, SlideNotFound, SlideUnreadable
from cmamil_sdk.files import read_csv

# Of files that OpenSlide reads. PNG and JPEG are not among them: beside slides lie masks and thumbnails
# in these formats, so such an image is read only where it is named itself.
SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".bif",
        ".vms",
        ".vmu",
        ".svslide",
        ".dcm",
        ".czi",
    ]
)


@dataclass(frozen=True)
class ListedSlide:
    """A slide that a command is to work on, and what a CSV says of it.

    Attributes:
        path: the slide file.
        mpp: microns per pixel of level 0, overriding the file; None if not listed.
        mask: its tissue mask; None if not listed.
        label: its class; None if not listed.
    """

    path: Path
    mpp: float | None = None
    mask: Path | None = None
    label: str | None = None

    @property
    def slide_id(self) -> str:
        """File name without its last extension."""
        return self.path.stem


def expand_slides(names: Sequence[Path], *, mpp: float | None = None) -> list[ListedSlide]:
    """Slide files named directly, in folders (by their extension), or in a CSV's ``slide`` column.

    Folders give the formats that OpenSlide or a plug-in reads; a PNG or JPEG has to be named, or listed
    in a CSV, which may also have columns ``mpp``, ``mask`` and ``class``, whose cells may be empty. Its
    paths are relative to it. Of the files of one DICOM series in a folder only the first by name is a
    slide. The order is that of the arguments; folders are sorted.

    Args:
        names: files, folders, CSV lists.
        mpp: value for all slides, which a listed one contradicts.

    Raises:
        FieldInvalid: a CSV that cannot be read, has no ``slide`` column, or a line without one or with
            a value that makes no sense; or a listed mpp although ``mpp`` is given.
        SlideNotFound: a folder or CSV holds no slide.
        SlideUnreadable: a folder may not be listed.
        SlideIdDuplicate: two slides have the same file name without extension.
    """
    slides: list[ListedSlide] = []
    for name in names:
        slides.extend(_of_one(name))
    _refuse_doubles(slides)
    listed = next((slide for slide in slides if slide.mpp is not None), None)
    if listed is not None and mpp is not None:
        raise FieldInvalid(
            f"--mpp {mpp:g} is for all slides, and the list gives {listed.path.name} {listed.mpp:g}; "
            "leave one of them out."
        )
    return slides


def slides_by_class(root: Path, suffix: str) -> list[ListedSlide]:
    """Slides in ``<root>/<class>/`` or ``<root>/<class>/<folder>/``, sorted, each with its class.

    Of the files of one DICOM series in a folder only the first by name is a slide.

    Args:
        root: the folder of classes.
        suffix: of slide files, with or without its dot; upper or lower case.

    Raises:
        SlideNotFound: there is none.
        SlideIdDuplicate: two slides have the same file name without extension.
    """
    from cmamil_sdk.slides.dicom_series import one_of_each_series

    wanted = f".{suffix.removeprefix('.').lower()}"
    found = sorted(
        path
        for pattern in ("[!.]*/*", "[!.]*/*/*")
        for path in root.glob(pattern)
        if path.suffix.lower() == wanted and not path.name.startswith(".")
    )
    if not found:
        raise SlideNotFound(
            f"There is no slide *{wanted} at {root}/<class>/ or {root}/<class>/<folder>/; name the "
            "folder of classes with --data-root, and the files' extension with --slide-format."
        )
    slides = [
        ListedSlide(path, label=path.relative_to(root).parts[0])
        for path in one_of_each_series(found)
    ]
    _refuse_doubles(slides)
    return slides


def slides_with_class(names: Sequence[Path], *, mpp: float | None = None) -> list[ListedSlide]:
    """Slides of CSV lists that give the ``class`` of each.

    Raises:
        FieldInvalid: as :func:`expand_slides`; or a slide has no class, or one that names no folder.
        SlideNotFound, SlideUnreadable, SlideIdDuplicate: likewise.
    """
    slides = expand_slides(names, mpp=mpp)
    for slide in slides:
        label = slide.label
        if label is None:
            raise FieldInvalid(
                f"{slide.path} has no class, and tiles are sorted by it; list the slides in a CSV with "
                "the columns slide and class, or name a folder of classes with --data-root."
            )
        if label.startswith(".") or "/" in label:
            raise FieldInvalid(
                f"Class {label!r} of {slide.path} is no name for a folder; choose another."
            )
    return slides


def _of_one(name: Path) -> list[ListedSlide]:
    if _is_folder(name):
        return [ListedSlide(path) for path in _of_folder(name)]
    if name.suffix.lower() == ".csv":
        return _of_csv(name)
    return [ListedSlide(name)]


def _is_folder(name: Path) -> bool:
    try:
        return name.is_dir()
    except OSError:
        # A name that cannot even be looked up is a slide that fails when its turn comes.
        return False


def _of_folder(folder: Path) -> list[Path]:
    from cmamil_sdk.slides.dicom_series import one_of_each_series
    from cmamil_sdk.slides.plugin_registry import plugin_suffixes

    suffixes = SLIDE_SUFFIXES | plugin_suffixes()
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    except OSError as problem:
        raise SlideUnreadable(
            f"The folder {folder} cannot be listed ({problem}); change its permissions."
        ) from problem
    if not found:
        raise SlideNotFound(
            f"The folder {folder} holds no slide ({', '.join(sorted(suffixes))}); subfolders and images "
            "(PNG, JPEG) are not searched: name them, or the files themselves."
        )
    return one_of_each_series(found)


def _of_csv(path: Path) -> list[ListedSlide]:
    rows, columns = read_csv(path, error=FieldInvalid)
    if not rows:
        raise SlideNotFound(f"{path} lists no slide; give a 'slide' column with paths.")
    if "slide" not in columns:
        raise FieldInvalid(
            f"{path} has no column 'slide' (it has {', '.join(columns)}); name the column of paths so."
        )
    return [_listed(path, row, f"{path}, entry in line {row.line}") for row in rows]


def _listed(table: Path, row: Mapping[str, str], where: str) -> ListedSlide:
    if not row["slide"]:
        raise FieldInvalid(f"{where}: the slide is empty; fill it in or remove the line.")
    mask = row.get("mask")
    return ListedSlide(
        path=table.parent / row["slide"],
        mpp=_mpp(row.get("mpp"), where),
        mask=table.parent / mask if mask else None,
        label=row.get("class") or None,
    )


def _mpp(text: str | None, where: str) -> float | None:
    from cmamil_sdk.slides.open import check_mpp

    if not text:
        return None
    try:
        mpp = float(text)
        check_mpp(mpp)
    except (ValueError, FieldInvalid) as problem:
        raise FieldInvalid(
            f"{where}: mpp {text!r} is no number of microns per pixel between 0.05 and 50; correct it, "
            "or leave it empty where the file is right."
        ) from problem
    return mpp


def _refuse_doubles(slides: Iterable[ListedSlide]) -> None:
    seen: dict[str, Path] = {}
    for slide in slides:
        first = seen.get(slide.slide_id)
        if first == slide.path:
            raise SlideIdDuplicate(f"{slide.path} is named twice; name it once.")
        if first is not None:
            raise SlideIdDuplicate(
                f"{first} and {slide.path} have the same slide id {slide.slide_id!r}; "
                "rename one, or run them apart."
            )
        seen[slide.slide_id] = slide.path


__all__ = ["ListedSlide", "expand_slides", "slides_by_class", "slides_with_class"]
