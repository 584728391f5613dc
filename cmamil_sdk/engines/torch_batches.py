"""Batches of a few sizes, each recorded once: a CUDA graph spares the launch of every single kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH_SIZES = (8, 32, 64, 128)
"""Batches are filled up to the next of these, and split where they are larger than the last."""

_WARM_UP_RUNS = 3

Outputs = dict[str, Tensor]
Work = Callable[[], Outputs]


@dataclass(frozen=True)
class _Recording:
    """Where the tiles of a size go, and what then gives the outputs."""

    tiles: Tensor
    replay: Work


class RecordedBatches:
    """Runs batches of tiles, one caller at a time.

    Args:
        run: tiles ``[B, ...]`` to outputs, each ``[B, ...]``, whose rows know nothing of each other.
        device: where the tiles go.
        record: does work once and gives what does it again on the same memory,
            :func:`record_cuda_graph`.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Outputs],
        device: torch.device,
        record: Callable[[Work, torch.device], Work],
    ) -> None:
        self._run, self._device, self._record = run, device, record
        self._recordings: dict[int, _Recording] = {}
        self._lock = threading.Lock()

    def __call__(self, tiles: Tensor) -> Outputs:
        """Outputs on the host."""
        with self._lock:
            parts = list(self._parts(tiles))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Free the memory of all sizes."""
        with self._lock:
            self._recordings.clear()

    def _parts(self, tiles: Tensor) -> Iterator[Outputs]:
        for part in torch.split(tiles, BATCH_SIZES[-1]):
            size = next(size for size in BATCH_SIZES if size >= len(part))
            if size not in self._recordings:
                self._recordings[size] = self._recording(size, tiles)
            recording = self._recordings[size]
            recording.tiles[: len(part)] = part
            recording.tiles[len(part) :] = 0
            yield {name: found[: len(part)].cpu() for name, found in recording.replay().items()}

    def _recording(self, size: int, like: Tensor) -> _Recording:
        held = torch.zeros((size, *like.shape[1:]), dtype=like.dtype, device=self._device)
        return _Recording(held, self._record(lambda: self._run(held), self._device))


def sizes_up_to(rows: int) -> list[int]:
    """The sizes that batches of up to ``rows`` tiles are filled up to."""
    return [
        size for size, before in zip(BATCH_SIZES, (0, *BATCH_SIZES), strict=False) if before < rows
    ]


def record_cuda_graph(work: Work, device: torch.device) -> Work:
    """Record ``work`` as a CUDA graph; what it allocates stays allocated."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_RUNS):  # libraries choose and allocate, which cannot be recorded
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads decode on the device meanwhile; what they do must not break the recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = work()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


__all__ = ["BATCH_SIZES", "RecordedBatches", "record_cuda_graph", "sizes_up_to"]
