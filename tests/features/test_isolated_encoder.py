"""Reading and encoding on a double of a GPU in a process of its own, which may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import DecoderCrashed, EngineMissing, UnexpectedError
from cmamil_sdk.features import encode, encoder_process
from cmamil_sdk.features.extract import Cancelled, extract_bag
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.features.isolated_encoder import (
    IsolatedEncoder,
    encoder_loader,
    load_isolated,
)
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.slides.cucim_cuda import why_no_cuda_decoding
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.tiling.plan import TilePlan

from .conftest import DeviceEngine, MeanEngine
from .test_on_device import EVERYWHERE, GPU_ENGINES, assert_same, plan_of

pytestmark = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")

REAL_COMMAND = encoder_process.COMMAND
ODD_CHILD = Path(__file__).with_name("odd_encoder_child.py")
ENCODER = EncoderInfo(
    id="mean", weights_sha256="0" * 64, dim=48, tile_px=224, mean=(0, 0, 0), std=(1, 1, 1)
)
DIM = MeanEngine.dim


@dataclass(frozen=True)
class Odd:
    """An encoder whose processes die as they are told."""

    encoder: IsolatedEncoder
    folder: Path

    def dies(self, row: int, times: int, how: str = "SIGSEGV") -> None:
        (self.folder / "dies").write_text(f"{row} {times} {how}")

    def started(self) -> list[int]:
        """The processes that were started, by their ids."""
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAMIL_TEST_FOLDER", str(folder))
        patch.setattr(encoder_process, "COMMAND", (sys.executable, "-P", str(ODD_CHILD)))
        # So that a small slide has several batches.
        patch.setattr(encode, "DEVICE_CALL_TILES", 40)
        encoder = IsolatedEncoder(Path("mean.onnx"), engine="auto", device="cuda:0")
        yield Odd(encoder, folder)
        encoder.close()


@pytest.fixture
def odd(shared: Odd) -> Odd:
    (shared.folder / "dies").unlink(missing_ok=True)
    return shared


@pytest.fixture(scope="module")
def plan(textured_slide: Path) -> TilePlan:
    """Nine batches of a block each: 21 tiles, of them 16 of the finest scale."""
    return plan_of(textured_slide)


@pytest.fixture(scope="module")
def expected(plan: TilePlan):
    return extract_bag(plan, MeanEngine(), DIM).finish()


def test_a_bag_is_the_cpus_to_the_bit_by_one_process(odd, plan, expected) -> None:
    before = odd.started()
    seen: list[tuple[int, int]] = []
    builder = extract_bag(plan, odd.encoder, DIM, on_progress=lambda *done: seen.append(done))
    assert_same(builder.finish(), expected)
    assert odd.encoder.info == DeviceEngine.info
    assert odd.encoder.pids == odd.started()[-1:]
    assert odd.started() == before, "it was there"
    assert seen == [(21 * n, 189) for n in range(1, 10)]
    assert builder.workers == 1
    assert min(builder.stage_seconds().values()) > 0
    assert "; decoded on cuda:0, where " in builder.reader_reason


def test_the_graph_is_run_in_the_process(odd) -> None:
    with pytest.raises(UnexpectedError, match="AssertionError: the tiles left the device"):
        odd.encoder.infer({"tiles": np.zeros((1, 224, 224, 3), np.uint8)})


def test_the_process_is_warmed_and_tells_its_memory(odd) -> None:
    odd.encoder.warm_up(3)
    assert odd.encoder.memory_bytes() == 48 * 3


@pytest.mark.parametrize("row", [0, 77])
def test_a_crash_costs_one_retry(odd, plan, expected, row) -> None:
    before = len(odd.started()) + (not odd.encoder.pids)  # without one, one is started
    odd.dies(row, 1)
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)
    assert len(odd.started()) == before + 1
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)
    assert len(odd.started()) == before + 1, "the new one stays"


def test_two_crashes_end_the_slide_alone(odd, plan, expected) -> None:
    odd.dies(77, 2)
    place = plan.scales[-1].coords[77] // 896 * 896  # the block's corner
    words = (
        rf"textured\.svs: decoding and encoding 21 tiles from \({place[0]}, {place[1]}\) on cuda:0 ended "
        r"two processes \(the first was ended by SIGSEGV, the second was ended by SIGSEGV\); leave "
    )
    with pytest.raises(DecoderCrashed, match=words):
        extract_bag(plan, odd.encoder, DIM)
    assert (odd.folder / "dies").read_text().split()[1] == "0"
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)


def test_an_error_is_told_and_its_process_is_used_no_more(odd, plan, expected) -> None:
    """What goes wrong in CUDA once would be the answer for the next slides as well."""
    odd.dies(77, 1, "raise")
    before = len(odd.started())
    with pytest.raises(UnexpectedError, match=r"textured\.svs: RuntimeError: nobody foresaw this"):
        extract_bag(plan, odd.encoder, DIM)
    assert odd.encoder.pids == []
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)
    assert len(odd.started()) == before + 1


def test_a_process_that_died_unused_is_no_slides_first_death(odd, plan, expected) -> None:
    extract_bag(plan, odd.encoder, DIM, workers=2)
    pids = odd.encoder.pids
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    odd.dies(0, 1)
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)
    assert not set(odd.encoder.pids) & set(pids)


def test_a_silent_process_is_taken_for_dead(odd, plan, expected, monkeypatch) -> None:
    monkeypatch.setattr(encoder_process, "SILENT_S", 1.0)
    odd.dies(77, 1, "hang")
    assert_same(extract_bag(plan, odd.encoder, DIM).finish(), expected)


def test_ctrl_c_waits_for_no_silent_process(odd, plan) -> None:
    odd.dies(0, 1, "hang")
    looks = iter(range(10))

    def is_set() -> bool:
        if next(looks) == 3:
            raise KeyboardInterrupt
        return False

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        extract_bag(plan, odd.encoder, DIM, cancel=SimpleNamespace(is_set=is_set))
    assert time.monotonic() - started < 60, "half of the time that a process may be silent"
    assert odd.encoder.pids == []


def test_a_cancelled_slide_ends_its_process(odd, plan, expected) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        extract_bag(plan, odd.encoder, DIM, cancel=cancel, on_progress=lambda *_: cancel.set())
    assert odd.encoder.pids == []
    assert_same(extract_bag(plan, odd.encoder, DIM, workers=2).finish(), expected)
    assert len(odd.encoder.pids) == 2


def test_a_feature_file_is_complete_and_kept(odd, textured_slide: Path, tmp_path: Path) -> None:
    def extract():
        return extract_slide(
            textured_slide,
            tmp_path,
            recipe=EVERYWHERE,
            encoder=ENCODER,
            engine=odd.encoder,
            reader="cucim",
        )

    done = extract()
    bag, provenance = read_feature_file(done.path)
    assert sum(bag.counts().values()) == 189
    assert provenance.engine == "mean-cuda-fp32"
    assert provenance.reader.startswith("cucim: JPEG tiles by cuCIM")
    assert "; decoded on cuda:0, where " in provenance.reader
    odd.dies(0, 2)
    assert extract().resumed, "no process is asked for what is there"


def test_it_ends_with_its_parent_even_while_it_decodes(
    odd, textured_slide: Path, tmp_path: Path
) -> None:
    code = f"""
import os, sys, threading
from pathlib import Path
from cmamil_sdk.features import encoder_process
from cmamil_sdk.features.extract import extract_bag
from cmamil_sdk.features.isolated_encoder import IsolatedEncoder
from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
encoder_process.COMMAND = (sys.executable, "-P", {str(ODD_CHILD)!r})
encoder = IsolatedEncoder(Path("mean.onnx"), engine="auto", device="cuda:0")
with open_slide(Path({str(textured_slide)!r}), reader="cucim") as reader:
    tissue = TissueRecipe(method="none")
    plan = make_plan(reader, TilingRecipe(scales=parse_scales("20x"), tissue=tissue))
threading.Thread(target=extract_bag, args=(plan, encoder, 48), daemon=True).start()
while (Path(os.environ["CMAMIL_TEST_FOLDER"]) / "dies").read_text().split()[1] != "0":
    pass
os.kill(os.getpid(), 9)
"""
    (tmp_path / "dies").write_text("0 1 hang")
    environment = {**os.environ, "CMAMIL_TEST_FOLDER": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=False)
    (pid,) = (tmp_path / "pids").read_text().split()
    for _ in range(500):
        if not is_running(int(pid)):
            return
        threading.Event().wait(0.02)
    pytest.fail(f"{pid} is still there")


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_only_where_cucim_decodes_on_a_gpu(tiny_bundle: Path) -> None:
    assert encoder_loader("cucim") is load_isolated
    for reader in ("auto", "direct", "openslide", "image", "plugin"):
        assert encoder_loader(reader) is None
    engine = load_isolated(tiny_bundle / "encoder.onnx", engine="onnxruntime", device="cpu")
    assert not isinstance(engine, IsolatedEncoder)
    engine.close()


@pytest.mark.skipif(why_no_cuda_decoding() is None, reason="slides can be decoded on a GPU here")
def test_what_the_process_lacks_is_said(tiny_bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(encoder_process, "COMMAND", REAL_COMMAND)
    with pytest.raises(EngineMissing, match="CUDA"):
        load_isolated(tiny_bundle / "encoder.onnx", engine="onnxruntime", device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda_decoding() is not None, reason=str(why_no_cuda_decoding()))
@pytest.mark.parametrize("name", GPU_ENGINES)
def test_on_a_gpu_a_killed_process_changes_nothing(
    textured_slide: Path, tiny_bundle: Path, name: str, record_property, monkeypatch
) -> None:
    """The same bag as in the caller's process, whether or not somebody kills the encoder's."""
    monkeypatch.setattr(encoder_process, "COMMAND", REAL_COMMAND)
    graph, plan = tiny_bundle / "encoder.onnx", plan_of(textured_slide)
    try:
        isolated = load_isolated(graph, engine=name, device="cuda:0")
    except EngineMissing as problem:
        pytest.skip(str(problem))
    assert isinstance(isolated, IsolatedEncoder)
    bag = extract_bag(plan, isolated, 1280).finish()
    (first,) = isolated.pids

    monkeypatch.setattr(encode, "DEVICE_CALL_TILES", 40)  # so that some of the slide is left

    def kill(done: int, _total: int) -> None:
        if done == 21:
            os.kill(first, signal.SIGKILL)

    again = extract_bag(plan, isolated, 1280, on_progress=kill).finish()
    assert isolated.pids != [first], "it was not killed"
    isolated.close()
    engine = load_engine(graph, engine=name, device="cuda:0")
    expected = extract_bag(plan, engine, 1280).finish()
    engine.close()
    assert_same(bag, expected, 1e-3)
    assert_same(again, expected, 1e-3)
