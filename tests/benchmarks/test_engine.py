"""The bundle that the encoder's benchmark makes for itself, with graphs in the precisions that pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.benchmarks.engine import seeded_bundle
from cmamil_sdk.benchmarks.workshop import Workshop
from cmamil_sdk.errors import ParityFailed


def test_without_precisions_that_fail_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bundle(_self: Workshop, scales: str, precisions: tuple[str, ...] = ()) -> Path:
        if precisions:
            raise ParityFailed("In int8 the bundle is not close enough.")
        return tmp_path / scales

    monkeypatch.setattr(Workshop, "bundle", bundle)
    path, failed = seeded_bundle(Workshop(tmp_path))
    assert path == tmp_path / "5x,10x,20x"
    assert failed == {"fp16, int8": "In int8 the bundle is not close enough."}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_it_has_every_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmamil_sdk.bundle.verify import read_manifest

    monkeypatch.setenv("CMAMIL_CACHE", str(tmp_path / "cache"))
    path, failed = seeded_bundle(Workshop(tmp_path))
    assert not failed
    judged = {report.precision: report for report in read_manifest(path)[0].precisions}
    assert {"fp16", "int8"} <= set(judged)
    assert judged["int8"].calibration_tiles > 50
    assert not any(report.missed for report in judged.values())
