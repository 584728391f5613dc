"""The features of all labelled slides: joined by slide id, checked before training, read lazily."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import PurePath

import torch

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import (
    ConfigInvalid,
    FeatureFileInvalid,
    LabelsInvalid,
    RecipeMismatch,
    ScaleMismatch,
)
from cmamil_sdk.tiling.recipe import TilingRecipe

from .data import Float64, Moments, Spread, TrainingBag, combined, spreads_of
from .labels import LabelTable, some
from .layouts.base import Layout, Origin, SlideFeatures

_MEGABYTE = 2**20


class FeatureStore:
    """The features of all labelled slides, read when asked for.

    :meth:`open` reads each slide once, checks it and notes its moments; after that bags come from a
    cache of at most ``cache_mb`` megabytes or from the files.

    Attributes:
        table: the labels.
        origin: how the features of all slides were made.
        parents_known: whether every slide ties its scales together.
    """

    def __init__(self, layout: Layout, table: LabelTable, *, cache_mb: int) -> None:
        self.table = table
        self.parents_known = True
        self._layout = layout
        self._limit_bytes = cache_mb * _MEGABYTE
        self._cached_bytes = 0
        self._cache: OrderedDict[str, TrainingBag] = OrderedDict()
        self._spreads: dict[str, dict[str, Spread]] = {}
        self._fingerprints: dict[str, str] = {}
        self._first = table.rows[0].slide
        self.origin: Origin = layout.read(self._first).origin
        for row in table.rows:
            self._survey(row.slide)

    @classmethod
    def open(
        cls,
        layout: Layout,
        table: LabelTable,
        *,
        cache_mb: int = 2048,
        ignore_unlabelled: bool = False,
    ) -> FeatureStore:
        """Join the slides of ``layout`` to the table and check them all.

        Raises:
            LabelsInvalid: a labelled slide has no features, or a slide with features no label.
            FeatureFileInvalid: a file is damaged, empty or holds NaN, or widths differ.
            RecipeMismatch: two files were made by different recipes or encoders.
            ScaleMismatch: the features lack a wanted scale.
        """
        refuse_unjoined(layout, table, ignore_unlabelled)
        return cls(layout, table, cache_mb=cache_mb)

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the scales, coarse to fine."""
        return self.origin.scales

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.origin.dim

    @property
    def recipe(self) -> TilingRecipe | None:
        """The features' tiling recipe, of the chosen scales only, if their files say it."""
        return self.origin.recipe

    @property
    def encoder(self) -> EncoderInfo | None:
        """What made the features, if their files say it."""
        return self.origin.encoder

    def digest(self) -> str:
        """sha256 over the slides' ids and the fingerprints of their features."""
        lines = [f"{slide} {self._fingerprints[slide]}" for slide in sorted(self._fingerprints)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def bag(self, slide: str) -> TrainingBag:
        """The bag of one slide, from the cache or its file."""
        cached = self._cache.get(slide)
        if cached is not None:
            self._cache.move_to_end(slide)
            return cached
        return self._remember(slide, self._read(slide))

    def bags(self, slides: Sequence[str]) -> BagSequence:
        """Bags of ``slides`` as a lazy sequence."""
        return BagSequence(self, tuple(slides))

    def moments(self, slides: Sequence[str]) -> Moments:
        """Mean and standard deviation per scale over the tiles of ``slides``."""
        return combined(self._spreads[slide] for slide in slides)

    def mean_features(self, scale: str) -> dict[str, Float64]:
        """Each slide's mean feature ``[D]`` at one scale (ScaleMismatch if there is none)."""
        if scale not in self.scales:
            raise ScaleMismatch(
                f"The features have the scales {', '.join(self.scales)}, not {scale}; "
                "choose among these."
            )
        return {slide: spreads[scale].mean for slide, spreads in self._spreads.items()}

    def _survey(self, slide: str) -> None:
        found = self._read(slide)
        self._fingerprints[slide] = self._layout.fingerprint(slide)
        self.parents_known &= found.parents_known
        self._spreads[slide] = spreads_of(found.features)
        self._remember(slide, found)

    def _read(self, slide: str) -> SlideFeatures:
        found = self._layout.read(slide)
        if found.origin != self.origin:
            self._refuse(slide, found.origin)
        return found

    def _refuse(self, slide: str, other: Origin) -> None:
        file, first = self._layout.file(slide), self._layout.file(self._first)
        if other.recipe is None and self.recipe is None:
            raise FeatureFileInvalid(
                f"{file}: features are {other.dim} wide, those of {first} {self.dim}; "
                "extract all slides with one encoder."
            )
        raise RecipeMismatch(
            f"{file} and {first} were made by different tiling recipes or encoders; "
            "extract one of them again."
        )

    def _remember(self, slide: str, found: SlideFeatures) -> TrainingBag:
        bag = TrainingBag(
            slide,
            self.table.class_of(slide),
            {name: torch.from_numpy(tiles) for name, tiles in found.features.items()},
            {name: torch.from_numpy(rows) for name, rows in found.index.items()},
        )
        if bag.nbytes <= self._limit_bytes:
            self._cache[slide] = bag
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


def labels_of(bags: Sequence[TrainingBag]) -> list[int]:
    """Class numbers of bags, without reading those of a store."""
    if isinstance(bags, BagSequence):
        return [bags.store.table.class_of(slide) for slide in bags.slides]
    return [bag.label for bag in bags]


def resolve_cross_attention(wanted: str | None, store: FeatureStore) -> str:
    """The form of cross attention to train: ``wanted``, or the best that the features allow.

    A single scale attends to itself only where "global" is wanted.

    Raises:
        ConfigInvalid: tiles are to attend to nested ones and there is one scale, or a slide does not
            know its tiles' parents.
    """
    if len(store.scales) == 1:
        if wanted in ("nested", "nested-bias"):
            raise ConfigInvalid(
                f"cross_attention {wanted!r} has no effect on the one scale {store.scales[0]}; "
                "leave it out, train on more, or choose 'global', by which its tiles attend to each "
                "other."
            )
        return wanted or "none"
    if wanted in ("nested", "nested-bias") and not store.parents_known:
        raise ConfigInvalid(
            f"cross_attention {wanted!r} needs the tiles' parents, which some feature files do not "
            "hold; extract the features again with `cmamil features`, or choose 'global'."
        )
    return wanted or ("nested" if store.parents_known else "global")


def refuse_unjoined(layout: Layout, table: LabelTable, ignore_unlabelled: bool) -> None:
    """Refuse labelled slides without features and, unless ignored, the reverse (LabelsInvalid)."""
    present = set(layout.slides)
    missing = set(table.by_slide) - present
    if missing:
        raise LabelsInvalid(
            f"{table.path} names {some(missing)}, but {layout.place} has no such feature file; "
            f"{_how_to_join(missing, present)}."
        )
    unlabelled = present - set(table.by_slide)
    if unlabelled and not ignore_unlabelled:
        raise LabelsInvalid(
            f"{layout.place} holds {some(unlabelled)}, which {table.path} does not name; "
            "add their labels, or set ignore_unlabelled."
        )


def _how_to_join(missing: Set[str], present: Set[str]) -> str:
    """Labels are often written for slide files, whose names have an extension."""
    for slide in sorted(missing):
        if PurePath(slide).stem in present:
            return f"slides go without extension: write {PurePath(slide).stem} for {slide}"
    return "extract the features, or remove the lines"


__all__ = [
    "BagSequence",
    "FeatureStore",
    "labels_of",
    "refuse_unjoined",
    "resolve_cross_attention",
]
