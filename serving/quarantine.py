"""Slides that ended two workers by themselves: not tried again for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from cmamil_sdk.errors import DecoderCrashed

from .paths import FileIdentity, SlideRef

_REMEMBERED = 4096


class Quarantine:
    """Remembers files by what they are on disk, so a changed file is another one and a link is not.

    Args:
        seconds: how long a file stays; 0: none is remembered.
        clock: seconds of any origin.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: OrderedDict[FileIdentity, float] = OrderedDict()

    def add(self, ref: SlideRef) -> None:
        """Refuse this file from now on; beyond 4,096 the oldest is let out."""
        if self._seconds:
            self._until[ref.identity] = self._clock() + self._seconds
            self._until.move_to_end(ref.identity)
            if len(self._until) > _REMEMBERED:
                self._until.popitem(last=False)

    def refusal(self, ref: SlideRef) -> DecoderCrashed | None:
        """The error that a request for this file gets, if it is in quarantine."""
        left_s = self._until.get(ref.identity, 0.0) - self._clock()
        if left_s <= 0:
            self._until.pop(ref.identity, None)
            return None
        return DecoderCrashed(
            f"{ref.shown} ended two worker processes a while ago and is not read again for "
            f"{left_s:.0f} s; copy the file again from its source, or convert it to a pyramidal "
            "tiled TIFF."
        )

    def check(self, ref: SlideRef) -> None:
        """Refuse this file if it is in quarantine.

        Raises:
            DecoderCrashed: it is.
        """
        refusal = self.refusal(ref)
        if refusal is not None:
            raise refusal


__all__ = ["Quarantine"]
