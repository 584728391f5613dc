"""When a call that failed is made again; the clients do the waiting."""

from __future__ import annotations

import time
from itertools import chain, repeat

from cmamil_sdk._client_errors import Refusal

_DELAYS_S = (0.2, 0.5, 1.0)
_LONGEST_DELAY_S = 5.0


class Retries:
    """The attempts of one call, all of them within ``timeout_s``.

    One alone unless ``retried``; if ``lasting``, as many as there is time for.
    """

    def __init__(self, timeout_s: float, *, retried: bool = True, lasting: bool = False) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        delays_s = _DELAYS_S if retried else ()
        self._delays_s = chain(delays_s, repeat(_DELAYS_S[-1]) if lasting else ())

    def left_s(self) -> float:
        """Seconds that the next attempt may take."""
        return max(0.0, self._deadline_s - time.monotonic())

    def wait_s(self, refusal: Refusal) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            CmamilError: the refusal's error, where there is no next attempt.
        """
        delay_s = next(self._delays_s, None)
        if delay_s is not None and refusal.again:
            wait_s = min(max(delay_s, refusal.delay_s or 0.0), _LONGEST_DELAY_S)
            if wait_s < self.left_s():
                return wait_s
        raise refusal.error from refusal.__cause__


__all__ = ["Retries"]
