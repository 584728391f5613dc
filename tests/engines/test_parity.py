"""Gates: what passes, what does not, and what is then used instead, with the reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cmamil_sdk.engines import gated
from cmamil_sdk.engines.gated import open_encoder, parity_table
from cmamil_sdk.engines.parity import (
    ENCODER_GATES,
    EncoderParity,
    EncoderReference,
    measure_encoder,
    refuse_encoder,
    stored_parity,
)
from cmamil_sdk.errors import EngineMissing, FieldInvalid, ParityFailed

from .graphs import RoughEngine


def features() -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(8, 20)) + 5).astype(np.float32)


def parity_of(found: np.ndarray, precision: str = "fp32") -> EncoderParity:
    tiles = np.zeros((8, 4, 4, 3), np.uint8)
    return measure_encoder(RoughEngine(found, precision), EncoderReference(tiles, features()))


def test_equal_features_pass():
    row = parity_of(features())
    assert row.cosine_worst == pytest.approx(1.0)
    assert row.centred_cosine_worst == pytest.approx(1.0)
    assert (row.passed, row.missed, row.tiles) == (True, "", 8)


def one_tile(change):
    def apply(array):
        array = array.copy()
        array[3] = change(array[3])
        return array

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda a: np.roll(a, 1, axis=1),
        lambda a: np.roll(a, 1, axis=0),
        lambda a: a * 2,
        lambda a: a + 1,
        one_tile(lambda row: row + np.random.default_rng(1).normal(0, 0.1, 20)),
        one_tile(lambda row: row * np.nan),
        one_tile(lambda row: row * 0),
        lambda a: a * np.nan,
        lambda a: a[:, :1] * np.ones((1, 20), np.float32),
    ],
    ids=["columns", "rows", "twice", "offset", "one", "one nan", "one zero", "nan", "constant"],
)
def test_features_that_differ_are_refused(change):
    row = parity_of(change(features()).astype(np.float32))
    assert not row.passed
    with pytest.raises(ParityFailed, match=r"does not reproduce its model: .* \(gate 0\.9"):
        refuse_encoder(row, "encoder.onnx")


def noisy(share: float) -> np.ndarray:
    """Features whose deviation from their mean has an error of about this share."""
    error = np.random.default_rng(1).normal(size=(8, 20))
    return (features() + share * error).astype(np.float32)


class ForeignEngine(RoughEngine):
    """Gives no row for each tile: all alike one number, or wider ones from call to call."""

    def __init__(self, shape: tuple[int, ...], wider: int) -> None:
        super().__init__(np.zeros(0), "fp32")
        self.shape, self.wider = shape, wider

    def infer(self, inputs):
        self.shape = tuple(axis + self.wider for axis in self.shape)
        return {"features": np.ones(self.shape, np.float32)}


@pytest.mark.parametrize("engine", [ForeignEngine((), 0), ForeignEngine((19, 20), 1)])
def test_a_graph_that_gives_no_features_is_refused_with_figures(engine):
    reference = EncoderReference(np.zeros((24, 4, 4, 3), np.uint8), np.ones((24, 20), np.float32))
    assert "cosine worst -1" in measure_encoder(engine, reference).missed


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_has_a_gate_of_its_own(precision):
    slightly = parity_of(noisy(0.05), precision)
    assert slightly.passed
    assert not parity_of(noisy(0.05)).passed
    badly = parity_of(noisy(0.2), precision)
    assert badly.cosine_worst > ENCODER_GATES[precision]["cosine_worst"], "plain cosine flatters"
    assert "centred cosine worst" in badly.missed
    assert "(gate 0.99)" in badly.missed


def test_a_figure_is_kept_for_its_engine_version_and_processor(tmp_path, monkeypatch):
    path = tmp_path / "parity.json"
    reference = EncoderReference(np.zeros((8, 4, 4, 3), np.uint8), features())

    def ask(found, precision="fp32"):
        return stored_parity(path, RoughEngine(found, precision), reference)

    first = ask(features())
    assert ask(noisy(1.0)) == first, "not measured again"
    assert ask(noisy(1.0), "bf16") != first
    monkeypatch.setattr("cmamil_sdk.engines.parity.processor_name", lambda: "another")
    assert ask(noisy(1.0)).cosine_worst < 0.99
    monkeypatch.setattr("cmamil_sdk.engines.parity.GATE_VERSION", 99)
    assert ask(noisy(2.0)).gate_version == 99
    assert len(json.loads(path.read_text())) == 4
    path.write_text("{")
    assert ask(features()).passed


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with bf16, whose engines are as exact as told; returns (open, loaded engines)."""
    monkeypatch.setattr(gated, "engine_precisions", lambda *_: ("fp32", "bf16"))

    def prepare(**found):
        loaded = []

        def load(_graph, *, precision="fp32", reason="auto: a test", **_options):
            if precision not in found:
                raise EngineMissing(f"no {precision}")
            engine = RoughEngine(found[precision], precision)
            engine.info = type(engine.info)("openvino", "cpu", precision, "1", reason)
            loaded.append(engine)
            return engine

        monkeypatch.setattr(gated, "load_engine", load)
        reference = EncoderReference(np.zeros((8, 4, 4, 3), np.uint8), features())

        def run(**options):
            measure = lambda engine: measure_encoder(engine, reference)  # noqa: E731
            return open_encoder(tmp_path / "encoder.onnx", measure, **options)

        return run, loaded

    return prepare


def test_auto_takes_bf16_if_it_passes(machine):
    run, loaded = machine(fp32=features(), bf16=noisy(0.05))
    found = run()
    assert found.engine.info.precision == found.parity.precision == "bf16"
    assert found.engine.info.reason == "auto: a test; bf16, which passes the gate"
    assert [engine.closed for engine in loaded] == [False], "fp32 is not loaded in vain"


def test_auto_takes_fp32_if_bf16_does_not_pass_and_says_why(machine):
    run, loaded = machine(fp32=features(), bf16=noisy(0.2))
    found = run()
    assert found.engine.info.precision == "fp32"
    assert found.parity.passed
    assert "fp32, bf16 misses the gate: " in found.engine.info.reason
    assert "centred cosine worst 0.9" in found.engine.info.reason
    assert [engine.closed for engine in loaded] == [True, False]


def test_auto_takes_fp32_where_another_engine_without_bf16_takes_the_graph(machine):
    run, _ = machine(fp32=features())
    assert run().engine.info.precision == "fp32"


def test_bf16_that_is_asked_for_and_fails_is_refused_with_the_figures(machine):
    run, loaded = machine(fp32=features(), bf16=noisy(0.2))
    with pytest.raises(ParityFailed, match=r"openvino-cpu-bf16 .* centred cosine worst 0\.9"):
        run(precision="bf16")
    assert [engine.closed for engine in loaded] == [True]
    accepted = run(precision="bf16", allow_failed=True)
    assert accepted.engine.info.reason == "auto: a test; bf16 was asked for"
    assert not accepted.parity.passed


def test_fp32_that_fails_is_refused(machine):
    run, _ = machine(fp32=noisy(0.05), bf16=noisy(1.0))
    with pytest.raises(ParityFailed, match="openvino-cpu-fp32"):
        run()


def test_a_machine_without_bf16_says_so(machine, monkeypatch):
    run, _ = machine(fp32=features())
    monkeypatch.setattr(gated, "engine_precisions", lambda *_: ("fp32",))
    assert run().engine.info.reason == (
        "auto: a test; fp32, this processor has neither AVX-512 BF16 nor AMX"
    )


def test_an_unknown_precision(tmp_path):
    with pytest.raises(FieldInvalid, match="--precision"):
        open_encoder(tmp_path / "encoder.onnx", parity_of, precision="fp8")


def test_the_table_has_a_row_for_everything(machine, tmp_path):
    machine(fp32=features())
    rows = {row.label: row for row in parity_table(tmp_path / "e.onnx", lambda _e: "measured")}
    assert {
        "onnxruntime-cpu-fp32",
        "onnxruntime-cpu-bf16",
        "openvino-cpu-fp32",
        "openvino-cpu-bf16",
        "openvino-cpu-int8",
    } <= rows.keys()
    for label, row in rows.items():
        precision = label.rpartition("-")[2]
        assert (row.parity is None) == (precision != "fp32")
        assert row.why == ("" if precision == "fp32" else f"no {precision}")
