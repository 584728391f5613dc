"""The bag: all tiles of one slide, per scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import FeatureFileInvalid, ScaleMismatch
from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.tiling.recipe import Scale
from cmamil_sdk.wording import counted

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Bag:
    """Features and geometry of one slide.

    Attributes:
        slide_id: the slide's file name without its last extension.
        scales: coarse to fine.
        features: per scale ``[N, D]`` float32; N >= 1, or 0 at every scale of a slide without tissue.
        coords: per scale ``[N, 2]`` int64 ``(x, y)`` of the tile's top left corner, level-0 pixels.
        parent: per scale ``[N]`` int64, row of the enclosing tile at the next coarser scale, -1 if
            none (all -1 at the coarsest).
        tissue: per scale ``[N]`` float32, tissue share of the tile.
    """

    slide_id: str
    scales: tuple[Scale, ...]
    features: Mapping[str, Float32]
    coords: Mapping[str, Int64]
    parent: Mapping[str, Int64]
    tissue: Mapping[str, Float32]

    @property
    def dim(self) -> int:
        """Length D of a feature vector."""
        return int(self.features[self.scales[-1].name].shape[1])

    @property
    def is_empty(self) -> bool:
        """Whether the slide has no tissue, and so no tiles."""
        return not any(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Number of tiles per scale."""
        return {scale.name: len(self.features[scale.name]) for scale in self.scales}

    def index_arrays(self) -> dict[str, Int64]:
        """Index arrays of the nested grid, as :func:`~cmamil_sdk.tiling.nesting.nesting_arrays`."""
        return nesting_arrays(self.scales, self.parent)

    def select(self, names: tuple[str, ...]) -> Bag:
        """The same slide at some of its scales; parents are re-linked across dropped scales.

        Raises:
            ScaleMismatch: a name is not a scale of this bag.
        """
        have = {scale.name: scale for scale in self.scales}
        missing = [name for name in names if name not in have]
        if missing:
            raise ScaleMismatch(
                f"Slide {self.slide_id} has no features at {', '.join(missing)} "
                f"(it has {', '.join(have)}); extract them, or choose among these scales."
            )
        kept = tuple(scale for scale in self.scales if scale.name in names)
        return Bag(
            slide_id=self.slide_id,
            scales=kept,
            features={s.name: self.features[s.name] for s in kept},
            coords={s.name: self.coords[s.name] for s in kept},
            parent=_relink([s.name for s in self.scales], [s.name for s in kept], self.parent),
            tissue={s.name: self.tissue[s.name] for s in kept},
        )

    def validate(self) -> None:
        """Check shapes and values.

        Raises:
            FeatureFileInvalid: arrays disagree, a scale is empty, a feature is NaN or infinite, or a
                parent does not exist.
        """
        n_above, empty = 0, self.is_empty
        for scale in self.scales:
            name = scale.name
            features, n = self.features[name], len(self.features[name])
            where = f"Slide {self.slide_id}, scale {name}"
            if features.ndim != 2 or (n == 0) != empty:
                raise FeatureFileInvalid(
                    f"{where}: features have shape {features.shape}, [N >= 1, D] is needed, or no "
                    "tile at any scale; "
                    "extract them again."
                )
            if features.shape[1] != self.dim:
                raise FeatureFileInvalid(
                    f"{where}: features are {features.shape[1]} wide, other scales {self.dim}; "
                    "extract all scales with one encoder."
                )
            others = (self.coords[name].shape, self.parent[name].shape, self.tissue[name].shape)
            if others != ((n, 2), (n,), (n,)):
                raise FeatureFileInvalid(
                    f"{where}: {counted(n, 'feature')} with coords, parent, tissue of shapes {others}; "
                    "extract them again."
                )
            if self.coords[name].dtype.kind != "i":
                raise FeatureFileInvalid(
                    f"{where}: coords are {self.coords[name].dtype}, whole level-0 pixels are needed; "
                    "extract them again."
                )
            broken = not_finite(features)
            if broken is not None:
                raise FeatureFileInvalid(f"{where}, {broken}; extract them again.")
            parent = self.parent[name]
            if parent.dtype.kind != "i" or ((parent < -1) | (parent >= n_above)).any():
                raise FeatureFileInvalid(
                    f"{where}: a parent is no row of the next coarser scale "
                    f"({counted(n_above, 'tile')}); extract them again."
                )
            n_above = n


def not_finite(features: Float32) -> str | None:
    """The first row of ``[N, D]`` that holds NaN or infinity, in words; None if none does."""
    parts = (features[i : i + _ROWS_AT_ONCE] for i in range(0, len(features), _ROWS_AT_ONCE))
    finite = [
        np.isfinite(part).all(axis=1) for part in parts
    ]  # a mask of all is a quarter as large
    rows = np.flatnonzero(~np.concatenate([np.ones(0, dtype=bool), *finite]))
    if not len(rows):
        return None
    more = f" (and {len(rows) - 1} more of {len(features)})" if len(rows) > 1 else ""
    return f"row {rows[0]}{more}: a feature is NaN or infinite"


def _relink(all_names: list[str], kept: list[str], parent: Mapping[str, Int64]) -> dict[str, Int64]:
    links: dict[str, Int64] = {}
    for position, name in enumerate(kept):
        if position == 0:
            links[name] = np.full(len(parent[name]), -1, dtype=np.int64)
            continue
        above = parent[name].astype(np.int64, copy=True)
        start, stop = all_names.index(kept[position - 1]), all_names.index(name)
        for skipped in reversed(all_names[start + 1 : stop]):
            above = np.append(parent[skipped], -1)[above]
        links[name] = above
    return links


__all__ = ["Bag", "not_finite"]
