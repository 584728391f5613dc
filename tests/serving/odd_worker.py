"""A worker that misbehaves on slides and graphs of certain names; tests start it instead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cmamil_sdk.serving import worker
from cmamil_sdk.serving.messages import AddModel, DropModel, EncodeTiles, EncodeTogether

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
    """Misbehave if the task, or any slide of it, asks for it."""
    if isinstance(task, AddModel) and _name(task).startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    for part in task.tasks if isinstance(task, EncodeTogether) else (task,):
        if isinstance(part, EncodeTiles) and (answer := _misbehave(part)):
            return answer
    return _honest_answer(self, task)  # type: ignore[arg-type]


def _misbehave(task: EncodeTiles) -> object:
    name = task.slide.name
    if name.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang"):
        time.sleep(1000)
    if name.startswith("slow"):
        time.sleep(0.4)
    return _Evil(task.slide.root) if name.startswith("evil") else None


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
