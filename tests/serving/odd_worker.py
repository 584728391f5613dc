"""A worker that misbehaves on slides of certain names; started in place of the real one by tests."""

from __future__ import annotations

import os
import signal
import time

from cmamil_sdk.serving import worker
from cmamil_sdk.serving.messages import EncodeTiles, EncodeTogether

_honest_answer = worker.Worker.answer


class _Evil:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (f"{self.folder}/made-by-a-worker",)


def _answer(self: worker.Worker, task: object) -> object:
    """Misbehave if any slide of the task asks for it."""
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
    name = task.slide.name  # type: ignore[attr-defined]
    if name.startswith("bug"):
        raise RuntimeError("nobody foresaw this")
    if name.startswith("memory"):
        raise MemoryError
    return _honest_do(self, task)  # type: ignore[arg-type]


worker.Worker._do = _do  # type: ignore[assignment,method-assign]
worker.Worker.answer = _answer  # type: ignore[assignment]
worker.main()
