"""The interface of a MIL model: training, export and evaluation know no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cmamil_sdk.errors import ScaleMismatch
from cmamil_sdk.models.output import MILOutput


class MILModel(nn.Module, ABC):
    """A model that turns the tiles of one slide into class logits.

    Attributes:
        kind: the name under which :func:`~cmamil_sdk.models.build.build_model` knows it.
        scales: names of the scales it reads, coarse to fine.
        feature_dim: width D of the tile features.
        n_classes: number of classes C.
        embedding_dim: width d of the tile embeddings that it returns.
        n_coarse: number of coarse classes Cc of a hierarchical model, else None.
        standardize: whether it standardises features by moments of the training tiles.
        has_attention: whether its output holds attention.
        is_additive: whether its output holds bias and contributions that add up to the logits.
    """

    kind: ClassVar[str]
    scales: tuple[str, ...]
    feature_dim: int
    n_classes: int
    embedding_dim: int
    n_coarse: int | None = None
    standardize: bool
    has_attention: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    @property
    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """JSON-able arguments from which ``build_model(self.kind, ...)`` makes this model again."""

    @property
    @abstractmethod
    def index_names(self) -> tuple[str, ...]:
        """Names of the index arrays that :meth:`forward` reads, in the order of the scales."""

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag; the label is never an input.

        Args:
            features: per scale ``[n, D]`` float, n >= 1.
            index: int64 arrays of the nested grid as ``Bag.index_arrays`` makes them
                (-1 for none); only those named by :attr:`index_names` are read.

        Raises:
            ScaleMismatch: a scale or an index array is missing.
        """

    @abstractmethod
    def set_standardization(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take over mean and standard deviation ``[D]`` of the training tiles, per scale.

        Raises:
            ConfigInvalid: the model was built without standardisation.
        """

    def check_inputs(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
        """Refuse a bag that lacks a scale or an index array (ScaleMismatch)."""
        missing = [name for name in self.scales if name not in features]
        if missing:
            raise ScaleMismatch(
                f"The bag has no features at {', '.join(missing)}, the model reads "
                f"{', '.join(self.scales)}; extract features at all of them."
            )
        absent = [name for name in self.index_names if name not in index]
        if absent:
            raise ScaleMismatch(
                f"The bag lacks the index arrays {', '.join(absent)} of the nested grid; "
                "give tiles with their parents, or train with cross_attention 'global'."
            )


__all__ = ["MILModel"]
