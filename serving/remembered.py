"""Answers by request id: the same request gets the same answer, however often it is sent (AIP-155)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.errors import RequestIdReused

REMEMBERED_S = 24 * 3600.0
REMEMBERED_BYTES = 64 * 2**20

Response = prediction_pb2.PredictSlideResponse


@dataclass
class Remembered:
    """One request id: what came with it, how many calls with it are at work, and its answer."""

    body_sha256: bytes
    calls: int = 0
    answer: Response | None = None
    answered_s: float = 0.0

    def settle(self, answer: Response) -> Response:
        """The answer to give: the first that was made."""
        if self.answer is None:
            self.answer = answer
        return self.answer


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

    @contextmanager
    def request(
        self, caller: str, message: prediction_pb2.PredictSlideRequest
    ) -> Iterator[Remembered]:
        """What is remembered of a request; what its ``settle`` gets in the block is the answer.

        Raises:
            RequestIdReused: the caller sent another request with this id.
        """
        body = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
        if not message.request_id:
            yield Remembered(body)
            return
        key = caller, message.request_id.lower()
        self._forget()
        known = self._at_work.get(key) or self._answers.get(key) or Remembered(body)
        if known.body_sha256 != body:
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
            if known.answer is not None:
                self._keep(key, known)

    def _keep(self, key: tuple[str, str], known: Remembered) -> None:
        if key not in self._answers:
            assert known.answer is not None
            known.answered_s = self._now()
            self._answers[key] = known
            self._bytes += known.answer.ByteSize()
        self._forget()

    def _forget(self) -> None:
        """Forget what is too old, and the oldest where there is too much."""
        too_old_s = self._now() - REMEMBERED_S
        while self._answers:
            key, oldest = next(iter(self._answers.items()))
            if oldest.answered_s >= too_old_s and self._bytes <= self._max_bytes:
                return
            del self._answers[key]
            assert oldest.answer is not None
            self._bytes -= oldest.answer.ByteSize()


__all__ = ["REMEMBERED_BYTES", "REMEMBERED_S", "Remembered", "RememberedAnswers"]
