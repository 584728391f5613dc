"""A worker that misbehaves on slides and graphs of certain names; tests start it instead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cmamil_sdk.serving import worker
from cmamil_sdk.serving.messages import AddModel, DropModel, EncodeTiles

_honest_answer = worker.Worker.answer


class _Evil:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (f"{self.folder}/made-by-a-worker",)


def _name(task: object) -> str:
    if isinstance(task, AddModel):
        return Path(task.spec.encoder.graph).name
    return "" if isinstance(task, DropModel) else task.slide.name  # type: ignore[attr-defined]


def _answer(self: worker.Worker, task: object) -> object:
    name = _name(task)
    if isinstance(task, AddModel) and name.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(task, EncodeTiles):
        if name.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("hang"):
            time.sleep(1000)
        if name.startswith("slow"):
            time.sleep(0.4)
        if name.startswith("evil"):
            return _Evil(task.slide.root)  # type: ignore[attr-defined]
    return _honest_answer(self, task)  # type: ignore[arg-type]


_honest_do = worker.Worker._do


def _do(self: worker.Worker, task: object) -> object:
    name = _name(task)
    if name.startswith("bug"):
        raise RuntimeError("nobody foresaw this")
    if name.startswith("memory"):
        raise MemoryError
    return _honest_do(self, task)  # type: ignore[arg-type]


worker.Worker._do = _do  # type: ignore[assignment,method-assign]
worker.Worker.answer = _answer  # type: ignore[assignment]
worker.main()
