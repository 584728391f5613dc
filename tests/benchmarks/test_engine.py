"""The bundle that the encoder's benchmark makes for itself, with graphs in the precisions that pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cmamil_sdk.benchmarks import encoder_case
from cmamil_sdk.benchmarks.cases import EAGER
from cmamil_sdk.benchmarks.encoder_case import FOLDED, EncoderCase, has_folded
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


def test_the_network_as_published_has_the_same_features(
    tmp_path: Path, shufflenet_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from cmamil_sdk.export.encoder import load_encoder
    from cmamil_sdk.export.reference import probe_tiles

    encoder = load_encoder("shufflenet_v2_x1_0", shufflenet_weights).info
    monkeypatch.setattr(
        encoder_case, "read_manifest", lambda _root: (SimpleNamespace(encoder=encoder), b"")
    )
    monkeypatch.setattr(EncoderCase, "_tiles", lambda _case: probe_tiles(224, count=2))
    threads = torch.get_num_threads()
    found = []
    for network in (EAGER, FOLDED):
        case = EncoderCase(
            str(tmp_path), str(shufflenet_weights), network, "cpu", "fp32", 2, 1, threads
        )
        opened = case.open()
        assert opened.label == f"{network}-cpu-fp32"
        found.append(opened.call())
    eager, folded = found
    assert isinstance(eager, np.ndarray) and isinstance(folded, np.ndarray)
    np.testing.assert_allclose(folded, eager, atol=1e-4 * np.abs(eager).max())
    assert (folded != eager).any(), "they are two networks"
    assert has_folded(encoder)
    assert not has_folded(encoder.model_copy(update={"id": "efficientnet_lite0"}))


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
