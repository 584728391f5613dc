"""A worker as a child process, and what it and its own children use of the machine (Linux)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cmamil_sdk.errors import DependencyMissing

_SAMPLE_S = 0.5
_LAST_LINES = 3
_CLOSE_WITHIN_S = 20


@dataclass(frozen=True)
class Run:
    """One run of a tool on one slide: processor time and memory are those of all its processes.

    ``peak_mb`` is the largest proportional set size seen, 10^6 bytes: pages that processes share count
    once. It is looked at twice a second.
    """

    tiles: int
    wall_s: float
    cpu_s: float
    peak_mb: float


class Child:
    """A worker that has loaded all it needs and waits; see ``workers/worker.py``.

    Raises:
        DependencyMissing: it ended before it was ready.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self._log_path = log
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise

    def run(self, slide: Path, batch: int, *, keep: Path | None = None) -> Run:
        """Run once; features and coordinates are written to ``keep`` (``.npz``), which is not timed.

        Raises:
            DependencyMissing: the tool failed.
        """
        pid = self._process.pid
        before_s = cpu_seconds(pid)
        with _MemoryWatch(pid) as memory:
            request = {
                "slide": str(slide),
                "batch": batch,
                "keep": None if keep is None else str(keep),
            }
            self._send(request)
            answer = self._answer()
            cpu_s = cpu_seconds(pid) - before_s
        return Run(answer["tiles"], answer["wall_s"], cpu_s, memory.peak_mb)

    def close(self) -> None:
        """End the process: by the end of its requests, else by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        """The child itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as problem:
            raise self._ended() from problem

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> DependencyMissing:
        lines = self._log_path.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
        return DependencyMissing(
            f"{' '.join(self._process.args[:3])} ended ({' / '.join(lines)}); see {self._log_path}, or "  # type: ignore[index,arg-type]
            "leave the tool out with --tools."
        )


class _MemoryWatch:
    """Looks at the memory of a process and its descendants until it is left."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_mb(self._pid))
            if self._stop.wait(_SAMPLE_S):
                return


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its living descendants, and those that were waited for."""
    ticks = os.sysconf("SC_CLK_TCK")
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), here without the first two.
    return sum(sum(int(field) for field in stat[11:15]) for stat in _family(pid).values()) / ticks


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and its descendants, 10^6 bytes."""
    return sum(_pss_bytes(member) for member in _family(pid)) / 1e6


def _family(pid: int) -> dict[int, list[str]]:
    """Fields of ``/proc/<pid>/stat`` after the name, of a process and all its descendants."""
    found: dict[int, list[str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(folder)
            if fields is not None:
                found[int(folder.name)] = fields
    family, grown = {pid} & found.keys(), True
    while grown:
        more = {child for child, stat in found.items() if int(stat[1]) in family} - family
        family |= more
        grown = bool(more)
    return {member: found[member] for member in family}


def _stat(folder: Path) -> list[str] | None:
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return None
    return text.rpartition(")")[2].split()


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


__all__ = ["Child", "Run", "cpu_seconds", "memory_mb"]
