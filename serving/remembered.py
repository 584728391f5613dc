"""Answers by request id: the same request gets the same answer, however often it is sent (AIP-155)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import RequestIdReused

from .requests import fingerprint_of

REMEMBERED_S = 24 * 3600.0
REMEMBERED_BYTES = 64 * 2**20
_BESIDE_BYTES = 1024  # the id, the fingerprint, and what Python needs to hold them

Response = prediction_pb2.PredictSlideResponse


@dataclass(slots=True)
class Remembered:
    """One request id: what came with it, how many calls with it are at work, and its answer.

    The answer is kept as it is sent: as a message it takes several times as much memory.
    """

    fingerprint: str
    calls: int = 0
    made: Response | None = None
    kept: bytes | None = None
    kept_s: float = 0.0

    @property
    def answer(self) -> Response | None:
        """The first that was made; None as long as there is none."""
        return self.made if self.kept is None else Response.FromString(self.kept)

    @property
    def size_bytes(self) -> int:
        """About the memory that it takes to keep the answer."""
        return _BESIDE_BYTES + len(self.kept or b"")

    def settle(self, answer: Response) -> Response:
        """The answer to give: the first that was made."""
        first = self.answer
        if first is None:
            first = self.made = answer
        return first

    def keep(self, now_s: float) -> None:
        """Note what was made, and when, as long as it is kept."""
        assert self.made is not None
        self.kept, self.kept_s, self.made = self.made.SerializeToString(), now_s, None


class RememberedAnswers:
    """Remembers answers for 24 hours, the latest 64 MiB of them; errors are not remembered.

    Callers are told apart by the names of their tokens.
    """

    def __init__(
        self, max_bytes: int = REMEMBERED_BYTES, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._now = max_bytes, now
        self._bytes = 0
        self._at_work: dict[tuple[str, str], Remembered] = {}
        self._answers: dict[tuple[str, str], Remembered] = {}  # oldest first

    def answer(self, caller: str, message: prediction_pb2.PredictSlideRequest) -> Response | None:
        """The answer that the same request had before, if it is remembered."""
        self._forget()
        key = _key(caller, message)
        known = self._at_work.get(key) or self._answers.get(key)
        if known is None or known.fingerprint != fingerprint_of(message):
            return None
        return known.answer

    @contextmanager
    def request(
        self, caller: str, message: prediction_pb2.PredictSlideRequest
    ) -> Iterator[Remembered]:
        """What is remembered of a request; what its ``settle`` gets in the block is the answer.

        Raises:
            RequestIdReused: the caller sent another request with this id.
        """
        fingerprint = fingerprint_of(message)
        if not message.request_id:
            yield Remembered(fingerprint)
            return
        key = _key(caller, message)
        self._forget()
        known = self._at_work.get(key) or self._answers.get(key) or Remembered(fingerprint)
        if known.fingerprint != fingerprint:
            raise RequestIdReused(
                f"The request id {message.request_id} came with another request before; use a new one."
            )
        self._at_work[key] = known
        known.calls += 1
        try:
            yield known
        finally:
            known.calls -= 1
            if not known.calls:
                del self._at_work[key]
            if known.made is not None:
                self._keep(key, known)

    def _keep(self, key: tuple[str, str], known: Remembered) -> None:
        known.keep(self._now())
        self._answers[key] = known
        self._bytes += known.size_bytes
        self._forget()

    def _forget(self) -> None:
        """Forget what is too old, and the oldest where there is too much."""
        too_old_s = self._now() - REMEMBERED_S
        while self._answers:
            key, oldest = next(iter(self._answers.items()))
            if oldest.kept_s >= too_old_s and self._bytes <= self._max_bytes:
                return
            del self._answers[key]
            self._bytes -= oldest.size_bytes


def _key(caller: str, message: prediction_pb2.PredictSlideRequest) -> tuple[str, str]:
    return caller, message.request_id.lower()


__all__ = ["REMEMBERED_BYTES", "REMEMBERED_S", "Remembered", "RememberedAnswers"]
