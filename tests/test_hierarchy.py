"""Coarse labels over labels: total, onto, and nothing unknown."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.hierarchy import Hierarchy

LABELS = ("ADH", "DCIS", "N", "PB")
PARENT_OF = {"N": "benign", "PB": "benign", "ADH": "atypical", "DCIS": "malignant"}


def test_names_become_numbers_in_the_order_of_labels() -> None:
    hierarchy = Hierarchy.of(LABELS, PARENT_OF)
    assert hierarchy.coarse_labels == ("atypical", "benign", "malignant")
    assert hierarchy.parents == (0, 2, 1, 1)
    assert [hierarchy.parent_label(c) for c in range(4)] == [PARENT_OF[n] for n in LABELS]
    assert Hierarchy.model_validate_json(hierarchy.model_dump_json()) == hierarchy


@pytest.mark.parametrize(
    ("parent_of", "message"),
    [
        ({n: p for n, p in PARENT_OF.items() if n not in {"N", "PB"}}, "no coarse label to N, PB"),
        (PARENT_OF | {"UDH": "benign"}, "names UDH"),
        (dict.fromkeys(LABELS, "benign"), "at least two"),
        (PARENT_OF | {"N": ""}, "none of them empty"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(parent_of: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        Hierarchy.of(LABELS, parent_of)


@pytest.mark.parametrize(
    ("coarse", "parents"),
    [(("a", "b"), (0, 0)), (("a", "b"), (0, 2)), (("a", "a"), (0, 1)), (("a", "b"), (0, -1))],
)
def test_a_document_that_is_not_onto_is_refused(
    coarse: tuple[str, ...], parents: tuple[int, ...]
) -> None:
    with pytest.raises(ValidationError):
        Hierarchy(coarse_labels=coarse, parents=parents)
