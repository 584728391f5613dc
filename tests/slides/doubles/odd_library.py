"""Openers that go wrong, for plug-ins of the tests; importable in a process of their own."""

import time
from types import SimpleNamespace

import numpy as np


class NoSuchUnsupportedFormatError(Exception):
    pass


def slide(**changes):
    parts = {
        "properties": {"openslide.vendor": "odd"},
        "dimensions": (40, 30),
        "level_dimensions": ((40, 30),),
        "level_downsamples": (1.0,),
        "read_region": lambda _location, _level, size: np.zeros((size[1], size[0], 3), np.uint8),
        "close": lambda: None,
    }
    return SimpleNamespace(**{**parts, **changes})


def whole(_path):
    return slide()


def raises(_path):
    raise KeyError("tile index")


def refuses(_path):
    raise NoSuchUnsupportedFormatError("magic number")


def is_missing(_path):
    raise ImportError("No module named 'odd'")


def is_silent(_path):
    time.sleep(600)
