"""How fast a run over many slides is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable


class RunMeter:
    """Counts slides and tiles of one process, and estimates what is left.

    Slides that are kept take next to no time and tell nothing of the others, so neither their tiles nor
    their seconds count. A slide not yet begun is taken to have as many tiles as those seen so far have
    on average. Slides that other processes of the run take make it as much shorter.
    """

    def __init__(self, slides: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Of a run over ``slides``; ``clock`` gives seconds."""
        self._slides, self._clock = slides, clock
        self._begun = self._kept = self._worked = self._others = 0
        self._seconds = 0.0
        self._tiles = self._planned = 0
        self._started: float | None = None
        self._done = self._total = 0

    def begin(self) -> None:
        """A slide is taken up."""
        self._begun += 1
        self._started = self._clock()
        self._done = self._total = 0

    def advance(self, done: int, total: int) -> None:
        """So many tiles of it are done."""
        self._done, self._total = done, total

    def end(self) -> None:
        """It is done, kept or failed."""
        if self._started is not None and self._total:
            self._seconds += self._clock() - self._started
            self._tiles += self._done
            self._planned += self._total
            self._worked += 1
        self._started, self._done, self._total = None, 0, 0

    def elsewhere(self) -> None:
        """Another process does, or has done, a slide of the run."""
        self._others += 1

    @property
    def tiles_per_s(self) -> float | None:
        """Tiles over the time of the slides they belong to; None before the first."""
        seconds, tiles = self._seconds, self._tiles + self._done
        if self._started is not None and self._total:
            seconds += self._clock() - self._started
        return tiles / seconds if seconds and tiles else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate for the whole run; None before the first tile."""
        rate = self.tiles_per_s
        if rate is None:
            return None
        worked = self._worked + (1 if self._total else 0)
        mean = (self._planned + self._total) / worked
        waiting = max(0, self._slides - self._begun - self._others)
        if self._started is not None and not self._total:
            waiting += 1  # its tiles are not yet known either
        share = worked / (worked + self._others)
        return (self._total - self._done + waiting * mean * share) / rate

    def text(self) -> str:
        """Place in the run, tiles per second and time left, as far as they are known."""
        parts = [f"{min(self._begun + self._others, self._slides)} of {self._slides}"]
        rate, left = self.tiles_per_s, self.seconds_left
        if rate is not None and left is not None:
            parts += [f"{rate:.0f} tiles/s", f"about {duration(left)} left"]
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in the largest unit that leaves more than one of it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


__all__ = ["RunMeter", "duration"]
