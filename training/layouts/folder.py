"""A folder with one file per slide: our feature files, or arrays of other tools (one scale)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cmamil_sdk.errors import FeatureFileInvalid, NoTissue, ScaleMismatch
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import forbidden, is_feature_file, read_feature_file, read_provenance
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.tiling.recipe import TilingRecipe

from ..labels import some
from .arrays import SUFFIXES, read_array
from .base import Origin, SlideFeatures

ONE_SCALE = "tiles"
"""Name of the scale of arrays that say no scale, if none is given."""


class FeatureFolder:
    """``<folder>/<slide>.h5``, ``.npy`` or ``.pt``.

    Args:
        folder: holds the files of all slides.
        scales: among those of our feature files; for arrays, the name of their one scale.

    Raises:
        FeatureFileInvalid: there are no such files, or two of one slide.
        FeatureFileUnreadable: this process may not look into the folder.
    """

    def __init__(self, folder: Path, scales: tuple[str, ...] | None = None) -> None:
        self._folder = folder
        self._scales = scales
        self._files = files_by_slide(folder)
        if not self._files:
            raise FeatureFileInvalid(
                f"There are no feature files in {folder}; name the folder that `cmamil features` "
                f"wrote, or one with a file {', '.join(SUFFIXES)} for each slide."
            )

    @property
    def place(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def slides(self) -> Collection[str]:
        """File names without suffix."""
        return self._files.keys()

    def file(self, slide: str) -> Path:
        """The file of a slide."""
        return self._files[slide]

    def read(self, slide: str) -> SlideFeatures:
        """Read and check one slide; see :class:`~cmamil_sdk.training.layouts.base.Layout`."""
        path = self._files[slide]
        return self._ours(path, slide) if is_feature_file(path) else self._array(path)

    def fingerprint(self, slide: str) -> str:
        """Hash of the slide and time of extraction; of an array, the hash of its file."""
        path = self._files[slide]
        if not is_feature_file(path):
            return sha256_of_file(path)
        provenance = read_provenance(path)
        return f"{provenance.slide_sha256} {provenance.created}"

    def _ours(self, path: Path, slide: str) -> SlideFeatures:
        bag, provenance = read_feature_file(path)
        if provenance.slide_id != slide:
            raise FeatureFileInvalid(
                f"{path} holds the features of slide {provenance.slide_id!r}; "
                "give the file its slide's name."
            )
        if bag.is_empty:
            raise NoTissue(
                f"{path} holds no tiles, because its slide has no tissue; remove the file, and the "
                "slide from the labels."
            )
        chosen = _choose(path, bag, provenance.recipe, self._scales)
        finer = chosen.scales[1:]
        return SlideFeatures(
            features={scale.name: chosen.features[scale.name] for scale in chosen.scales},
            index=chosen.index_arrays(),
            parents_known=all((chosen.parent[scale.name] >= 0).any() for scale in finer),
            origin=Origin(
                scales=tuple(scale.name for scale in chosen.scales),
                dim=chosen.dim,
                recipe_key=provenance.recipe_key(),
                recipe=provenance.recipe.model_copy(update={"scales": chosen.scales}),
                encoder=provenance.encoder,
            ),
        )

    def _array(self, path: Path) -> SlideFeatures:
        names = self._scales or (ONE_SCALE,)
        if len(names) > 1:
            raise ScaleMismatch(
                f"{path} holds tiles of one scale, and scales {', '.join(names)} are wanted; "
                "name one, or use files of `cmamil features`."
            )
        features = {names[0]: read_array(path, names[0])}
        return SlideFeatures(features, {}, parents_known=False, origin=Origin.unknown(features))


def files_by_slide(folder: Path) -> dict[str, Path]:
    """Feature files right inside ``folder`` by slide id, sorted; hidden files are left out.

    Raises:
        FeatureFileInvalid: two files differ only in their suffix.
        FeatureFileUnreadable: this process may not look into it.
    """
    files: dict[str, Path] = {}
    try:
        shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        present = [path for path in shown if path.suffix in SUFFIXES and path.is_file()]
    except PermissionError as problem:
        raise forbidden(folder) from problem
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for path in present:
        if path.stem in files:
            raise FeatureFileInvalid(
                f"{folder} holds {files[path.stem].name} and {path.name} for one slide; keep one."
            )
        files[path.stem] = path
    return files


def _choose(path: Path, bag: Bag, recipe: TilingRecipe, wanted: tuple[str, ...] | None) -> Bag:
    """The bag at the wanted scales, which must be there and include the features' finest.

    Coarse tiles are kept by those of the finest scale, and may be averages of it, so without it the
    recipe would name other tiles than those behind the features. A sample is drawn by tiles of the
    coarsest scale.
    """
    if wanted is None:
        return bag
    missing = [name for name in wanted if name not in recipe.names]
    if missing:
        raise ScaleMismatch(
            f"{path} has no features at {some(missing)} (it has {', '.join(recipe.names)}); "
            "extract them, or choose among these scales."
        )
    if recipe.finest.name not in wanted:
        raise ScaleMismatch(
            f"scales {', '.join(wanted)} leave out {recipe.finest.name}, by which {path} chose its "
            "coarser tiles; keep it, or extract features at the wanted scales alone."
        )
    if recipe.sample is not None and recipe.scales[0].name not in wanted:
        raise ScaleMismatch(
            f"scales {', '.join(wanted)} leave out {recipe.scales[0].name}, by whose tiles those of "
            f"{path} were sampled; keep it, or extract features at the wanted scales alone."
        )
    return bag.select(wanted)


__all__ = ["ONE_SCALE", "FeatureFolder", "files_by_slide"]
