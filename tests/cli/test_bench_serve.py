"""``cmamil bench serve``: what is printed; once, really (long)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.benchmarks import serve
from cmamil_sdk.benchmarks.serve import ServeBench
from cmamil_sdk.benchmarks.windows import Window

WINDOWS = [Window((0.5,) * 40, wall_s=20.0, cpu_s=0.1, tiles=4000)] * 3
COMPARED = {"ratio": 1.02, "low": 1.0, "high": 1.04, "pairs": 15, "local_s": 0.5, "served_s": 0.51}


def document(_bench: ServeBench, **_options: Any) -> dict[str, Any]:
    closed = serve._row("closed", "cold", WINDOWS, concurrency=4, health=[0.004] * 200)
    closed = {**closed, "lag_n": 500, "lag_p99_s": 0.003}
    opened = serve._row("open", "cold", WINDOWS, refused=3)
    many = {"slides": 32, "callers": 8, "local_per_min": 120.0, "served_per_min": 121.0}
    return {
        "settings": {"slides": 32},
        "tiles_per_slide": 99.6,
        "rows": [closed, {**opened, "rate_per_min": 60.0, "rate_percent": 50}],
        "beside_local": {"slide": COMPARED, "per_minute": {**COMPARED, **many}},
        "environment": {
            **{"engine": "openvino-cpu-bf16", "workers": 2, "cpu": "a processor", "cores": 2},
            **{"time": "now", "load_average": {"before": 0.1, "after": 2.0}},
        },
    }


def test_it_prints_rows_ratios_and_targets(
    cmamil: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "measure_serve", document)
    answer = cmamil("bench", "serve", "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "32 slides of 100 tiles; openvino-cpu-bf16, 2 workers" in answer.out
    lines = [line.split() for line in answer.out.splitlines()]
    row = ["closed", "cold", "4", "120", "1.00,", "1.00", "stable", "120", "0"]
    assert [*row, "0.500", "0.500", "0.500", "4.0", "3.0"] in lines
    assert "1.020 (95 % 1.000 to 1.040, 15 pairs) times as long" in answer.out
    assert "121 a minute served, 120 locally" in answer.out
    assert (tmp_path / "serve.csv").is_file() and (tmp_path / "serve.png").is_file()


@pytest.mark.long
def test_a_real_server(cmamil: Callable[..., Any], tiny_bundle: Path, tmp_path: Path) -> None:
    answer = cmamil(
        *("bench", "serve", "--bundle", tiny_bundle, "--slides", "8", "--concurrency", "1,8"),
        *("--rates", "50", "--duration", "1", "--pairs", "5", "--out", tmp_path, "--json"),
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert all(row["n"] >= 60 for row in found["rows"])
    assert 0.2 < found["beside_local"]["slide"]["ratio"] < 5
