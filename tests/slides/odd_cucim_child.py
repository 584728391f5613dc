"""A decoder that misbehaves at certain places; started in place of the real one by tests.

In the folder ``CMAMIL_TEST_FOLDER`` the file ``at`` holds a place of level 0 and what happens to a read:
``crash`` at each time, ``once`` at the first, ``hang`` once, ``memory``, ``gone`` while starting.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cmamil_sdk.slides import cucim_child

_FOLDER = Path(os.environ["CMAMIL_TEST_FOLDER"])
_honest_batches = cucim_child.read_batches


def _batches(image, level, corners, size):
    x, y, what = (_FOLDER / "at").read_text().split()
    if [int(x), int(y)] in [list(corner) for corner in corners]:
        if what in ("once", "hang"):
            (_FOLDER / "at").write_text("-1 -1 nothing")
        if what in ("once", "crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(1000)
        if what == "memory":
            raise MemoryError
    yield from _honest_batches(image, level, corners, size)


if (_FOLDER / "at").read_text().endswith("gone"):
    raise SystemExit("no decoder today")
cucim_child.read_batches = _batches
cucim_child.main()
