"""What a graph takes, and the check that an engine is given just that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cmamil_sdk.engines.base import Array
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid


class Shaped(Protocol):
    """What is looked at of an array, wherever it lies."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """Type and shape of one input; a dynamic axis is its name, or None where it has none."""

    dtype: np.dtype[Any]
    shape: Sequence[int | str | None]

    def fits(self, array: Shaped) -> bool:
        """Whether ``array`` has this type and shape, and no empty axis."""
        same_shape = len(self.shape) == array.ndim and all(
            not isinstance(want, int) or want == have
            for want, have in zip(self.shape, array.shape, strict=False)
        )
        return array.dtype == self.dtype and same_shape and 0 not in array.shape


def input_spec(
    graph: str,
    name: str,
    kind: str,
    shape: Sequence[int | str | None],
    known: Mapping[str, np.dtype[Any]],
) -> InputSpec:
    """The spec of an input whose type the runtime calls ``kind``.

    Raises:
        BundleUnsupported: ``kind`` is not among the ``known`` types.
    """
    if kind not in known:
        raise BundleUnsupported(
            f"{graph}: input {name} has a type that no model of this package has; "
            "export the model again."
        )
    return InputSpec(known[kind], shape)


def check_inputs(graph: str, specs: Mapping[str, InputSpec], inputs: Mapping[str, Shaped]) -> None:
    """Refuse inputs that are not those of ``specs``; ``graph`` names the file in messages.

    Raises:
        FieldInvalid: an input is missing, unknown, or of the wrong type or shape.
    """
    for name, spec in specs.items():
        if name not in inputs:
            raise FieldInvalid(f"{graph}: input {name} is missing; give all inputs.")
        array = inputs[name]
        if not spec.fits(array):
            raise FieldInvalid(
                f"{graph}: input {name} is {array.dtype}{list(array.shape)}, "
                f"{spec.dtype}{list(spec.shape)} is needed, with no empty axis; "
                "give features of this model."
            )
    unknown = set(inputs) - set(specs)
    if unknown:
        raise FieldInvalid(
            f"{graph} has no input {', '.join(sorted(unknown))}; its inputs are {', '.join(specs)}."
        )
    _check_lengths(graph, specs, inputs)


def zeros(specs: Mapping[str, InputSpec], rows: int) -> dict[str, Array]:
    """Inputs that fit: each axis of any length is ``rows`` long, and indices point at the first row."""
    return {
        name: np.zeros([n if isinstance(n, int) else rows for n in spec.shape], spec.dtype)
        for name, spec in specs.items()
    }


def _check_lengths(
    graph: str, specs: Mapping[str, InputSpec], inputs: Mapping[str, Shaped]
) -> None:
    """Axes of one name must be equally long: the runtime itself would broadcast or abort."""
    lengths: dict[str, tuple[int, str]] = {}
    for name, spec in specs.items():
        for axis, have in zip(spec.shape, inputs[name].shape, strict=True):
            want, first = lengths.setdefault(str(axis), (have, name))
            if have != want and isinstance(axis, str):
                raise FieldInvalid(
                    f"{graph}: inputs {first} and {name} must be equally long, they "
                    f"hold {want} and {have} rows; give the arrays of one bag."
                )


__all__ = ["InputSpec", "Shaped", "check_inputs", "input_spec", "zeros"]
