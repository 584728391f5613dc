"""Double of sdpc-for-python 1.0.5: its names, signatures, return types, coordinates; pixels of a .npz
behind a header.

Recorded: no properties and no dimensions; arrays of RGB; a file that is none ends in a null pointer
(ValueError), a damaged one crashes the process.
"""

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np

__all__ = ["Sdpc"]

HEADER_BYTES = 2048


class Sdpc:
    def __init__(self, sdpcPath):  # noqa: N803
        data = Path(sdpcPath).read_bytes()
        start = data[:2]
        if start == b"SQ":
            os.kill(os.getpid(), signal.SIGSEGV)
        if start != b"\0\0":
            raise ValueError("NULL pointer access")
        with np.load(io.BytesIO(data[HEADER_BYTES:])) as file:
            self._rgb = file["rgba"][..., :3]
            self._crashes = bool(file["spoilt"])
            ruler = float(file["mpp"])
        head = SimpleNamespace(contents=SimpleNamespace(ruler=ruler))
        self.sdpc = SimpleNamespace(contents=SimpleNamespace(picHead=head))
        height, width = self._rgb.shape[:2]
        self.level_count = 2
        self.level_downsamples = (1.0, 4.0)
        self.level_dimensions = ((width, height), (width // 4, height // 4))
        self.scan_magnification = 20
        self.sampling_rate = 0.25

    def read_region(self, location, level, size):
        if self._crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
        x, y = location
        scale = self.level_downsamples[level]
        x, y = int(x / scale), int(y / scale)
        width, height = size
        return self._rgb[:: int(scale), :: int(scale)][y : y + height, x : x + width].copy()

    def close(self):
        pass
