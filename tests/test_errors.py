"""The error tree: drawn as it is, one cause one leaf, and names that survive a wire."""

from __future__ import annotations

import pickle
import re

import pytest

from cmamil_sdk import errors
from cmamil_sdk.errors import (
    CmamilError,
    SlideNotFound,
    UnexpectedError,
    error_from_reason,
    leaf_errors,
)

EXIT_CODES = {"UsageError": 2, "InputError": 3, "CapabilityError": 4, "InternalError": 5}


def drawn_tree() -> dict[str, tuple[str, str]]:
    """Leaf -> (branch, gRPC status) as the docstring of the package draws it."""
    leaves: dict[str, tuple[str, str]] = {}
    branch = ""
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"\s*[├└]── (\w+) +exit (\d)", line):
            branch = found[1]
            assert EXIT_CODES[branch] == int(found[2])
        elif found := re.match(r"\s*[│ ]\s+[├└]── (\w+) +([A-Z_]+)$", line):
            leaves[found[1]] = (branch, found[2])
    return leaves


def test_the_drawn_tree_is_the_real_tree():
    real = {
        cls.__name__: (cls.__mro__[1].__name__, cls.grpc_status) for cls in leaf_errors().values()
    }
    assert len(real) > 30
    assert drawn_tree() == real


@pytest.mark.parametrize("leaf", leaf_errors().values(), ids=lambda cls: cls.__name__)
def test_each_leaf_has_one_exit_code_and_a_real_status(leaf: type[CmamilError]):
    grpc = pytest.importorskip("grpc")
    assert leaf.__mro__[2] is CmamilError, "a leaf hangs on a branch, a branch on the root"
    assert leaf.exit_code == EXIT_CODES[leaf.__mro__[1].__name__]
    assert leaf.grpc_status in grpc.StatusCode.__members__
    assert leaf.grpc_status != "OK"
    assert leaf.__doc__


@pytest.mark.parametrize("leaf", leaf_errors().values(), ids=lambda cls: cls.__name__)
def test_an_error_survives_name_and_pickle(leaf: type[CmamilError]):
    error = leaf("what, where, how")
    again = error_from_reason(error.reason, str(error))
    assert type(again) is leaf
    assert str(again) == "what, where, how"
    assert type(pickle.loads(pickle.dumps(error))) is leaf


def test_reason_is_spelled_in_upper_snake():
    assert SlideNotFound("").reason == "SLIDE_NOT_FOUND"
    assert errors.MppUnknown("").reason == "MPP_UNKNOWN"
    for reason, leaf in leaf_errors().items():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason)
        assert reason.replace("_", "") == leaf.__name__.upper()


def test_an_unknown_reason_is_an_unexpected_error():
    error = error_from_reason("FROM_A_NEWER_SERVER", "text")
    assert type(error) is UnexpectedError
    assert str(error) == "text"
    assert type(error_from_reason("INPUT_ERROR", "a branch is no leaf")) is UnexpectedError
