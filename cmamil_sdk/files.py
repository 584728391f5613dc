"""Files that are whole or absent, and documents that are valid or refused."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmamil_sdk.errors import BundleCorrupt, CmamilError, OutputUnwritable
from cmamil_sdk.wording import counted

_ModelT = TypeVar("_ModelT", bound=BaseModel)


class FileEntry(BaseModel):
    """Hash and size of one file, as a manifest lists them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file on disk; OSError if it cannot be read."""
        return cls(sha256=sha256_of_file(path), size=path.stat().st_size)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name ``path`` when the block ends well, and is gone otherwise.

    Raises:
        OutputUnwritable: the disk is full, or the folder may not be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as problem:
        raise OutputUnwritable(
            f"{path} cannot be written ({problem.strerror or problem}); free space, or change "
            "permissions or paths."
        ) from problem


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` so that ``path`` is either the old file or the whole new one.

    Raises:
        OutputUnwritable: the disk is full, or the folder may not be written to.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, document: object) -> None:
    """Write ``document`` as indented JSON, atomically; NaN is refused (ValueError)."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A CSV table with Unix line ends."""
    return "".join(f"{_csv_line(cells)}\n" for cells in (header, *lines))


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # quotes cells with either of the two
    return text.getvalue().removesuffix("\r\n")


class CsvRow(dict[str, str]):
    """Cells by column name; ``line`` is that of the file in which the row begins, from 1."""

    def __init__(self, cells: Iterable[tuple[str, str]], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_csv(path: Path, *, error: type[CmamilError]) -> tuple[list[CsvRow], tuple[str, ...]]:
    """Rows of a comma-separated table as stripped text by column name, and the names.

    Empty lines are left out. A problem becomes ``error``: unreadable, not UTF-8, separated by
    something else, a column named twice, or a row longer or shorter than the header.
    """
    records = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = tuple(name.strip() for name in next(reader, []))
            _refuse_columns(path, columns, error)
            next_line = reader.line_num + 1
            for cells in reader:
                line, next_line = next_line, reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(columns):
                    raise error(
                        f"{path}, line {line}: {counted(len(cells), 'value')} for "
                        f"{counted(len(columns), 'column')}; mend the line."
                    )
                stripped = (cell.strip() for cell in cells)
                records.append(CsvRow(zip(columns, stripped, strict=True), line))
    except OSError as problem:
        raise error(
            f"{path} cannot be read ({problem.strerror}); check its name and permissions."
        ) from problem
    except (UnicodeDecodeError, csv.Error) as problem:
        raise error(f"{path} cannot be read ({problem}); save it as CSV in UTF-8.") from problem
    return records, columns


def _refuse_columns(path: Path, columns: Sequence[str], error: type[CmamilError]) -> None:
    if len(columns) == 1:
        for mark, name in {";": "';'", "\t": "tabs", "|": "'|'"}.items():
            if mark in columns[0]:
                raise error(
                    f"{path} looks separated by {name}, and only commas are read; save it again "
                    "with commas between the columns."
                )
    double = sorted({name for name in columns if name and columns.count(name) > 1})
    if double:
        raise error(f"{path} has more than one column {double[0]!r}; remove or rename one of them.")


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_listed(path: Path, sha256: str) -> BinaryIO:
    """Open a file, compare what was opened with what a manifest lists, and go back to its beginning.

    Raises:
        BundleCorrupt: it is missing or changed.
    """
    try:
        file = path.open("rb")
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    try:
        _compare(path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def read_listed(path: Path, sha256: str) -> bytes:
    """The bytes of a file, which are those that a manifest lists: what was compared is what is returned.

    Raises:
        BundleCorrupt: it is missing or changed.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    _compare(path, hashlib.sha256(data).hexdigest(), sha256)
    return data


def _compare(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise BundleCorrupt(
            f"{path} is not the file that its manifest lists (sha256 {found[:12]}… instead of "
            f"{sha256[:12]}…); copy it again."
        )


def _unreadable(path: Path, problem: OSError) -> BundleCorrupt:
    return BundleCorrupt(f"{path} is missing or unreadable ({problem.strerror}); copy it again.")


def parse_document(
    model: type[_ModelT],
    document: Mapping[str, Any],
    *,
    where: str | Path,
    error: type[CmamilError],
    shown: Callable[[str], str] = str,
) -> _ModelT:
    """Validate ``document`` as ``model``; a problem becomes ``error``, naming file and field.

    ``shown`` makes of a field's name what the user knows it by.
    """
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        raise error(f"{where}: {_sentence(model, problem, shown)}") from problem
    except CmamilError as problem:
        # Some fields check themselves and raise a leaf of their own, which knows no file.
        raise error(f"{where}: {problem}") from problem


_WANTED = {
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""What pydantic's kinds of error ask of a value."""


def _sentence(model: type[BaseModel], problem: ValidationError, shown: Callable[[str], str]) -> str:
    """What is wrong first, in words for a user."""
    first = problem.errors()[0]
    field = ".".join(shown(str(part)) for part in first["loc"])
    if first["type"] == "value_error" and not field:
        return f"{first['ctx']['error']}."  # a check of the whole, which says how to mend it
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, list(model.model_fields), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; remove it."
        return f"{field} is no entry known here{hint}"
    if first["type"] == "missing":
        return f"{field} is missing; add it."
    if first["type"] in _WANTED:
        wanted = _WANTED[first["type"]].format_map(first.get("ctx", {}))
        return (
            f"{field} is {reprlib.repr(first['input'])} and must be {wanted}; give another value."
        )
    said = first["msg"].removeprefix("Value error, ")
    return f"{field or 'document'}: {said}; mend or remove this entry."


__all__ = [
    "CsvRow",
    "FileEntry",
    "csv_text",
    "open_listed",
    "parse_document",
    "read_csv",
    "read_listed",
    "replacing",
    "sha256_of_file",
    "write_atomic",
    "write_json",
]
