"""The process that reads one slide through a plug-in's library, and may die of it.

A program (``python -m cmamil_sdk.slides.isolated_child FD``) with one pipe to the reader; it ends when
the reader closes the pipe or is gone.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

import numpy as np

from cmamil_sdk.slides.isolated_slide import Description, Failure


def serve(pipe: Connection) -> None:
    """Open the slide that the first message names, then answer each further message with pixels."""
    opener, path = pipe.recv()
    try:
        slide = opener(path)
        described = Description(
            dict(slide.properties),
            tuple(slide.dimensions),
            tuple(slide.level_dimensions),
            tuple(slide.level_downsamples),
        )
    except Exception as problem:  # noqa: BLE001
        # Told to the reader, which names the plug-in.
        is_import = isinstance(problem, ImportError)
        pipe.send(Failure(str(problem) if is_import else _said(problem), is_import))
        return
    pipe.send(described)
    while True:
        location, level, size = pipe.recv()
        try:
            pixels = np.asarray(slide.read_region(location, level, size))
        except Exception as problem:  # noqa: BLE001
            pipe.send(Failure(_said(problem), is_import=False))
        else:
            pipe.send(pixels)


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"


def main() -> None:
    """Serve the pipe whose descriptor is the first argument until the reader closes it."""
    with Connection(int(sys.argv[1])) as pipe:
        try:
            serve(pipe)
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
