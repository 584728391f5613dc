"""What is sent to a worker: arrays are not copied, and one that does not read holds up nobody."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.serving.child import ChildProcess
from cmamil_sdk.serving.messages import RunGraph
from cmamil_sdk.serving.task_frames import receive_task, task_frame


def test_arrays_travel_beside_the_pickle() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    inputs = {"tiles": tiles[1:], "none": np.empty((0, 2), np.float32), "turned": tiles[0].T}
    task = RunGraph(0, "encoder", inputs, 7)
    first, *arrays = task_frame(task)
    assert np.shares_memory(np.frombuffer(arrays[0], np.uint8), tiles)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=lambda: [ours.sendall(part) for part in (first, *arrays)])
        sending.start()
        found = receive_task(theirs)
        sending.join()
        ours.close()
        assert receive_task(theirs) is None
    assert (found.model, found.graph, found.part) == (0, "encoder", 7)
    for name, array in inputs.items():
        np.testing.assert_array_equal(found.inputs[name], array)


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_worker_that_reads_nothing_holds_up_nobody() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()
        child = ChildProcess(lambda _reply: None, ended.set)
        await child.start(["sleep", "100"])
        big = RunGraph(0, "encoder", {"tiles": np.zeros(16 * 2**20, np.uint8)})
        child.send(big)
        child.send(big)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.05)
            child.kill()
            await ended.wait()
            assert await child.ended() == -9
            await asyncio.sleep(0)
        child.send(big)  # lost

    before = descriptors()
    asyncio.run(scenario())
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
