"""Options that take a list separated by commas."""

from __future__ import annotations


def names_in(text: str, option: str) -> list[str]:
    """The names of a list separated by commas.

    Raises:
        FieldInvalid: there is none, or one is there twice.
    """
    from cmamil_sdk.errors import FieldInvalid

    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise FieldInvalid(
            f"{option} {text!r} is no list of different names; separate them by ','."
        )
    return names


def numbers_in(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of a list separated by commas.

    Raises:
        FieldInvalid: one is none.
    """
    from cmamil_sdk.errors import FieldInvalid

    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as problem:
        raise FieldInvalid(
            f"{option} {text!r} must be whole numbers with commas between, such as 1,2."
        ) from problem


__all__ = ["names_in", "numbers_in"]
