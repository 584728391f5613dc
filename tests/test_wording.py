"""Numbers and their nouns."""

from __future__ import annotations

import pytest

from cmamil_sdk.wording import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 slides"), (1, "1 slide"), (2, "2 slides"), (21, "21 slides")]
)
def test_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "slide") == text
