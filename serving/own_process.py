"""A server in a process of its own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmamil_sdk.errors import ServerUnreachable

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 40.0


@contextlib.contextmanager
def running_server(
    bundle: Path, slides_roots: Sequence[Path], options: Sequence[str] = ()
) -> Iterator[str]:
    """Start ``cmamil serve`` on a free loopback port; yields ``host:port`` and stops it afterwards.

    ``options`` are further ones of ``cmamil serve``.

    Raises:
        ServerUnreachable: it did not come up.
    """
    command = [sys.executable, "-m", "cmamil_sdk.cli", "serve", "--port", "0"]
    command += ["--bundles", str(bundle), *options]
    for root in slides_roots:
        command += ["--slides-root", str(root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    """Wait for the line that names the address; goes on reading, so that the pipe never fills."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    lines: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if match := re.match(r"serving on (\S+:\d+)$", line.strip()):
                found.put(match.group(1))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        address = found.get(timeout=_START_TIMEOUT_S)
    except queue.Empty:
        address = None
    if address is None:
        last = lines[-1] if lines else "it printed nothing"
        raise ServerUnreachable(f"The server did not start ({last}); run `cmamil serve` by hand.")
    return address


__all__ = ["running_server"]
