"""Which slides a command means: files, folders, and CSV lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def expand_slides(names: Sequence[Path]) -> list[Path]:
    """Slide files named directly, in folders (by their extension), or in a CSV's ``slide`` column.

    Folders give the formats that OpenSlide or a plug-in reads; a PNG or JPEG has to be named, or listed
    in a CSV. Paths in a CSV are relative to it. The order is that of the arguments; folders are sorted.

    Raises:
        FieldInvalid: a CSV that cannot be read, has no ``slide`` column, or a line without one.
        SlideNotFound: a folder or CSV holds no slide.
        SlideUnreadable: a folder may not be listed.
        SlideIdDuplicate: two slides have the same file name without extension.
    """
    slides: list[Path] = []
    for name in names:
        slides.extend(_of_one(name))
    _refuse_doubles(slides)
    return slides


def slides_by_class(root: Path, suffix: str) -> dict[Path, str]:
    """Slides in ``<root>/<class>/`` or ``<root>/<class>/<folder>/``, sorted, each with its class.

    Args:
        root: the folder of classes.
        suffix: of slide files, with or without its dot; upper or lower case.

    Raises:
        SlideNotFound: there is none.
        SlideIdDuplicate: two slides have the same file name without extension.
    """
    wanted = f".{suffix.removeprefix('.').lower()}"
    slides = {
        path: path.relative_to(root).parts[0]
        for pattern in ("[!.]*/*", "[!.]*/*/*")
        for path in root.glob(pattern)
        if path.suffix.lower() == wanted and not path.name.startswith(".")
    }
    if not slides:
        raise SlideNotFound(
            f"There is no slide *{wanted} at {root}/<class>/ or {root}/<class>/<folder>/; name the "
            "folder of classes with --data-root, and the files' extension with --slide-format."
        )
    _refuse_doubles(slides)
    return dict(sorted(slides.items()))


def _of_one(name: Path) -> list[Path]:
    if _is_folder(name):
        return _of_folder(name)
    if name.suffix.lower() == ".csv":
        return _of_csv(name)
    return [name]


def _is_folder(name: Path) -> bool:
    try:
        return name.is_dir()
    except OSError:
        # A name that cannot even be looked up is a slide that fails when its turn comes.
        return False


def _of_folder(folder: Path) -> list[Path]:
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
    return found


def _of_csv(path: Path) -> list[Path]:
    rows, columns = read_csv(path, error=FieldInvalid)
    if not rows:
        raise SlideNotFound(f"{path} lists no slide; give a 'slide' column with paths.")
    if "slide" not in columns:
        raise FieldInvalid(
            f"{path} has no column 'slide' (it has {', '.join(columns)}); name the column of paths so."
        )
    if "mpp" in columns:
        raise FieldInvalid(
            f"{path} has a column 'mpp', and values per slide are not read; remove it, and give --mpp "
            "for the slides that need it in a run of their own."
        )
    for number, row in enumerate(rows, start=2):
        if not row["slide"]:
            raise FieldInvalid(
                f"{path}, entry in line {number}: the slide is empty; fill it in or remove the line."
            )
    return [path.parent / row["slide"] for row in rows]


def _refuse_doubles(slides: Iterable[Path]) -> None:
    seen: dict[str, Path] = {}
    for slide in slides:
        if slide.stem in seen:
            raise SlideIdDuplicate(
                f"{seen[slide.stem]} and {slide} have the same slide id {slide.stem!r}; "
                "rename one, or run them apart."
            )
        seen[slide.stem] = slide


__all__ = ["expand_slides", "slides_by_class"]
