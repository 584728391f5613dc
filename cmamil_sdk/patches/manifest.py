"""What lies beside the tiles of a slide: ``tiles.json`` and ``tiles.csv`` (docs/tiles.md)."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cmamil_sdk import __version__
from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.files import csv_text, write_atomic, write_json
from cmamil_sdk.tiling.recipe import Scale

FORMAT_VERSION = 1
_FACTS, _ROWS = "tiles.json", "tiles.csv"
_COLUMNS = ("col", "row", "x", "y", "score")


class PatchRecipe(BaseModel):
    """What decides the tiles of a slide at one magnification, apart from the slide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Scale
    tile_px: int = Field(ge=16, le=4096, description="distance of neighbouring tiles")
    overlap_px: int = Field(ge=0, description="by which a tile reaches over on each side")
    threshold: float = Field(ge=0, allow_inf_nan=False, description="edge density above it is kept")
    quality: int = Field(ge=1, le=100, description="of the JPEG files")

    @property
    def image_px(self) -> int:
        """Edge of an image, pixels."""
        return self.tile_px + 2 * self.overlap_px


class PatchManifest(BaseModel):
    """Where a folder of tiles comes from; ``lost`` are the tiles that could not be decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    sdk_version: str = __version__
    slide_id: str
    slide_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mpp: float = Field(gt=0, description="of level 0, microns per pixel")
    mpp_source: str = Field(description="metadata, override or objective")
    recipe: PatchRecipe
    size_level0: float = Field(gt=0, description="edge of an image, level-0 pixels")
    columns: int
    rows: int
    kept: int
    lost: tuple[tuple[int, int], ...] = Field((), description="(column, row)")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class PatchTile(BaseModel):
    """A tile that was kept: place in the grid, top left corner in level-0 pixels, edge density."""

    model_config = ConfigDict(frozen=True)

    col: int
    row: int
    x: int
    y: int
    score: float


def write_manifest(folder: Path, manifest: PatchManifest, tiles: list[PatchTile]) -> None:
    """Write both files."""
    lines = [[tile.col, tile.row, tile.x, tile.y, f"{tile.score:.4f}"] for tile in tiles]
    write_atomic(folder / _ROWS, csv_text(_COLUMNS, lines).encode())
    write_json(folder / _FACTS, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> PatchManifest | None:
    """What ``tiles.json`` says; None where there is none.

    Raises:
        SlideCorrupt: it is damaged.
    """
    path = folder / _FACTS
    if not path.is_file():
        return None
    try:
        return PatchManifest.model_validate_json(path.read_bytes())
    except ValueError as problem:
        raise _damaged(path, problem) from problem


def read_coordinates(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """``(col, row) -> (x, y)`` of ``tiles.csv``.

    Raises:
        SlideCorrupt: it is damaged or missing.
    """
    path = folder / _ROWS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                (int(line["col"]), int(line["row"])): (int(line["x"]), int(line["y"]))
                for line in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise _damaged(path, problem) from problem


def _damaged(path: Path, problem: Exception) -> SlideCorrupt:
    first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
    return SlideCorrupt(
        f"{path} is damaged ({first_line}); remove the folder, and tile the slide again."
    )


__all__ = [
    "PatchManifest",
    "PatchRecipe",
    "PatchTile",
    "read_coordinates",
    "read_manifest",
    "write_manifest",
]
