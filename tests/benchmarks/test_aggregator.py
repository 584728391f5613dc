"""Which engine's rows the aggregator's targets are judged on."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from cmamil_sdk.benchmarks.aggregator import judged

ROUGH, EXACT = "openvino-cpu-bf16", "onnxruntime-cpu-fp32"


def rows(label: str, ratios: dict[int, float], missed: dict[int, str]) -> list[dict[str, object]]:
    return [
        {"label": label, "form": "nested", "tiles": n, "ratio": r, "missed": missed.get(n, "")}
        for n, r in ratios.items()
    ]


@pytest.mark.parametrize(
    ("missed", "label", "values"),
    [
        ({}, ROUGH, [3.0, 2.5]),
        ({4_000: "logits 0.5 (gate 0.01)"}, EXACT, [1.2, 1.6]),
        ({64_000: "logits 0.5 (gate 0.01)"}, EXACT, [1.2, 1.6]),
    ],
)
def test_targets_are_judged_on_one_engine(
    missed: dict[int, str], label: str, values: list[float]
) -> None:
    """Never on one that misses its gate, on bags of whatever size."""
    document = {
        "rows": [
            *rows("torch-eager-cpu-fp32", {4_000: 1.0}, {}),
            *rows(EXACT, {4_000: 1.2, 64_000: 1.6}, {}),
            *rows(ROUGH, {1_000: 2.0, 4_000: 3.0, 64_000: 2.5}, missed),
        ]
    }
    found = judged(document)
    assert [target["label"] for target in found] == [label] * 2
    assert [target["value"] for target in found] == values
