"""An encoder's process on a double of a GPU, which dies as it is told; started for the real one by tests.

In the folder ``CMAMIL_TEST_FOLDER`` the file ``dies`` holds ``ROW TIMES HOW``: at a tile of the finest
scale, how many times yet, and by a signal, ``raise`` or ``hang``. Each process writes its id to ``pids``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from cmamil_sdk.engines import Engine, onnxruntime
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.features import encode, encoder_child
from tests.device_double import OnnxSession, put_in_place
from tests.features.conftest import DeviceEngine

_FOLDER = Path(os.environ["CMAMIL_TEST_FOLDER"])
_read = encode.read_device_tiles


def _load(graph: Path, *, engine: str, device: str, **_: Any) -> Engine:
    if engine == "onnxruntime":
        return OnnxRuntimeEngine(graph, device=device, threads=1, reason="asked for")
    return DeviceEngine()


def _read_or_die(reader: Any, batch: Any) -> Any:
    dies = _FOLDER / "dies"
    row, times, how = dies.read_text().split() if dies.is_file() else ("", "0", "")
    if int(times) and int(row) in batch.plan_row[batch.tile_scale == batch.tile_scale.max()]:
        dies.write_text(f"{row} {int(times) - 1} {how}")
        if how == "raise":
            raise RuntimeError("nobody foresaw this")
        if how == "hang":
            time.sleep(1000)
        os.kill(os.getpid(), signal.Signals[how])
    return _read(reader, batch)


with (_FOLDER / "pids").open("a") as pids:
    pids.write(f"{os.getpid()}\n")
put_in_place(pytest.MonkeyPatch())
encode.read_device_tiles = _read_or_die
onnxruntime._session = lambda graph, *_: OnnxSession(graph)  # type: ignore[assignment]
encoder_child.load_engine = _load  # type: ignore[assignment]
encoder_child.main()
