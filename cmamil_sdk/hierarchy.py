"""Two levels of labels: which coarse label each fine label belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmamil_sdk.errors import ConfigInvalid

_Float = TypeVar("_Float", bound=np.floating[Any])


class Hierarchy(BaseModel):
    """Coarse labels, and the parent of each fine class.

    Attributes:
        coarse_labels: Cc names; a coarse class is its position here.
        parents: ``[Cf]``, the coarse class of each fine class, every coarse class at least once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coarse_labels: tuple[str, ...] = Field(min_length=2)
    parents: tuple[int, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _onto(self) -> Self:
        if len(set(self.coarse_labels)) != len(self.coarse_labels):
            raise ValueError("a coarse label is named twice")
        if set(self.parents) != set(range(len(self.coarse_labels))):
            raise ValueError(
                f"parents {list(self.parents)} do not use each of the "
                f"{len(self.coarse_labels)} coarse classes and no other"
            )
        return self

    @classmethod
    def of(cls, labels: Sequence[str], parent_of: Mapping[str, str]) -> Self:
        """The hierarchy over ``labels`` that ``parent_of`` (fine name -> coarse name) describes.

        Coarse classes are numbered by the sorted order of their names, as labels are.

        Raises:
            ConfigInvalid: a label has no parent, a name is not a label, a coarse name is empty, or
                there are fewer than two coarse names.
        """
        orphans = [label for label in labels if label not in parent_of]
        if orphans:
            raise ConfigInvalid(
                f"The hierarchy gives no coarse label to {', '.join(orphans)}; "
                "add a line 'label: coarse label' for each."
            )
        unknown = sorted(set(parent_of) - set(labels))
        if unknown:
            raise ConfigInvalid(
                f"The hierarchy names {', '.join(unknown)}, which no slide has as its label "
                f"(labels: {', '.join(labels)}); mend the names or remove the lines."
            )
        coarse = tuple(sorted(set(parent_of.values())))
        if len(coarse) < 2 or "" in coarse:
            raise ConfigInvalid(
                f"The hierarchy has the coarse labels {list(coarse)}; it needs at least two, none "
                "of them empty."
            )
        return cls(
            coarse_labels=coarse, parents=tuple(coarse.index(parent_of[label]) for label in labels)
        )

    def check(self, labels: Sequence[str]) -> None:
        """Refuse another number of labels than of parents (ValueError, for pydantic)."""
        if len(labels) != len(self.parents):
            raise ValueError(f"{len(self.parents)} parents for {len(labels)} labels")

    def parent_label(self, fine_class: int) -> str:
        """Name of the coarse label that a fine class belongs to."""
        return self.coarse_labels[self.parents[fine_class]]

    def summed(self, probabilities: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
        """Probabilities ``[..., Cc]``: each coarse class has those of its fine classes ``[..., Cf]``."""
        membership = np.eye(len(self.coarse_labels), dtype=probabilities.dtype)[list(self.parents)]
        found: npt.NDArray[_Float] = probabilities @ membership
        return found


__all__ = ["Hierarchy"]
