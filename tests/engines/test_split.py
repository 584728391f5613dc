"""Aggregators in bf16: close to fp32, the same bits for everyone, the same refusals as onnxruntime."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")

from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.graphs import split_graphs
from cmamil_sdk.engines.openvino import precisions
from cmamil_sdk.engines.parity import AGGREGATOR_GATES
from cmamil_sdk.engines.split import SplitEngine
from cmamil_sdk.errors import BundleCorrupt, BundleUnsupported, EngineMissing, FieldInvalid

from .bags import WIDTH, draw_bag, save_aggregator

HAS_BF16 = "bf16" in precisions()
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16 arithmetic")

Bag = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_aggregator(tmp_path_factory.mktemp("split") / "aggregator.onnx")


@pytest.fixture(scope="module")
def exact(graph: Path) -> Iterator[Engine]:
    engine = load_engine(graph, engine="onnxruntime", device="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(graph: Path) -> Iterator[SplitEngine]:
    engine = in_bf16(graph, threads=2)
    yield engine
    engine.close()


def in_bf16(graph: Path, **options: Any) -> SplitEngine:
    engine = load_engine(graph, engine="openvino", precision="bf16", **options)
    assert isinstance(engine, SplitEngine)
    return engine


def same(a: Bag, b: Bag) -> bool:
    return all(np.array_equal(value, b[name], equal_nan=True) for name, value in a.items())


@needs_bf16
@pytest.mark.parametrize("n", [1, 63, 64, 65, 511])
def test_few_tiles_are_multiplied_in_fp32(engine: SplitEngine, exact: Engine, n: int) -> None:
    bag = draw_bag(n, m=n // 4 + 1)
    found, expected = engine.infer(bag), exact.infer(bag)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    assert not same(engine.infer_rounded(bag), found)


@needs_bf16
@pytest.mark.parametrize("n", [512, 513, 640, 1100])
def test_many_are_close_to_fp32(engine: SplitEngine, exact: Engine, n: int) -> None:
    bag = draw_bag(n, m=n // 4 + 1)
    expected, found = exact.infer(bag), engine.infer(bag)
    assert found.keys() == expected.keys()
    for name, most in AGGREGATOR_GATES["bf16"].items():
        output = name.removeprefix("aggregator_")
        assert found[output].shape == expected[output].shape
        assert np.abs(found[output] - expected[output]).max() <= most
    assert not same(found, expected), "it was computed in fp32"


@needs_bf16
def test_it_says_what_is_in_use(graph: Path) -> None:
    info = in_bf16(graph, reason="a test").info
    assert (info.label, info.reason) == ("openvino-cpu-bf16", "a test")
    assert "onnxruntime" in info.version
    assert not info.takes_device_arrays


@needs_bf16
def test_the_same_bits_whoever_asks(graph: Path, engine: SplitEngine) -> None:
    sizes = (700, 5, 513, 64, 1300)
    alone = in_bf16(graph, threads=1)
    first = {n: alone.infer(draw_bag(n)) for n in sizes}
    with ThreadPoolExecutor(4) as pool:
        calls = [(n, pool.submit(engine.infer, draw_bag(n))) for n in sizes * 3]
        assert all(same(first[n], call.result()) for n, call in calls)
    assert all(same(first[n], alone.infer(draw_bag(n))) for n in reversed(sizes))


@needs_bf16
def test_arrays_lie_as_they_will(engine: SplitEngine) -> None:
    bag = draw_bag(600)
    expected = engine.infer(bag)
    fixed = {name: array.copy() for name, array in bag.items()}
    for array in fixed.values():
        array.flags.writeable = False
    assert same(engine.infer(fixed), expected)
    assert same(engine.infer({n: np.asfortranarray(a) for n, a in bag.items()}), expected)
    assert all(np.array_equal(bag[name], array) for name, array in fixed.items())


@needs_bf16
def test_copies_are_let_go_of(engine: SplitEngine) -> None:
    """Features that may not be written to, as in a message, are copied by blocks."""
    bag = draw_bag(20_000)
    bag["fine"].flags.writeable = False
    engine.infer(bag)
    tracemalloc.start()
    engine.infer(bag)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * bag["fine"].nbytes


def changed(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Bag], Bag]:
    return lambda bag: {**bag, name: change(bag[name])}


BAD: dict[str, Callable[[Bag], Bag]] = {
    "width": changed("fine", lambda x: x[:, :-1].copy()),
    "type": changed("fine", lambda x: x.astype(np.float64)),
    "type of an index": changed("ancestor", lambda x: x.astype(np.int32)),
    "no tiles": lambda bag: {name: array[:0] for name, array in bag.items()},
    "no coarse tiles": changed("coarse", lambda x: x[:0]),
    "rank": changed("coarse", lambda x: x[None]),
    "unequal lengths": changed("ancestor", lambda x: x[:-1]),
    "an index beyond the end": changed("ancestor", lambda x: x + 9),
    "an index before the start": changed("ancestor", lambda x: x - 100),
    "missing": lambda bag: {"fine": bag["fine"]},
    "unknown": lambda bag: {**bag, "other": bag["fine"]},
    "no array": changed("fine", lambda x: object()),
}


@needs_bf16
@pytest.mark.parametrize("what", BAD)
def test_bad_inputs_are_refused_as_by_onnxruntime(
    engine: SplitEngine, exact: Engine, what: str
) -> None:
    bad = BAD[what](draw_bag())
    with pytest.raises(FieldInvalid) as expected:
        exact.infer(bad)
    with pytest.raises(FieldInvalid) as found:
        engine.infer(bad)
    if not what.startswith("an index"):  # whose message names a node
        assert str(found.value) == str(expected.value)
    assert np.isfinite(engine.infer(draw_bag())["logits"]).all()


@needs_bf16
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", ["fine", "coarse"])
def test_what_is_not_finite_is_as_in_fp32(
    engine: SplitEngine, exact: Engine, name: str, value: float
) -> None:
    bag = draw_bag()
    bag[name][3, 5] = value
    bag["ancestor"][7] = 3
    expected = exact.infer(bag)
    for found in (engine.infer(bag), engine.infer_rounded(bag)):
        for output, wanted in expected.items():
            np.testing.assert_array_equal(np.isfinite(found[output]), np.isfinite(wanted), output)


@needs_bf16
def test_a_graph_without_parts_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    narrow = save_aggregator(tmp_path / "narrow.onnx", width=WIDTH - 1)
    with pytest.raises(BundleUnsupported, match="has 3 inputs"):
        in_bf16(narrow)


@needs_bf16
def test_what_runs_is_what_was_hashed(graph: Path, tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in (graph, *split_graphs(graph))]
    for copy in copies:
        copy.write_bytes((graph.parent / copy.name).read_bytes())
    hashes = {copy.name: hashlib.sha256(copy.read_bytes()).hexdigest() for copy in copies}
    found = in_bf16(copies[0], hashes=hashes).infer(draw_bag())
    assert np.isfinite(found["logits"]).all()
    for copy in copies[1:]:
        whole = copy.read_bytes()
        copy.write_bytes(whole[:-1] + b"?")
        with pytest.raises(BundleCorrupt, match=copy.name):
            in_bf16(copies[0], hashes=hashes)
        copy.write_bytes(whole)
    unlisted = {name: sha for name, sha in hashes.items() if name != copies[1].name}
    with pytest.raises(BundleUnsupported, match="has 3 inputs"):
        in_bf16(copies[0], hashes=unlisted)


@needs_bf16
def test_parts_that_cannot_be_run(graph: Path, tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in (graph, *split_graphs(graph))]
    for copy in copies:
        copy.write_bytes((graph.parent / copy.name).read_bytes())
    _, rest, products = copies
    whole = products.read_bytes()
    products.write_bytes(b"no graph")
    with pytest.raises(BundleUnsupported, match=r"products\.onnx cannot be run"):
        in_bf16(graph=copies[0])
    products.write_bytes(rest.read_bytes())
    with pytest.raises(BundleUnsupported, match="takes no product of"):
        in_bf16(graph=copies[0])
    products.write_bytes(whole)
    rest.write_bytes(graph.read_bytes())
    with pytest.raises(BundleUnsupported, match="is a graph in fp32, not in bf16"):
        in_bf16(graph=copies[0])


def test_a_part_is_no_aggregator(graph: Path) -> None:
    rest, _ = split_graphs(graph)
    with pytest.raises(BundleUnsupported, match="is a graph in bf16, not in fp32"):
        load_engine(rest, engine="onnxruntime", device="cpu")


@needs_bf16
def test_it_can_be_warmed_up(engine: SplitEngine) -> None:
    engine.warm_up(600)
    assert engine.memory_bytes() is None


@pytest.mark.skipif(HAS_BF16, reason="this processor has bf16 arithmetic")
def test_a_processor_without_it(graph: Path) -> None:
    with pytest.raises(EngineMissing, match="no bf16 arithmetic"):
        in_bf16(graph)


def test_onnxruntime_alone_has_none(graph: Path) -> None:
    with pytest.raises(EngineMissing, match="onnxruntime has no bf16"):
        load_engine(graph, engine="onnxruntime", precision="bf16")
