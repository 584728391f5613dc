"""The training benchmark: what is stepped, counted and refused; never how long it took."""

from __future__ import annotations

import statistics
import sys
from typing import Any

import pytest
import torch

from cmamil_sdk.benchmarks import training
from cmamil_sdk.benchmarks.training import TrainingBench, measure_training
from cmamil_sdk.benchmarks.training_memory import measure_step, step_memory
from cmamil_sdk.benchmarks.training_steps import FORMS, draw_bag, our_step, published_step
from cmamil_sdk.errors import FieldInvalid, MemoryTooSmall


def test_a_bag_is_nested_four_by_four() -> None:
    bag = draw_bag("nested", 64, 8, seed=5)
    assert {name: x.shape for name, x in bag.features.items()} == {
        "5x": (4, 8),
        "10x": (16, 8),
        "20x": (64, 8),
    }
    assert bag.index["children_10x"].tolist() == torch.arange(64).view(16, 4).tolist()
    assert bag.index["ancestor_20x"][:, 0].tolist() == [n // 16 for n in range(64)]
    assert bag.label == 2
    assert torch.equal(
        draw_bag("hmil", 64, 8, seed=5).features["20x"], draw_bag("hmil", 64, 8, 5).features["20x"]
    )
    assert list(draw_bag("hmil", 64, 8, seed=5).features) == ["20x"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [our_step, published_step])
def test_a_step_trains(form: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[torch.Tensor]] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        parameters = self.param_groups[0]["params"]
        before = [p.detach().clone() for p in parameters]
        assert any(p.grad is not None and bool(p.grad.any()) for p in parameters)
        step(self)
        taken.append([b - p.detach() for b, p in zip(before, parameters, strict=True)])

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    torch.manual_seed(0)
    make(form, 8)(draw_bag(form, 64, 8, seed=1))
    (changes,) = taken
    assert sum(bool(change.any()) for change in changes) > len(changes) / 2


def test_every_form_has_its_pairs_and_warm_up_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def row(form: str, tiles: int, width: int, who: str) -> dict[str, Any]:
        return {"form": form, "who": who, "finest_tiles": tiles, "feature_dim": width}

    monkeypatch.setattr(training, "step_memory", row)
    monkeypatch.setattr(training, "LARGE_TILES", 320)
    taken: list[str] = []
    for name in ("our_step", "published_step"):
        monkeypatch.setattr(
            training,
            name,
            lambda form, _width, name=name: lambda _bag: taken.append(f"{name} {form}"),
        )
    bench = TrainingBench(
        forms=("nested", "none", "hmil"), tiles=4, feature_dim=8, pairs=6, threads=(1,), large=True
    )
    document = measure_training(bench)
    assert [(r["form"], r["threads"], r["pairs"]) for r in document["epochs"]] == [
        ("nested", 1, 6),
        ("none", 1, 6),
        ("hmil", 1, 6),
    ]
    assert len(taken) == 2 * 3 * (6 + 1)
    assert taken[:4] == [
        "our_step nested",
        "published_step nested",
        "our_step none",
        "published_step none",
    ]
    first = document["epochs"][0]
    assert first["ours_s"] == 1000 * statistics.median(first["ours_steps_s"])
    assert first["published_s"] == 1000 * statistics.median(first["published_steps_s"])
    memory = [(r["form"], r["who"], r["finest_tiles"]) for r in document["memory"]]
    assert memory == [
        *((form, "ours", 64) for form in bench.forms),
        ("global", "published", 64),
        ("hmil", "published", 64),
    ]
    assert [r["finest_tiles"] for r in document["memory_large"]] == [320] * 3


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    row = step_memory("none", 4096, 256, "ours")
    assert row["bag_mb"] == pytest.approx(
        (4096 + 1024 + 256) * 256 * 4 / 1e6 + (256 * 4 + 1024 * 4 + 4096) * 8 / 1e6
    )
    assert row["growth_mb"] == pytest.approx(row["peak_mb"] - row["before_mb"])
    assert row["growth_mb"] > 4096 * 256 * 4 / 1e6, "the standardised features alone"
    here = measure_step("none", 64, 8, "ours")
    assert set(here) == set(row)


def test_a_killed_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MemoryTooSmall, match="64000 tiles ended with status 1"):
        step_memory("global", 64_000, 512, "ours")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forms": ("dense",)}, "--forms"),
        ({"forms": ()}, "--forms"),
        ({"tiles": 0}, "--tiles 0"),
        ({"feature_dim": 0}, "--feature-dim 0"),
        ({"pairs": 4}, "at least 5"),
        ({"threads": (0,)}, "--threads"),
        ({"threads": (1, 4096)}, "cores"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(FieldInvalid, match=message):
        TrainingBench(**settings)
