"""Feature arrays of other tools: what is read, and what is refused without being run."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import FeatureFileInvalid, FeatureFileUnreadable
from cmamil_sdk.training.layouts.arrays import SUFFIXES, read_array

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def write(path: Path, array: Any) -> Path:
    """Write an array as its suffix says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(np.asarray(array)), path)
    else:
        with h5py.File(path, "w") as file:
            file["features"] = array
            file["coords"] = np.zeros((len(array), 2), np.int64)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_floating_point_arrays_come_as_float32(tmp_path: Path, suffix: str, dtype: str) -> None:
    features = read_array(write(tmp_path / f"a{suffix}", FEATURES.astype(dtype)), "20x")
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, FEATURES)


def test_a_bfloat16_tensor_and_a_leading_axis_in_hdf5(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(FEATURES).bfloat16().requires_grad_(), tmp_path / "a.pt")
    np.testing.assert_array_equal(read_array(tmp_path / "a.pt", "20x"), FEATURES)
    three = write(tmp_path / "a.h5", FEATURES[None])
    np.testing.assert_array_equal(read_array(three, "20x"), FEATURES)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (FEATURES.astype(np.int64), "type int64"),
        (FEATURES[:0], r"shape \(0, 3\)"),
        (FEATURES[:, :0], r"shape \(4, 0\)"),
        (FEATURES[0], r"shape \(3,\)"),
        (np.stack([FEATURES, FEATURES]), r"shape \(2, 4, 3\)"),
        (np.where(FEATURES == 1, np.nan, FEATURES), "scale 20x, row 2: a feature is NaN"),
        (np.where(FEATURES == 1, -np.inf, FEATURES), "infinite"),
        (FEATURES.astype(np.float64) + 1e39, r"row 0 .and 3 more of 4.: .* in float32"),
    ],
)
def test_impossible_arrays_are_named(
    tmp_path: Path, suffix: str, array: np.ndarray, message: str
) -> None:
    path = write(tmp_path / f"slide{suffix}", array)
    with pytest.raises(FeatureFileInvalid, match=rf"slide\{suffix}.*{message}"):
        read_array(path, "20x")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (self.path.touch, ())


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Trap(sprung)))
    torch.save({"features": Trap(sprung)}, tmp_path / "b.pt")
    np.save(tmp_path / "c.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    for name in ("a.pt", "b.pt", "c.npy"):
        with pytest.raises(FeatureFileInvalid, match=name):
            read_array(tmp_path / name, "20x")
    assert not sprung.exists()
    pickle.loads((tmp_path / "a.pt").read_bytes())
    assert sprung.exists(), "the trap would have proved nothing"


def test_what_is_no_tensor_and_what_lacks_the_dataset(tmp_path: Path) -> None:
    torch.save({"features": torch.zeros(3, 2)}, tmp_path / "dict.pt")
    with pytest.raises(FeatureFileInvalid, match=r"dict\.pt .*holds a dict"):
        read_array(tmp_path / "dict.pt", "20x")
    torch.save(torch.eye(3).to_sparse(), tmp_path / "sparse.pt")
    with pytest.raises(FeatureFileInvalid, match=r"sparse\.pt holds a sparse tensor"):
        read_array(tmp_path / "sparse.pt", "20x")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = FEATURES
    with pytest.raises(FeatureFileInvalid, match="no dataset 'features', only embeddings"):
        read_array(tmp_path / "a.h5", "20x")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_short(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", FEATURES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FeatureFileInvalid, match=rf"a\{suffix} is damaged or cut short .*copy it"):
        read_array(path, "20x")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / f"a{suffix}", FEATURES)

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*((h5py, "File") if suffix == ".h5" else (builtins, "open")), refuse)
    with pytest.raises(FeatureFileUnreadable, match=rf"a\{suffix} may not be read .*permissions"):
        read_array(path, "20x")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(suffix=st.sampled_from(SUFFIXES), data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = write(tmp_path / f"a{suffix}", FEATURES)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        features = read_array(path, "20x")
    except FeatureFileInvalid as problem:
        assert "\n" not in str(problem)
        return
    assert features.ndim == 2 and np.isfinite(features).all()
