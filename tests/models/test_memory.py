"""What a training step holds at once, counted tensor by tensor: linear in the number of tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmamil_sdk.models import attention
from cmamil_sdk.models.build import build_model
from cmamil_sdk.models.standardize import Standardize
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.objective import make_objective

SCALES = ("5x", "10x", "20x")
WIDTH, DIM = 64, 32
FORMS = ("nested", "nested-bias", "global", "none", "hmil")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of scores as small beside these bags as they are beside large ones."""
    monkeypatch.setattr(attention, "MAX_SCORES", 2**17)


class Ledger(TorchDispatchMode):
    """Bytes of the storages that operators made and that are alive: the most at once, the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _real(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _real(tensor) and tensor.untyped_storage()._cdata not in inputs:
                size = tensor.untyped_storage().nbytes()
                self._alive[StorageWeakRef(tensor.untyped_storage())] = size
                self.largest = max(self.largest, size)
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _real(value: object) -> bool:
    return isinstance(value, Tensor)


def ledger_of_a_step(form: str, n: int) -> Ledger:
    """Forward, loss and backward on a bag of ``n`` tiles at 20x, n / 4 at 10x and n / 16 at 5x."""
    torch.manual_seed(0)
    if form == "hmil":
        hierarchy = {"a": "x", "b": "x", "c": "y"}
        config = make_config(model="hmil", hierarchy=hierarchy, drop_out=0.2)
        settings = {"scales": ["20x"], "parents": [0, 0, 1], "dim": DIM, "dropout": 0.2}
    else:
        config = make_config(cross_attention=form)
        settings = {"scales": SCALES, "dim": DIM, "dropout": 0.2, "cross_attention": form}
    model = build_model(config.model, {"feature_dim": WIDTH, "n_classes": 3, **settings}).train()
    objective = make_objective(model, config, [0, 1, 2])
    counts = dict(zip(SCALES, (n // 16, n // 4, n), strict=True))
    features = {name: torch.randn(counts[name], WIDTH) for name in model.scales}
    index = {
        "children_5x": torch.arange(n // 4).view(-1, 4),
        "children_10x": torch.arange(n).view(-1, 4),
        "ancestor_20x": torch.arange(n)[:, None] // 16,
    }
    with Ledger() as ledger:
        objective(model(features, index), 1, 0).backward()
    return ledger


@pytest.mark.parametrize("form", FORMS)
def test_a_step_never_holds_a_tensor_larger_than_its_features(form: str) -> None:
    """The scores of 4,000 by 1,000 tiles alone would be 16 MB; the features are 1 MB."""
    assert ledger_of_a_step(form, 4000).largest == 4000 * WIDTH * 4


@pytest.mark.parametrize("form", FORMS)
def test_twice_the_tiles_take_twice_the_memory(form: str) -> None:
    small, large = ledger_of_a_step(form, 2000).peak, ledger_of_a_step(form, 4000).peak
    assert 1.5 * small < large < 2.05 * small
    assert large < 12 * 4000 * WIDTH * 4


def test_standardising_holds_one_copy_of_the_features() -> None:
    features, standardize = torch.randn(4000, WIDTH), Standardize(WIDTH)
    with Ledger() as ledger:
        standardize(features)
    assert ledger.peak == features.nbytes + standardize.std.nbytes
