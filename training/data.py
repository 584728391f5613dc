"""Feature files as training bags: joined to labels by slide id, checked before training, lazy."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import (
    ConfigInvalid,
    FeatureFileInvalid,
    LabelsInvalid,
    RecipeMismatch,
    ScaleMismatch,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, read_feature_file
from cmamil_sdk.tiling.recipe import TilingRecipe

from .labels import LabelTable, some

Float64 = npt.NDArray[np.float64]
Moments = dict[str, tuple[Tensor, Tensor]]

_MEGABYTE = 2**20


@dataclass(frozen=True)
class TrainingBag:
    """One slide as tensors.

    Attributes:
        slide: its id.
        label: class number.
        features: per scale ``[n, D]`` float32.
        index: int64 arrays of the nested grid, as ``Bag.index_arrays`` makes them.
    """

    slide: str
    label: int
    features: Mapping[str, Tensor]
    index: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Self:
        """The same bag on ``device``."""
        return type(self)(
            self.slide,
            self.label,
            {name: tensor.to(device) for name, tensor in self.features.items()},
            {name: tensor.to(device) for name, tensor in self.index.items()},
        )

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        tensors = [*self.features.values(), *self.index.values()]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class _Spread:
    """Count, mean ``[D]`` and summed squared deviation ``[D]`` of the tiles of one scale."""

    n: int
    mean: Float64
    squares: Float64

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> _Spread:
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def merge(self, other: _Spread) -> _Spread:
        """Of both together (Chan's update, which does not cancel)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        squares = self.squares + other.squares + delta**2 * (self.n * other.n / n)
        return _Spread(n, mean, squares)


def bag_tensors(bag: Bag, label: int) -> TrainingBag:
    """A bag with its class number as tensors."""
    return TrainingBag(
        bag.slide_id,
        label,
        {s.name: torch.from_numpy(bag.features[s.name]) for s in bag.scales},
        {name: torch.from_numpy(rows) for name, rows in bag.index_arrays().items()},
    )


def labels_of(bags: Sequence[TrainingBag]) -> list[int]:
    """Class numbers of bags, without reading those of a store."""
    if isinstance(bags, BagSequence):
        return [bags.store.table.class_of(slide) for slide in bags.slides]
    return [bag.label for bag in bags]


def moments_of(bags: Iterable[TrainingBag]) -> Moments:
    """Mean and population standard deviation ``[D]`` float32 per scale over all tiles of bags."""
    total: dict[str, _Spread] = {}
    for bag in bags:
        spreads = {name: _Spread.of(x.numpy()) for name, x in bag.features.items()}
        total = _merged(total, spreads)
    return _as_moments(total)


class FeatureStore:
    """The feature files of all labelled slides, read when asked for.

    :meth:`open` reads each file once, checks it and notes its moments; after that bags come from a
    cache of at most ``cache_mb`` megabytes or from the files.

    Attributes:
        table: the labels.
        parents_known: whether every slide ties its scales together.
    """

    def __init__(
        self, paths: Mapping[str, Path], table: LabelTable, scales: tuple[str, ...] | None
    ) -> None:
        self._paths = dict(paths)
        self.table = table
        self._wanted = scales
        self._limit_bytes = 0
        self._cached_bytes = 0
        self._cache: OrderedDict[str, TrainingBag] = OrderedDict()
        self._spreads: dict[str, dict[str, _Spread]] = {}
        self._origins: dict[str, str] = {}
        self._first: tuple[Path, FeatureProvenance] | None = None
        self.parents_known = True

    @classmethod
    def open(
        cls,
        features: Path,
        table: LabelTable,
        *,
        scales: tuple[str, ...] | None = None,
        cache_mb: int = 2048,
        ignore_unlabelled: bool = False,
    ) -> FeatureStore:
        """Join ``features/<slide_id>.h5`` to the table and check every file.

        Raises:
            LabelsInvalid: a labelled slide has no file, or a file no label.
            FeatureFileInvalid: a file is damaged, empty or holds NaN.
            RecipeMismatch: two files were made by different recipes or encoders.
            ScaleMismatch: the features lack a wanted scale.
        """
        paths = _join(features, table, ignore_unlabelled)
        store = cls(paths, table, scales)
        store._limit_bytes = cache_mb * _MEGABYTE
        for slide in paths:
            store._survey(slide)
        return store

    @property
    def provenance(self) -> FeatureProvenance:
        """Provenance of the first file; recipe and encoder are those of all."""
        if self._first is None:
            raise LabelsInvalid(f"{self.table.path} names no slide; fill it in.")
        return self._first[1]

    def digest(self) -> str:
        """sha256 over the slides' ids, their files' hashes and when their features were made."""
        lines = [f"{slide} {self._origins[slide]}" for slide in sorted(self._origins)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def recipe(self) -> TilingRecipe:
        """The features' tiling recipe, of the chosen scales only."""
        recipe = self.provenance.recipe
        kept = [scale for scale in recipe.scales if scale.name in (self._wanted or recipe.names)]
        return recipe.model_copy(update={"scales": tuple(kept)})

    @property
    def encoder(self) -> EncoderInfo:
        """What made the features."""
        return self.provenance.encoder

    def bag(self, slide: str) -> TrainingBag:
        """The bag of one slide, from the cache or its file."""
        cached = self._cache.get(slide)
        if cached is not None:
            self._cache.move_to_end(slide)
            return cached
        bag, provenance = read_feature_file(self._paths[slide])
        self._refuse_other_recipe(self._paths[slide], provenance)
        return self._remember(bag_tensors(self._chosen(bag), self.table.class_of(slide)))

    def bags(self, slides: Sequence[str]) -> BagSequence:
        """Bags of ``slides`` as a lazy sequence."""
        return BagSequence(self, tuple(slides))

    def moments(self, slides: Sequence[str]) -> Moments:
        """Mean and standard deviation per scale over the tiles of ``slides``."""
        total: dict[str, _Spread] = {}
        for slide in slides:
            total = _merged(total, self._spreads[slide])
        return _as_moments(total)

    def mean_features(self, scale: str) -> dict[str, Float64]:
        """Each slide's mean feature ``[D]`` at one scale (ScaleMismatch if there is none)."""
        if scale not in self.recipe.names:
            raise ScaleMismatch(
                f"The features have the scales {', '.join(self.recipe.names)}, not {scale}; "
                "choose among these."
            )
        return {slide: spreads[scale].mean for slide, spreads in self._spreads.items()}

    def _survey(self, slide: str) -> None:
        path = self._paths[slide]
        bag, provenance = read_feature_file(path)
        if provenance.slide_id != slide:
            raise FeatureFileInvalid(
                f"{path} holds the features of slide {provenance.slide_id!r}; "
                "give the file its slide's name."
            )
        if self._first is None:
            self._first = (path, provenance)
            _check_scales(path, provenance.recipe, self._wanted)
        self._refuse_other_recipe(path, provenance)
        self._origins[slide] = f"{provenance.slide_sha256} {provenance.created}"
        chosen = self._chosen(bag)
        finer = chosen.scales[1:]
        self.parents_known &= all((chosen.parent[s.name] >= 0).any() for s in finer)
        self._spreads[slide] = {s.name: _Spread.of(chosen.features[s.name]) for s in chosen.scales}
        self._remember(bag_tensors(chosen, self.table.class_of(slide)))

    def _chosen(self, bag: Bag) -> Bag:
        return bag if self._wanted is None else bag.select(self._wanted)

    def _refuse_other_recipe(self, path: Path, provenance: FeatureProvenance) -> None:
        if self._first is not None and provenance.recipe_key() != self._first[1].recipe_key():
            raise RecipeMismatch(
                f"{path} and {self._first[0]} were made by different tiling recipes or encoders; "
                "extract one of them again."
            )

    def _remember(self, bag: TrainingBag) -> TrainingBag:
        if bag.nbytes <= self._limit_bytes:
            self._cache[bag.slide] = bag
            self._cached_bytes += bag.nbytes
        while self._cached_bytes > self._limit_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return bag


@dataclass(frozen=True)
class BagSequence(Sequence[TrainingBag]):
    """Some slides of a store, each bag read when indexed."""

    store: FeatureStore
    slides: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, position: int) -> TrainingBag:  # type: ignore[override]
        return self.store.bag(self.slides[position])


def resolve_cross_attention(wanted: str | None, store: FeatureStore) -> str:
    """The form of cross attention to train: ``wanted``, or the best that the features allow.

    A single scale has nothing to attend to: "none".

    Raises:
        ConfigInvalid: nested attention is wanted, but a slide does not know its tiles' parents.
    """
    if wanted == "nested" and not store.parents_known:
        raise ConfigInvalid(
            "cross_attention 'nested' needs the tiles' parents, which some feature files do not "
            "hold; extract the features again, or choose 'global'."
        )
    if len(store.recipe.scales) == 1:
        return "none"
    return wanted or ("nested" if store.parents_known else "global")


def _join(features: Path, table: LabelTable, ignore_unlabelled: bool) -> dict[str, Path]:
    files = {path.stem: path for path in sorted(features.glob("*.h5"))}
    if not files:
        raise FeatureFileInvalid(
            f"There are no feature files in {features}; name the folder that `cmamil features` wrote."
        )
    missing = set(table.by_slide) - set(files)
    if missing:
        raise LabelsInvalid(
            f"{table.path} names {some(missing)}, but {features} has no such feature file; "
            "extract the features, or remove the lines."
        )
    unlabelled = set(files) - set(table.by_slide)
    if unlabelled and not ignore_unlabelled:
        raise LabelsInvalid(
            f"{features} holds {some(unlabelled)}, which {table.path} does not name; "
            "add their labels, or set ignore_unlabelled."
        )
    return {row.slide: files[row.slide] for row in table.rows}


def _check_scales(path: Path, recipe: TilingRecipe, wanted: tuple[str, ...] | None) -> None:
    """Refuse scales the features lack, or that lack the features' finest.

    Coarse tiles are kept and averaged from the finest scale, so without it the recipe would name
    other pixels than those behind the features.
    """
    names = wanted or recipe.names
    missing = [name for name in names if name not in recipe.names]
    if missing:
        raise ScaleMismatch(
            f"{path} has no features at {', '.join(missing)} (it has {', '.join(recipe.names)}); "
            "extract them, or choose among these scales."
        )
    if recipe.finest.name not in names:
        raise ScaleMismatch(
            f"scales {', '.join(names)} leave out {recipe.finest.name}, from which {path} made its "
            "coarser tiles; keep it, or extract features at the wanted scales alone."
        )


def _merged(total: Mapping[str, _Spread], spreads: Mapping[str, _Spread]) -> dict[str, _Spread]:
    return {
        name: total[name].merge(spread) if name in total else spread
        for name, spread in spreads.items()
    }


def _as_moments(total: Mapping[str, _Spread]) -> Moments:
    return {
        name: (
            torch.from_numpy(spread.mean).float(),
            torch.from_numpy(np.sqrt(spread.squares / spread.n)).float(),
        )
        for name, spread in total.items()
    }


__all__ = [
    "BagSequence",
    "FeatureStore",
    "Moments",
    "TrainingBag",
    "bag_tensors",
    "labels_of",
    "moments_of",
    "resolve_cross_attention",
]
